"""The publisher for threads, with a store in this process's event loop."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from redis.asyncio import Redis

from tests.builders import T0, trade
from tests.tickcast.broker.stores import own_store
from tickcast.blocking import Publisher
from tickcast.broker import keys
from tickcast.wire.encoding import unpack
from tickcast.wire.errors import InvalidTick, StoreUnavailable
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Time

THREADS = 8
BATCHES = 25


async def stored(redis: Redis, symbol: str) -> list[Any]:
    entries: Any = await redis.xrange(keys.history(StreamKey("live", "trades", symbol)))
    return [tick for _, fields in entries for tick in unpack(fields[b"b"])]


async def test_threads_publish_at_once_each_in_its_order(redis: Redis, redis_url: str) -> None:
    def publish(publisher: Publisher, thread: int) -> None:
        for batch in range(BATCHES):
            publisher.publish(trade(id=100 * batch + n, venue=f"V{thread}") for n in range(10))
            if batch % 10 == 0:
                publisher.flush()
                stats = publisher.stats()
                total = stats.published + stats.waiting + stats.dropped + stats.in_doubt
                assert stats.accepted == total
        publisher.publish(trade(str(thread)))

    def program() -> Publisher:
        with Publisher(redis=redis_url) as publisher, ThreadPoolExecutor(THREADS) as pool:
            for done in [pool.submit(publish, publisher, thread) for thread in range(THREADS)]:
                done.result()
        return publisher

    publisher = await asyncio.to_thread(program)
    assert publisher.stats().published == THREADS * (10 * BATCHES + 1)
    by_venue: dict[str, list[Any]] = {}
    for tick in await stored(redis, "ES"):
        by_venue.setdefault(tick.venue, []).append(tick.id)
    expected = [100 * batch + n for batch in range(BATCHES) for n in range(10)]
    assert by_venue == {f"V{thread}": expected for thread in range(THREADS)}


async def test_mistakes_raise_errors_in_the_thread_that_makes_them(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()

    def program() -> None:
        with pytest.raises(RuntimeError, match="`with` block"):
            Publisher().publish([])
        with Publisher(redis=redis_url) as publisher:
            with pytest.raises(InvalidTick, match="symbol"):
                publisher.publish(trade("no symbol"))
            with pytest.raises(InvalidTick, match="row 0, column 'price'"):
                publisher.publish_frame(
                    pl.DataFrame({"price": [None], "size": 1, "time": 0}), symbol="ES"
                )
        with pytest.raises(RuntimeError, match="`with` block"):
            publisher.flush()
        monkeypatch.setenv("TICKCAST_RUNTIME_DIR", str(tmp_path / "none"))
        with pytest.raises(StoreUnavailable, match="no store is running"), Publisher():
            pass

    await asyncio.to_thread(program)
    assert threading.active_count() <= before + 1


async def test_a_frame_is_published(redis: Redis, redis_url: str) -> None:
    frame = pl.DataFrame({"px": [1.5, 2.5], "size": 1, "time": T0})

    def program() -> int:
        with Publisher(redis=redis_url) as publisher:
            return publisher.publish_frame(frame, columns={"price": "px"}, symbol="ES")

    assert await asyncio.to_thread(program) == 2
    expected = [trade(price=1.5, size=1.0), trade(price=2.5, size=1.0)]
    assert await stored(redis, "ES") == expected


async def test_callbacks_run_in_an_outage(runtime_dir: Path) -> None:
    away, back = threading.Event(), threading.Event()
    async with own_store(runtime_dir / "own") as store:

        def program() -> int:
            with Publisher(
                redis=store.url,
                on_outage=lambda error: away.set(),
                on_recovered=lambda stats: back.set(),
            ) as publisher:
                store.kill()
                publisher.publish(trade())
                assert away.wait(10)
                assert publisher.stats().is_away
                assert back.wait(10)
                return publisher.stats().outages

        running = asyncio.create_task(asyncio.to_thread(program))
        await asyncio.to_thread(away.wait, 10)
        await store.start()
        assert await running == 1


async def test_a_forked_process_must_open_its_own(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program() -> None:
        with Publisher(redis=redis_url) as publisher:
            pid = os.getpid()
            with monkeypatch.context() as forked:
                forked.setattr(os, "getpid", lambda: pid + 1)
                with pytest.raises(RuntimeError, match="open a publisher in each process"):
                    publisher.publish(trade(time=Time(1)))

    await asyncio.to_thread(program)
