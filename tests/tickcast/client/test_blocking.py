"""The client without an event loop, against a server in a separate process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis.asyncio import Redis

from tests.builders import trades
from tests.conftest import RunningServer, until
from tickcast import Gap
from tickcast.blocking import BlockingStream, connect
from tickcast.broker.publisher import FeedPublisher
from tickcast.wire.errors import ConnectionFailed


@pytest.fixture
def elsewhere() -> Iterator[ThreadPoolExecutor]:
    """Run a blocking call in a thread, because the event loop of this one runs the server."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def test_ticks_in_order_without_an_event_loop(
    server: RunningServer, publisher: FeedPublisher, elsewhere: ThreadPoolExecutor
) -> None:
    subscribed = threading.Event()

    def program() -> tuple[list[int | None], bool]:
        with connect(server.stream, encoding="msgpack") as stream:
            assert stream.subscribe(trades=["ES"])["trades"] == ["ES"]
            assert stream.connected
            subscribed.set()
            seqs = [next(stream).seq for _ in range(2500)]
            assert stream.unsubscribe(trades=["ES"])["trades"] == []
            return seqs, stream.report().balanced

    running = asyncio.get_running_loop().run_in_executor(elsewhere, program)
    await asyncio.to_thread(subscribed.wait)
    for _ in range(5):
        await publisher.publish(trades(500))
    assert await running == (list(range(1, 2501)), True)


async def test_a_read_that_times_out_loses_nothing(
    server: RunningServer, publisher: FeedPublisher, elsewhere: ThreadPoolExecutor
) -> None:
    waited = threading.Event()

    def read_all(stream: BlockingStream) -> list[int | None]:
        seqs: list[int | None] = []
        while len(seqs) < 3:
            seqs += [tick.seq for tick in stream.read(timeout_s=0.01)]
            waited.set()
        return seqs

    def program() -> list[int | None]:
        with connect(server.stream) as stream:
            stream.subscribe(trades=["ES"])
            return read_all(stream)

    running = asyncio.get_running_loop().run_in_executor(elsewhere, program)
    await asyncio.to_thread(waited.wait)
    await publisher.publish(trades(3))
    assert await running == [1, 2, 3]


async def test_gaps_are_reported_in_order(
    server: RunningServer, publisher: FeedPublisher, redis: Redis, elsewhere: ThreadPoolExecutor
) -> None:
    seen: list[object] = []
    subscribed = threading.Event()

    def program() -> None:
        with connect(server.stream, on_gap=seen.append) as stream:
            stream.subscribe(trades=["ES"])
            subscribed.set()
            seen.extend(next(stream).seq for _ in range(2))

    running = asyncio.get_running_loop().run_in_executor(elsewhere, program)
    await asyncio.to_thread(subscribed.wait)
    await publisher.publish(trades(1))
    await publisher.flush()
    await until(lambda: seen)
    await redis.flushall()
    await publisher.publish(trades(1))
    await running
    assert seen[0] == 1
    assert isinstance(seen[1], Gap)
    assert seen[1].reason == "epoch"
    assert seen[2] == 1


async def test_errors_are_those_of_the_asynchronous_client(
    server: RunningServer, elsewhere: ThreadPoolExecutor
) -> None:
    def refused() -> None:
        with connect(server.stream) as stream:
            stream.subscribe(trades=["A B"])

    def nobody() -> None:
        with connect("ws://127.0.0.1:1/stream"):
            pass

    loop = asyncio.get_running_loop()
    with pytest.raises(ConnectionFailed, match="400 invalid syntax"):
        await loop.run_in_executor(elsewhere, refused)
    with pytest.raises(ConnectionFailed, match="ws://127"):
        await loop.run_in_executor(elsewhere, nobody)


async def test_leaving_the_block_early_leaves_no_thread(
    server: RunningServer, elsewhere: ThreadPoolExecutor
) -> None:
    before = threading.active_count()

    def program() -> None:
        with connect(server.stream) as stream:
            stream.subscribe(trades=["ES"])
            assert stream.read(timeout_s=0.01) == []
            raise KeyError("something else")

    with pytest.raises(KeyError):
        await asyncio.get_running_loop().run_in_executor(elsewhere, program)
    assert threading.active_count() <= before + 1  # The thread that blocks.
