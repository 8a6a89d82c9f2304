"""Long responses: shared, built in slices, paged, limited, and dropped if they are not read."""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
from collections import Counter
from collections.abc import AsyncIterator
from time import thread_time
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from feed.server.listings import PART_BYTES, Body, SharedBodies
from feed.transport.http import FeedHttpProtocol
from tests.conftest import RunningServer, running_server, until
from tests.talk import talking
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.wire.errors import HandshakeRefused
from tickcast.wire.ticks import StreamKey, Trade
from tickcast.wire.times import Time

STREAMS = 10_000
STRICT: Any = {"unlimited_addresses": (), "attempts": "1000/second"}


class Builder:
    """Builds bodies when the gate opens, and counts them."""

    def __init__(self) -> None:
        self.built = 0
        self.gate = asyncio.Event()

    async def __call__(self) -> Body:
        await self.gate.wait()
        self.built += 1
        return Body(b"%d" % self.built)


async def test_requests_share_a_response_that_is_not_older_than_they_are() -> None:
    bodies, builder = SharedBodies(), Builder()
    first = bodies.share("a", builder, None)
    await asyncio.sleep(0)  # It is being built by now, and may have read older data.
    others = [bodies.share("a", builder, None) for _ in range(50)]
    builder.gate.set()
    assert (await first.wait()).content == b"1"
    assert {(await each.wait()).content for each in others} == {b"2"}
    for share in (first, *others, first):
        share.release()
    assert not bodies._shares
    assert not bodies._queued


async def test_bodies_are_built_one_at_a_time_and_limited_in_number() -> None:
    bodies, builder = SharedBodies(), Builder()
    shares = [bodies.share(number, builder, None) for number in range(16)]
    with pytest.raises(HandshakeRefused) as refusal:
        bodies.share(16, builder, None)
    assert (refusal.value.status, refusal.value.retry_after_s) == (503, 1)
    shares.append(bodies.share(15, builder, None))  # It joins a request that already waits.
    builder.gate.set()
    built = [await share.wait() for share in shares]
    assert [body.content for body in built[:16]] == [b"%d" % n for n in range(1, 17)]
    with pytest.raises(HandshakeRefused):
        bodies.share(16, builder, None)  # Each answer is still held.
    shares.pop(0).release()
    bodies.share(16, builder, None)
    await bodies.cancel_builds()


async def test_an_address_may_wait_for_few_responses() -> None:
    bodies, builder = SharedBodies(), Builder()
    shares = [bodies.share("a", builder, "192.0.2.1") for _ in range(8)]
    with pytest.raises(HandshakeRefused) as refusal:
        bodies.share("a", builder, "192.0.2.1")
    assert refusal.value.status == 429
    bodies.share("a", builder, "192.0.2.2")
    shares[0].release()
    bodies.share("a", builder, "192.0.2.1")
    await bodies.cancel_builds()


def names() -> list[str]:
    return [f"SYMBOL{number:05}" for number in range(STREAMS)]


@pytest_asyncio.fixture
async def many(publisher: FeedPublisher) -> None:
    """Return as many symbols as a large exchange has."""
    now = Time.now()
    await publisher.publish([Trade(symbol=name, price=1.5, size=2, time=now) for name in names()])
    await publisher.flush()


@contextlib.asynccontextmanager
async def longest_turn() -> AsyncIterator[list[float]]:
    """Return the longest turn of the loop in seconds of processor time: the machine may be busy."""
    longest = [0.0]

    async def watch() -> None:
        at_s = thread_time()
        while True:
            await asyncio.sleep(0)
            now_s = thread_time()
            longest[0] = max(longest[0], now_s - at_s)
            at_s = now_s

    task = asyncio.create_task(watch())
    yield longest
    task.cancel()


async def test_bursts_share_builds_and_do_not_block_the_loop(
    settings: Settings, redis_url: str, many: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: Counter[str] = Counter()
    real = Store.iter_streams

    def counting(self: Store, feed: str) -> AsyncIterator[StreamKey]:
        built[feed] += 1
        return real(self, feed)

    monkeypatch.setattr(Store, "iter_streams", counting)
    async with running_server(settings, redis_url) as server:
        for path in ("/symbols", "/snapshot?symbols=*"):
            built.clear()
            raw = [await open_request(server, path) for _ in range(20)]
            async with longest_turn() as longest:
                sizes = [await drained(reader) for reader, _ in raw]
            for _, writer in raw:
                writer.close()
            assert min(sizes) == max(sizes) > 20 * STREAMS
            assert built["live"] <= 4
            # Twenty answers built in one piece take seconds each. The clients' share is included.
            assert longest[0] < 0.3


async def open_request(
    server: RunningServer, path: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = server.http.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    return reader, writer


async def drained(reader: asyncio.StreamReader) -> int:
    """Read a response to its end and return its size."""
    assert b" 200 " in await reader.readline()
    await reader.readuntil(b"\r\n\r\n")
    size = 0
    while piece := await reader.read(1 << 20):
        size += len(piece)
    return size


async def test_pages_contain_everything_once(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    now = Time.now()
    symbols = [f"A/{number}" for number in range(25)]
    await publisher.publish([Trade(symbol=name, price=1, size=1, time=now) for name in symbols])
    await publisher.flush()
    async with httpx.AsyncClient(base_url=server.http) as client:
        for start in ("/symbols?limit=10", "/snapshot?symbols=A/*,B&limit=10"):
            found: list[dict[str, Any]] = []
            sizes = []
            url: str | None = start
            while url is not None:
                answer = await client.get(url)
                assert answer.status_code == 200
                found += answer.json()
                sizes.append(len(answer.json()))
                url = answer.links["next"]["url"] if "next" in answer.links else None
            assert sizes == [10, 10, 5]
            assert [each["S"] for each in found] == sorted(symbols)
        whole = await client.get("/symbols")
        assert len(whole.json()) == 25
        assert "link" not in whole.headers
        for bad in ("limit=0", "limit=10001", "limit=x", "limit=%C2%B2", "after=a%20b"):
            refused = await client.get(f"/symbols?{bad}")
            assert refused.status_code == 400
            assert bad.partition("=")[0] in refused.text


async def test_requests_of_an_address_are_limited_without_authentication(
    settings: Settings, redis_url: str
) -> None:
    strict = Settings(
        runtime_dir=settings.runtime_dir, requests_per_s=0.5, requests_burst=5, **STRICT
    )
    async with running_server(strict, redis_url) as server:
        async with httpx.AsyncClient(base_url=server.http) as client:
            answers = [await client.get("/health") for _ in range(6)]
            assert [each.status_code for each in answers] == [200] * 5 + [429]
            assert answers[-1].headers["retry-after"] == "2"
            assert answers[-1].headers["connection"] == "close"
            # From then on the server does not wait, and refuses the address before it sends a
            # request.
            for _ in range(60):
                with contextlib.suppress(httpx.TransportError):
                    await client.get("/health")
        host, port = server.http.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await reader.readline() == b"HTTP/1.1 429 Too Many Requests\r\n"
        assert b"retry-after: " in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        refused = server.app_state["refused"]
        assert refused["requests"] >= 40
        assert refused["shut_out"] >= 1


async def test_the_connections_of_an_address_are_limited(
    settings: Settings, redis_url: str
) -> None:
    strict = Settings(runtime_dir=settings.runtime_dir, connections_per_address_max=3, **STRICT)
    async with running_server(strict, redis_url) as server:
        open_ones = [await open_request(server, "/health") for _ in range(3)]
        for reader, _ in open_ones:
            await reader.readline()
        # The first three connections were closed; these send nothing at all.
        await until(lambda: not server.server.server_state.connections)
        host, port = server.http.removeprefix("http://").split(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        await until(lambda: len(server.server.server_state.connections) == 3)
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await reader.readline() == b"HTTP/1.1 429 Too Many Requests\r\n"
        for _, each in (*silent, (reader, writer), *open_ones):
            each.close()
        await until(lambda: not server.server.server_state.connections)
        async with talking(server.stream) as talk:
            assert (await talk.ask(action="ping"))["T"] == "pong"


async def test_responses_that_are_never_read_use_little_memory_and_are_dropped(
    settings: Settings, redis_url: str, many: None
) -> None:
    wide = msgspec.structs.replace(settings, handshake_timeout_s=30.0)
    async with running_server(wide, redis_url) as server:
        host, port = server.http.removeprefix("http://").split(":")
        loop = asyncio.get_running_loop()
        deaf = []
        for pipelined in [1, 8] * 6:
            raw = sockets.socket()
            raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
            raw.setblocking(False)
            await loop.sock_connect(raw, (host, int(port)))
            await loop.sock_sendall(
                raw, b"GET /snapshot?symbols=* HTTP/1.1\r\nHost: x\r\n\r\n" * pipelined
            )
            deaf.append(raw)
        connections = server.server.server_state.connections

        def held() -> list[int]:
            return [
                each.transport.get_write_buffer_size()
                for each in connections
                if isinstance(each, FeedHttpProtocol)
            ]

        await until(lambda: len([size for size in held() if size]) == 12)
        assert max(held()) <= 64 * 1024 + PART_BYTES + 1024
        began_s = loop.time()
        await until(lambda: not connections)
        assert loop.time() - began_s < 5
        assert server.app_state["refused"]["stalled"] == 12
        for raw in deaf:
            raw.close()
