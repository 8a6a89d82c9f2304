"""Clients that do not read, and clients that send nonsense: others must not be affected."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import resource
import socket as sockets
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from websockets.exceptions import ConnectionClosed

from tests.builders import trades
from tests.conftest import RunningServer, running_server, until
from tests.talk import Talk, talking
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings


def malformed(dice: random.Random) -> Iterator[str | bytes]:
    """Yield invalid messages of every kind, endlessly."""
    deep = "[" * 30_000
    symbols: list[Any] = [
        "A B", "A\r\nB", "A\tB", "A?", "[A]", "A*B", "**", "", "Ä", "A" * 33, "\x00", "\u2028", 5,
        None, 1.5, True, ["A"], {"A": 1},
    ]  # fmt: skip
    actions = ["", "Subscribe", "dance", "__class__", 7, None, [], {}, True, "sub\r\nscribe"]
    values: list[Any] = [None, 0, -1, 1e308, 2**63 - 1, "x", [], {}, [[]], {"a": {}}]
    while True:
        yield dice.choice(["", "{", "}", "nul", '"', "[]", "[1,2]", "5", '{"action":}', "{'a':1}"])
        yield dice.choice(["NaN", '{"action":NaN}', '{"action":"ping","id":1e999}', deep])
        yield '{"action":"ping","id":' + "9" * dice.randint(20, 4000) + "}"
        yield dice.choice(['{"action":"\\ud800"}', '{"\\udfff":1}', '{"action":"ping"} x'])
        yield json.dumps({"action": dice.choice(actions), "x": dice.choice(values)})
        yield json.dumps({"action": "subscribe", "trades": [dice.choice(symbols)]})
        yield json.dumps({"action": "subscribe", "trades": dice.choice([5, "A", None, {}])})
        yield json.dumps({"action": "subscribe", dice.choice(["news", "x", ""]): ["A"]})
        yield json.dumps({"action": "ping", "id": dice.choice([[], {}, 1.5, True, "x" * 65])})
        yield json.dumps({"action": "auth", "key": dice.choice([5, None, [], {}])})
        yield dice.randbytes(dice.randint(0, 200))
        yield dice.choice(
            [b"\x91" * 30_000, b"\x81\xa1a" * 20_000, b"\xc1", b"\xdf\xff\xff\xff\xff"]
        )
        yield msgpack.packb({"action": dice.choice(values)})
        yield msgpack.packb({5: 6, "action": "ping"})
        yield msgpack.packb(
            {"action": "subscribe", "trades": [dice.choice([b"A", 5, float("nan")])]}
        )
        yield msgpack.packb({"action": "ping", "id": msgpack.Timestamp(2**33, 999_999_999)})
        yield b"\x82\xa6action\xa4ping\xa2id\xc7\x0c\xff" + b"\xff" * 12
        yield "x" * 65_000


async def test_two_thousand_malformed_messages_get_an_error_each(
    server: RunningServer, publisher: FeedPublisher, caplog: pytest.LogCaptureFixture
) -> None:
    dice = random.Random(7)
    async with talking(server.stream) as good, talking(server.stream) as bad:
        await good.ask(action="subscribe", trades=["ES"])
        messages = malformed(dice)
        for count in range(2000):
            message = next(messages)
            await bad.socket.send(message)
            reply = await bad.hear()
            assert reply["T"] == "error", (message[:80], reply)
            assert reply["code"] in (400, 410), (message[:80], reply)
            assert reply["msg"].isascii()
            assert reply["msg"].isprintable()
            if count % 100 == 0:
                await publisher.publish(trades(1))
        assert (await bad.ask(action="ping", id="fine"))["id"] == "fine"
        assert [tick["seq"] for tick in await good.ticks(20)] == list(range(1, 21))
    assert "Traceback" not in caplog.text


async def deaf_client(server: RunningServer, message: bytes) -> sockets.socket:
    """A client that sends something after the handshake and never reads again."""
    host, port = server.http.removeprefix("http://").split(":")
    raw = sockets.create_connection((host, int(port)))
    raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    raw.sendall(
        b"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    raw.setblocking(False)
    received = b""
    while b"\r\n\r\n" not in received:
        received += await asyncio.get_running_loop().sock_recv(raw, 100)
    raw.sendall(bytes((0x81, 0x80 | len(message))) + b"\x00" * 4 + message)
    return raw


async def test_a_client_that_never_reads_is_closed_without_delaying_others(
    runtime_dir: Any, redis_url: str, publisher: FeedPublisher
) -> None:
    small = Settings(runtime_dir=str(runtime_dir), outbox_max_bytes=256 * 1024)
    async with running_server(small, redis_url) as server, talking(server.stream) as good:
        await good.ask(action="subscribe", trades=["ES"])
        deaf = await deaf_client(server, b'{"action":"subscribe","trades":["ES"]}')
        connections = server.server.server_state.connections
        await until(lambda: len(connections) == 2)
        seen = 0
        loop = asyncio.get_running_loop()
        worst = 0.0
        async with asyncio.timeout(30):
            while len(connections) == 2:
                await publisher.publish(trades(500))
                sent = loop.time()
                ticks = await good.ticks(500)
                worst = max(worst, loop.time() - sent)
                assert [tick["seq"] for tick in ticks] == list(range(seen + 1, seen + 501))
                seen += 500
        deaf.close()
        assert worst < 5  # The deaf client stays for longer, and a blocked server as well.
        assert (await good.ask(action="ping"))["T"] == "pong"


async def test_a_slow_client_that_reads_again_gets_the_reason(
    runtime_dir: Any, redis_url: str, publisher: FeedPublisher
) -> None:
    small = Settings(runtime_dir=str(runtime_dir), outbox_max_bytes=64 * 1024)
    async with running_server(small, redis_url) as server, talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["ES"])
        (protocol,) = server.server.server_state.connections
        protocol.pause_writing()  # Pretend that its socket is full.
        for _ in range(5):
            await publisher.publish(trades(500))
            await publisher.flush()
        await until(lambda: protocol.close_sent)  # type: ignore[union-attr]
        with contextlib.suppress(ConnectionClosed):
            while True:
                last = await talk.hear()
        assert last == {"T": "error", "code": 407, "msg": "slow client"}
        assert talk.socket.close_code == 4102


async def test_a_client_that_never_reads_replies_is_closed(
    runtime_dir: Any, redis_url: str
) -> None:
    small = Settings(runtime_dir=str(runtime_dir), outbox_max_bytes=64 * 1024)
    async with running_server(small, redis_url) as server:
        deaf = await deaf_client(server, b"{}")
        connections = server.server.server_state.connections
        await until(lambda: len(connections) == 1)
        bad = b"\x81\x82\x00\x00\x00\x00{}" * 1000
        async with asyncio.timeout(30):
            while connections:
                try:
                    await asyncio.get_running_loop().sock_sendall(deaf, bad)
                except OSError:
                    break
        await until(lambda: not connections)
        deaf.close()


async def test_memory_does_not_grow_with_clients_that_came_and_went(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async def visit(number: int) -> None:
        async with talking(server.stream) as talk:
            await talk.ask(action="subscribe", trades=[f"S{number % 7}", "*"], quotes=["*"])

    async def visits(count: int) -> None:
        for start in range(0, count, 20):
            await asyncio.gather(*(visit(start + each) for each in range(20)))

    await visits(100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await visits(300)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert after - before < 5_000  # in KB; includes the client's half
    assert not server.server.server_state.connections


async def test_abrupt_ends_leave_nothing(server: RunningServer) -> None:
    connections = server.server.server_state.connections
    clients = [await deaf_client(server, b'{"action":"list"}') for _ in range(20)]
    await until(lambda: len(connections) == 20)
    for client in clients:
        client.setsockopt(
            sockets.SOL_SOCKET, sockets.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )
        client.close()
    await until(lambda: not connections)
    async with talking(server.stream) as talk:
        assert isinstance(talk, Talk)
