"""rediss://: the store behind TLS. A proxy terminates TLS, since not every Valkey supports it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from feed.transport.tls import (
    CertificateFiles,
    load_context,
    make_self_signed,
    provide_self_signed,
)
from tests.builders import trade, trades
from tests.cli.conftest import Cli
from tests.conftest import running_server, until
from tests.talk import talking
from tickcast.broker.client import check_version, make_client
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import BrokerUntrusted
from tickcast.wire.ticks import DEFAULT_FEED


class TlsProxy:
    """A TLS listener that forwards to a unix socket."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._joined: set[asyncio.Task[None]] = set()
        self.port = 0
        self.connections = 0

    def cut(self) -> None:
        """Close every connection."""
        for task in self._joined:
            task.cancel()

    async def serve(self, near: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._joined.add(task)
        self.connections += 1
        far, requests = await asyncio.open_unix_connection(self._target)
        pumps = [
            asyncio.create_task(pump(near, requests)),
            asyncio.create_task(pump(far, answers)),
        ]
        try:
            with suppress(asyncio.CancelledError):
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(pumps)
            answers.transport.abort()
            requests.transport.abort()
            self._joined.discard(task)

    async def end(self) -> None:
        self.cut()
        await until(lambda: not self._joined)


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()


@asynccontextmanager
async def tls_proxy(pair: CertificateFiles, redis_url: str) -> AsyncIterator[TlsProxy]:
    proxy = TlsProxy(urlsplit(redis_url).path)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=load_context(*pair))
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.end()


@pytest.fixture
def pair(tmp_path: Path) -> CertificateFiles:
    return provide_self_signed(tmp_path)


async def test_ticks_pass_through_tls_and_missed_ones_are_repaired(
    pair: CertificateFiles, redis_url: str, settings: Settings
) -> None:
    async with tls_proxy(pair, redis_url) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={pair.cert}"
        client = make_client(url)
        await check_version(client)
        async with (
            client,
            running_server(settings, url) as server,
            talking(server.stream) as talk,
            FeedPublisher(client, DEFAULT_FEED, settings) as publisher,
        ):
            await talk.ask(action="subscribe", trades=["ES"])
            await publisher.publish(trades(3000))
            await publisher.flush()
            assert [tick["seq"] for tick in await talk.ticks(3000)] == list(range(1, 3001))
            before = proxy.connections
            proxy.cut()
            await until(lambda: proxy.connections > before)
            await publisher.publish([trade()])
            await publisher.flush()
            assert (await talk.ticks(1))[0]["seq"] == 3001


async def test_an_untrusted_store_is_not_used(pair: CertificateFiles, redis_url: str) -> None:
    async with tls_proxy(pair, redis_url) as proxy:
        client = make_client(f"rediss://127.0.0.1:{proxy.port}")
        with pytest.raises(
            BrokerUntrusted, match=r"not trusted: self.signed .*\?ssl_ca_certs=FILE"
        ):
            await check_version(client)
        await client.aclose()


async def test_the_host_name_is_verified(pair: CertificateFiles, redis_url: str) -> None:
    cert, key = make_self_signed(["elsewhere.example"])
    pair.cert.write_bytes(cert)
    pair.key.write_bytes(key)
    async with tls_proxy(pair, redis_url) as proxy:
        client = make_client(f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={pair.cert}")
        with pytest.raises(BrokerUntrusted, match="not trusted: IP address mismatch"):
            await check_version(client)
        await client.aclose()


async def test_commands_end_with_one_line(
    pair: CertificateFiles, redis_url: str, runtime_dir: Path
) -> None:
    cli = Cli(runtime_dir)
    async with tls_proxy(pair, redis_url) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}"
        for command in (["serve", "--port", "0"], ["publish"], ["synth"]):
            done = await cli.run(*command, "--redis", url, stdin="")
            assert done.code == 1
            (line,) = done.err.splitlines()
            assert line.startswith("tickcast: the certificate of Redis is not trusted: ")
        trusting = f"{url}?ssl_ca_certs={pair.cert}"
        line = '{"T":"t","S":"ES","p":1,"s":1}\n'
        done = await cli.run("publish", "--redis", trusting, stdin=line)
        assert (done.code, done.err) == (0, "published 1 tick\n")
        for bad, words in [
            ("/nonexistent.pem", "/nonexistent.pem: No such file or directory"),
            (str(pair.key), f"{pair.key} holds no certificate in PEM form"),
        ]:
            done = await cli.run("publish", "--redis", f"{url}?ssl_ca_certs={bad}", stdin="")
            assert (done.code, done.err) == (2, f"tickcast: redis_url: '{url}': {words}\n")
