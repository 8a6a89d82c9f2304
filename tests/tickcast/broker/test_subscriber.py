"""The pub/sub connection to a real store, over every kind of connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.conftest import until
from tickcast.broker.client import make_client
from tickcast.broker.connection import open_connection
from tickcast.broker.subscriber import Subscriber
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import BrokerUnavailable


class Listener:
    """A running subscriber, and the messages it has received."""

    def __init__(self, client: Redis) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self.reconnects = 0
        self.subscriber = Subscriber(client, self._hear, self._count)

    def _hear(self, channel: str, data: bytes) -> None:
        self.heard.append((channel, data))

    async def _count(self) -> None:
        self.reconnects += 1


@contextlib.asynccontextmanager
async def listening(url: str) -> AsyncIterator[Listener]:
    client = make_client(url)
    listener = Listener(client)
    task = asyncio.create_task(listener.subscriber.run())
    await listener.subscriber.wait_for_first_attempt()
    try:
        yield listener
    finally:
        await cancel_and_wait([task])
        await client.aclose()


def make_certificate(directory: Path) -> None:
    command = [
        *("openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-days", "1"),
        *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", f"{directory}/key.pem", "-out", f"{directory}/cert.pem"),
    ]
    subprocess.run(command, check=True, capture_output=True)


@contextlib.asynccontextmanager
async def tls_before(settings: Settings, directory: Path) -> AsyncIterator[str]:
    """The URL of a TLS proxy that forwards everything to the store."""
    await asyncio.to_thread(make_certificate, directory)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(
            settings.store_dir / "store.sock"
        )
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(join, "localhost", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"rediss://localhost:{port}?ssl_ca_certs={directory / 'cert.pem'}"
    finally:
        server.close()


async def hears_everything(listener: Listener, publisher: Redis) -> None:
    """Check that it confirms, receives much and little, survives a cut, and unsubscribes."""
    subscriber = listener.subscriber
    assert subscriber.connected
    await subscriber.subscribe(["A", "B"])
    assert subscriber.channels == {"A", "B"}

    big = bytes(1_000_000)
    await publisher.publish("A", big)
    pipeline = publisher.pipeline(transaction=False)
    numbers = [str(number).encode() for number in range(5000)]
    for number in numbers:
        pipeline.publish("B", number)
    await pipeline.execute()
    await until(lambda: len(listener.heard) == 5001)
    assert listener.heard == [("A", big), *(("B", number) for number in numbers)]

    await publisher.client_kill_filter(_type="pubsub")
    await until(lambda: listener.reconnects == 1)
    await publisher.publish("B", "back")
    await until(lambda: len(listener.heard) == 5002)

    subscriber.unsubscribe(["B"])
    await asyncio.sleep(1)  # Its heartbeats prove that the connection is alive.
    assert subscriber.connected
    assert await publisher.publish("B", "unheard") == 0
    assert listener.heard[-1] == ("B", b"back")


async def test_a_unix_socket(redis_url: str, redis: Redis) -> None:
    async with listening(redis_url) as listener:
        await hears_everything(listener, redis)


async def test_a_port_with_a_separate_user(redis: Redis, unused_tcp_port: int) -> None:
    await redis.config_set("port", unused_tcp_port)
    await redis.acl_setuser(
        "reader", enabled=True, passwords=["+secret"], channels=["*"], categories=["+@all"]
    )
    async with listening(f"redis://reader:secret@127.0.0.1:{unused_tcp_port}") as listener:
        await hears_everything(listener, redis)


async def test_a_password(redis: Redis, redis_url: str) -> None:
    await redis.config_set("requirepass", "secret")
    await redis.execute_command("AUTH", "secret")  # type: ignore[no-untyped-call]
    async with listening(redis_url.replace("unix://", "unix://:secret@")) as listener:
        await hears_everything(listener, redis)
    await redis.config_set("requirepass", "")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
async def test_tls(settings: Settings, redis: Redis, tmp_path: Path) -> None:
    async with tls_before(settings, tmp_path) as url, listening(url) as listener:
        await hears_everything(listener, redis)


async def test_a_channel_without_permission_fails(redis: Redis, redis_url: str) -> None:
    await redis.acl_setuser(
        "reader", enabled=True, nopass=True, reset_channels=True, categories=["+@all"]
    )
    async with listening(redis_url.replace("unix://", "unix://reader:@")) as listener:
        with pytest.raises(BrokerUnavailable):
            await listener.subscriber.subscribe(["A"])
        assert listener.subscriber.channels == set()
        await until(lambda: listener.subscriber.connected)


async def test_an_exception_of_the_callback_ends_the_subscriber(redis: Redis) -> None:
    subscriber = Subscriber(redis, lambda channel, data: 1 // 0, lambda: asyncio.sleep(0))  # type: ignore[arg-type]
    task = asyncio.create_task(subscriber.run())
    await subscriber.wait_for_first_attempt()
    await subscriber.subscribe(["A"])
    await redis.publish("A", "x")
    with pytest.raises(ZeroDivisionError):
        await task


# -- subscribing and unsubscribing at the same time


MANY = [f"c{number:04}" for number in range(5_000)]


async def test_a_channel_subscribed_while_many_are_unsubscribed_stays(
    redis: Redis, redis_url: str
) -> None:
    async with listening(redis_url) as listener:
        subscriber = listener.subscriber
        await subscriber.subscribe(MANY)
        subscriber.unsubscribe(MANY)
        await subscriber.subscribe(MANY[-1:])
        assert subscriber.channels == {MANY[-1]}
        await redis.publish(MANY[-1], "x")
        await until(lambda: listener.heard == [(MANY[-1], b"x")])
        await until_receivers(redis, MANY[0], 0)


async def test_a_channel_unsubscribed_before_its_confirmation_is_left_later(
    redis: Redis, redis_url: str
) -> None:
    async with listening(redis_url) as listener:
        subscriber = listener.subscriber
        confirming = asyncio.create_task(subscriber.subscribe(MANY))
        await asyncio.sleep(0)
        subscriber.unsubscribe(MANY)
        await confirming
        assert subscriber.channels == set(MANY)
        assert await redis.publish(MANY[0], "x") == 1


async def test_channels_unsubscribed_while_reconnecting_are_not_confirmed(
    redis: Redis, redis_url: str
) -> None:
    async with listening(redis_url) as listener:
        subscriber = listener.subscriber
        await subscriber.subscribe(MANY)
        await redis.client_kill_filter(_type="pubsub")
        await until(lambda: not subscriber.connected)
        while MANY[0] not in subscriber._confirmed:
            await asyncio.sleep(0)
        assert subscriber._unconfirmed, "all were confirmed at once"
        subscriber.unsubscribe(MANY[:1])
        await until(lambda: listener.reconnects == 1)
        assert MANY[0] not in subscriber.channels
        await subscriber.subscribe(MANY[:1])
        await redis.publish(MANY[0], "x")
        await until(lambda: listener.heard == [(MANY[0], b"x")])


async def until_receivers(redis: Redis, channel: str, count: int) -> None:
    async with asyncio.timeout(5):
        while await redis.publish(channel, "") != count:
            await asyncio.sleep(0.01)


# -- silence


async def block(client: Redis) -> None:
    """Occupy one pooled connection for a while."""
    await client.execute_command("BLPOP", "none", 3)  # type: ignore[no-untyped-call]


async def test_a_busy_pool_is_not_mistaken_for_a_silent_redis(redis_url: str) -> None:
    """Heartbeats used to wait for a pooled connection, behind a large number of handshakes."""
    client = make_client(redis_url)
    listener = Listener(client)
    running = asyncio.create_task(listener.subscriber.run())
    await listener.subscriber.wait_for_first_attempt()
    blocking = [asyncio.create_task(block(client)) for _ in range(16)]
    try:
        for _ in range(30):
            assert await listener.subscriber.diagnose() is None
            await asyncio.sleep(0.1)
        assert listener.subscriber.reconnects == 0
    finally:
        await cancel_and_wait([running, *blocking])
        await client.aclose()


async def test_a_busy_event_loop_is_not_mistaken_for_a_silent_redis(redis_url: str) -> None:
    async with listening(redis_url) as listener:
        for _ in range(7):
            time.sleep(0.4)  # noqa: ASYNC251 - tests a busy loop
            await asyncio.sleep(0)
        assert await listener.subscriber.diagnose() is None
        assert listener.subscriber.reconnects == 0


async def test_silence_before_the_first_heartbeat_is_noticed(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = (await redis.info("server"))["process_id"]

    async def open_and_stop(client: Redis) -> object:
        found = await open_connection(client)
        os.kill(pid, signal.SIGSTOP)
        return found

    monkeypatch.setattr("tickcast.broker.subscriber.open_connection", open_and_stop)
    try:
        async with listening(redis_url) as listener:
            assert listener.subscriber.connected
            await until(lambda: not listener.subscriber.connected, 4)
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_without_permission_to_ping_messages_still_arrive(
    redis: Redis, redis_url: str
) -> None:
    """This also happens while Redis loads its data. The connection must stay open then."""
    await redis.acl_setuser(
        "reader", enabled=True, nopass=True, channels=["*"], categories=["+@all"],
        commands=["-ping"],
    )  # fmt: skip
    async with listening(redis_url.replace("unix://", "unix://reader:@")) as listener:
        trouble = await listener.subscriber.diagnose()
        assert trouble is not None
        assert "ping" in trouble.lower()
        await listener.subscriber.subscribe(["A"])
        await redis.publish("A", "x")
        await until(lambda: listener.heard == [("A", b"x")])
        assert listener.subscriber.reconnects == 0
