"""`tickcast.Publisher`, which user programs publish with."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.builders import quote, trades
from tests.conftest import until
from tests.tickcast.broker.stores import ES, numbered, own_store
from tickcast import Bar, Publisher, Quote, Time, Trade
from tickcast.broker.publish_buffer import TICK_BYTES, WAITING_TICKS_MAX
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.wire.errors import InvalidSettings, InvalidTick, StoreUnavailable


async def test_leaving_the_block_publishes_everything(redis: Redis, redis_url: str) -> None:
    async with Publisher(redis=redis_url) as publisher:
        await publisher.publish(Trade("ES", 1640.25, 3, time=Time(1)))
        await publisher.publish(Trade("ES", 1640.5, size) for size in range(9))
        await publisher.publish([Quote("ES", 1640.25, 3, 1640.5, 2)])
    stats = publisher.stats()
    assert (stats.accepted, stats.published, stats.waiting, stats.dropped) == (11, 11, 0, 0)
    (head,) = await Store(redis).heads([ES])
    assert head.seq == 10


async def test_it_finds_the_embedded_store(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKCAST_RUNTIME_DIR", str(settings.runtime_dir))
    async with Publisher(feed="tea") as publisher:
        bar = Bar(
            symbol="TEA", open=4, high=5, low=4, close=5, volume=9, trade_count=2, vwap=4.5,
            time=Time(0),
        )  # fmt: skip
        await publisher.publish(bar)
        await publisher.flush()
        assert publisher.published == 1
    assert {key.channel for key in await Store(redis).streams("tea")} == {"bars"}


async def test_mistakes_raise_errors(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidSettings, match="feed 'Live' is not"):
        Publisher(feed="Live")
    with pytest.raises(InvalidSettings, match="on_full 'block' is not drop or wait"):
        Publisher(on_full="block")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="async with"):
        await Publisher().publish([])
    monkeypatch.setenv("TICKCAST_RUNTIME_DIR", str(tmp_path / "none"))
    with pytest.raises(StoreUnavailable, match="no store is running"):
        await Publisher().__aenter__()
    async with Publisher(redis=redis_url) as publisher:
        with pytest.raises(InvalidTick, match=r"^Trade\.symbol 'no symbol' is not 1 to 32 char"):
            await publisher.publish(Trade("no symbol", 1, 1))
        with pytest.raises(InvalidTick, match=r"^Quote\.bid_size must be a finite number of at le"):
            await publisher.publish([Quote("A", 1, -1, 1, 1)])
        changed = Trade("A", 1, 1)
        changed.side = "buy"  # type: ignore[assignment]
        with pytest.raises(InvalidTick, match=r"^Trade\.side 'buy' is not one of B, S"):
            await publisher.publish(changed)


async def test_stats_balance_while_redis_is_away(runtime_dir: Path) -> None:
    seen: list[object] = []
    async with own_store(runtime_dir / "own") as store:
        publisher = Publisher(
            redis=store.url,
            on_outage=lambda error: seen.append(str(error)),
            on_recovered=lambda stats: seen.append((stats.is_away, stats.waiting)),
        )
        async with publisher:
            await publisher.publish(numbered(1, 2))
            await publisher.flush()
            store.kill()
            await publisher.publish(numbered(3))
            await until(lambda: publisher.stats().is_away)
            await publisher.publish(numbered(4, 5))
            away = publisher.stats()
            await store.start()
            await publisher.flush()
    assert (away.accepted, away.published, away.waiting, away.outages) == (5, 2, 3, 1)
    stats = publisher.stats()
    assert (stats.accepted, stats.published, stats.waiting, stats.dropped) == (5, 5, 0, 0)
    assert (stats.is_away, stats.outages, stats.in_doubt) == (False, 1, 0)
    reason, recovered = seen
    assert "Redis" in str(reason)
    assert recovered in ((False, 2), (False, 3))  # Tick 3 was the attempt that succeeded.


async def test_dropped_ticks_are_counted_by_reason(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TICKCAST_OUTAGE_BUFFER_BYTES", "65536")
    room = 65536 // TICK_BYTES
    async with own_store(runtime_dir / "own") as store:
        publisher = Publisher(redis=store.url)
        with suppress(KeyError):
            async with publisher:
                store.kill()
                await publisher.publish(numbered(1))
                await until(lambda: publisher.stats().is_away)
                await publisher.publish(trades(room))
                await publisher.publish(trades(10))
                raise KeyError("a mistake of the program")
    stats = publisher.stats()
    assert stats.dropped_by_reason == {"too_old": 0, "no_room": 10, "closed": room + 1}
    assert stats.dropped == stats.accepted == room + 11
    assert (stats.published, stats.waiting, stats.in_doubt) == (0, 0, 0)


async def test_publish_can_wait_instead_of_dropping(runtime_dir: Path) -> None:
    async with own_store(runtime_dir / "own") as store:
        async with Publisher(redis=store.url, on_full="wait") as publisher:
            store.kill()
            await publisher.publish(numbered(1))
            await until(lambda: publisher.stats().is_away)
            waiting = asyncio.create_task(publisher.publish(trades(WAITING_TICKS_MAX, "NQ")))
            done, _ = await asyncio.wait([waiting], timeout=0.05)
            assert not done
            await store.start()
            await waiting
        stats = publisher.stats()
    assert (stats.published, stats.dropped) == (WAITING_TICKS_MAX + 1, 0)


async def test_a_mistake_in_a_callback_is_logged(
    runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with own_store(runtime_dir / "own") as store:
        async with Publisher(redis=store.url, on_outage=lambda error: 1 / 0) as publisher:
            store.kill()
            await publisher.publish(numbered(1))
            await until(lambda: publisher.stats().is_away)
            await store.start()
        assert publisher.published == 1
    assert "a callback of the publisher has failed" in caplog.messages


async def test_two_publishers_of_one_stream_notice_each_other(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Publisher(redis=redis_url) as one, Publisher(redis=redis_url) as two:
        for _ in range(3):
            for publisher, own in ((one, "ONE"), (two, "TWO")):
                await publisher.publish([*trades(2, "ES"), *trades(2, own), quote()])
                await publisher.flush()
        assert one.stats().shared_streams == two.stats().shared_streams
        assert set(one.stats().shared_streams) == {"trades/ES", "quotes/ES"}
    lines = [line for line in caplog.messages if "another program" in line]
    assert lines == 2 * ["another program publishes the same streams: trades/ES, quotes/ES"]


async def test_a_publisher_alone_never_sees_another(runtime_dir: Path) -> None:
    async with own_store(runtime_dir / "own") as store:
        async with Publisher(redis=store.url) as publisher:
            for number in range(1, 30):
                await publisher.publish(numbered(*range(10 * number, 10 * number + 10)))
                if number % 10 == 0:
                    store.kill()
                    await until(lambda: publisher.stats().is_away)
                    await store.start()
        assert publisher.stats().shared_streams == ()
        assert publisher.published == 290
        # A program that is started again is not another one.
        async with Publisher(redis=store.url) as publisher:
            await publisher.publish(numbered(1))
            await publisher.publish(numbered(2))
        assert publisher.stats().shared_streams == ()
