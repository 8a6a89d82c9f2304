"""Programs that are too slow: their queue is bounded, and `slow` decides what happens then."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace

from tests.builders import trades
from tests.conftest import RunningServer, running_server, until
from tickcast import Report, Stream, blocking, connect, listen
from tickcast.broker.publisher import FeedPublisher
from tickcast.client.connection import QUEUE_TICKS_MAX
from tickcast.settings import Settings
from tickcast.wire.errors import ConnectionFailed
from tickcast.wire.ticks import Trade

COUNT = 72_000
"""At least a third more than sockets, server and client hold together."""
FRAME_TICKS_MAX = 1000


@pytest.fixture
async def server(settings: Settings, redis_url: str) -> AsyncIterator[RunningServer]:
    small = replace(settings, outbox_max_bytes=64 * 1024)
    async with running_server(small, redis_url) as running:
        for listening in running.server.servers[0].sockets:
            # The kernel would otherwise let a connection's buffers grow to several megabytes.
            with socket.socket(fileno=os.dup(listening.fileno())) as copy:
                copy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        yield running


async def flood(server: RunningServer, publisher: FeedPublisher) -> None:
    """Publish everything, and return when the server has received it."""
    for _ in range(6):
        await publisher.publish(trades(COUNT // 6))
    await publisher.flush()
    counters = server.app_state["engine"].hub.counters
    await until(lambda: counters.ticks_in >= COUNT)


def check(report: Report, policy: str) -> None:
    """Check that every tick is accounted for, and that only what the policy allows was left out."""
    assert report.balanced
    assert report.total("published") == COUNT
    assert (report.total("merged") > 0) == (policy == "conflate")
    assert (report.total("skipped") > 0) == (policy == "skip")
    assert (report.reconnects > 0) == (policy == "close")


@pytest.mark.parametrize(
    ("policy", "as_default"), [("conflate", False), ("skip", True), ("close", True)]
)
async def test_iterating(
    server: RunningServer, publisher: FeedPublisher, policy: str, as_default: bool
) -> None:
    async with connect(server.stream) as stream:
        if as_default:
            await stream.configure(slow=policy)
        await stream.subscribe(trades=["ES"], slow=None if as_default else policy)
        await flood(server, publisher)
        await until(lambda: stream.waiting >= QUEUE_TICKS_MAX)
        assert stream.waiting <= QUEUE_TICKS_MAX + FRAME_TICKS_MAX
        while (await anext(stream)).seq != COUNT:
            assert stream.waiting <= QUEUE_TICKS_MAX + FRAME_TICKS_MAX
        check(stream.report(), policy)


@pytest.mark.parametrize("policy", ["conflate", "skip", "close"])
async def test_callbacks(server: RunningServer, publisher: FeedPublisher, policy: str) -> None:
    published = asyncio.Event()

    async def on_trade(trade: Trade) -> None:
        await published.wait()
        assert stream.waiting <= QUEUE_TICKS_MAX + FRAME_TICKS_MAX
        if trade.seq == COUNT:
            raise EOFError

    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"], slow=policy)
        listening = asyncio.create_task(listen(stream, on_trade=on_trade))
        await flood(server, publisher)
        published.set()
        with pytest.raises(EOFError):
            await listening
        check(stream.report(), policy)


@pytest.mark.parametrize("policy", ["conflate", "skip", "close"])
async def test_without_an_event_loop(
    server: RunningServer, publisher: FeedPublisher, policy: str
) -> None:
    subscribed, published = threading.Event(), threading.Event()

    def program() -> Report:
        with blocking.connect(server.stream) as stream:
            stream.subscribe(trades=["ES"], slow=policy)
            subscribed.set()
            assert published.wait(30)
            for tick in stream:
                assert stream._source.waiting <= QUEUE_TICKS_MAX + FRAME_TICKS_MAX
                if tick.seq == COUNT:
                    break
            return stream.report()

    running = asyncio.create_task(asyncio.to_thread(program))
    await until(subscribed.is_set)
    await flood(server, publisher)
    published.set()
    check(await running, policy)


async def test_requests_without_reading_ticks_fail(
    server: RunningServer, publisher: FeedPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply arrives after ticks, so the client reads them, but only up to a bound."""
    monkeypatch.setattr("tickcast.client.connection.QUEUE_TICKS_MAX", 1000)
    monkeypatch.setattr("tickcast.client.connection.REPLY_TIMEOUT_S", 0.5)

    async def ask_on(stream: Stream) -> None:
        for _ in range(100):
            await publisher.publish(trades(5000))
            await publisher.flush()
            await stream.configure()

    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"])
        with pytest.raises(ConnectionFailed, match="or does so behind 2"):
            await ask_on(stream)
        assert stream.waiting <= 20 * 1000 + FRAME_TICKS_MAX
        assert (await anext(stream)).seq == 1
