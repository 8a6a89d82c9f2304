"""Bars through a real store: stopped, started and cut off, and compared with the trades."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from producers.bars.bar_maker import BarMaker, channel_of
from producers.bars.builder import BarBuilder
from producers.recordings.csv import CsvRecording
from tests.builders import trade
from tests.conftest import ES_TRADES, RunningServer, until
from tests.talk import talking
from tests.tickcast.broker.stores import own_store
from tickcast.broker.client import make_client
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import BrokerUnavailable, LeaseHeld
from tickcast.wire.ticks import DEFAULT_FEED, Bar, StreamKey, Timeframe, Trade
from tickcast.wire.times import NS_PER_SECOND, Time

NOON = Time.parse("2026-01-05T12:00:00Z")


def at(seconds: float, price: float = 10.0, size: float = 1.0, symbol: str = "ES") -> Trade:
    return trade(symbol, price, size, time=Time(NOON + round(seconds * NS_PER_SECOND)))


@asynccontextmanager
async def making(
    redis: Redis,
    settings: Settings,
    *timeframes: Timeframe,
    patterns: Sequence[str] = ("*",),
    fill: bool = False,
) -> AsyncIterator[asyncio.Task[None]]:
    bars = BarBuilder(timeframes or ("1s",), settings.bars_lateness_s, fill)
    async with FeedPublisher(redis, DEFAULT_FEED, settings, waits=True) as publisher:
        maker = BarMaker(redis, DEFAULT_FEED, settings, bars, patterns, publisher)
        task = asyncio.create_task(maker.run_forever())
        try:
            yield task
        finally:
            await cancel_and_wait([task])
            await publisher.flush()


async def bars_in(
    redis: Redis, count: int, symbol: str = "ES", timeframe: Timeframe = "1s"
) -> list[Bar]:
    """Return all bars of a stream once there are this many."""
    store, key = Store(redis), StreamKey(DEFAULT_FEED, channel_of(timeframe), symbol)
    async with asyncio.timeout(20):
        while (await store.heads([key]))[0].seq < count:
            await asyncio.sleep(0.01)
    found: list[Bar] = []
    after, complete = 0, False
    while not complete:
        history = await store.history(key, after)
        found += [tick for batch in history.batches for tick in batch.ticks]  # type: ignore[misc]
        after, complete = history.through, history.complete
    return found


def starts(bars: Sequence[Bar]) -> list[float]:
    return [(bar.time - NOON) / NS_PER_SECOND for bar in bars]


async def test_bars_are_published_and_go_on_after_a_restart(
    redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    await publisher.publish([at(0), at(1, price=5)])
    async with making(redis, settings, "1s", "5s"):
        await publisher.publish([at(1.5, price=7), at(4)])
        assert starts(await bars_in(redis, 2)) == [0, 1]
    await publisher.publish([at(4.5, symbol="NQ"), at(4.5, price=3), at(8)])
    async with making(redis, settings, "1s", "5s"):
        found = await bars_in(redis, 3)
        assert starts(found) == [0, 1, 4]
        assert [(bar.open, bar.close, bar.trade_count) for bar in found[1:]] == [
            (5, 7, 2),
            (10, 3, 2),
        ]
        (five,) = await bars_in(redis, 1, timeframe="5s")
        assert (five.time, five.trade_count, five.low) == (NOON, 5, 3)
        await publisher.publish([at(12, symbol="NQ")])
        assert starts(await bars_in(redis, 1, "NQ")) == [4]
    assert [bar.seq for bar in await bars_in(redis, 3)] == [1, 2, 3]


async def test_only_requested_symbols(
    redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    async with making(redis, settings, patterns=["N*"]):
        await publisher.publish([at(0), at(9), at(0, symbol="NQ"), at(9, symbol="NQ")])
        assert starts(await bars_in(redis, 1, "NQ")) == [0]
    assert StreamKey(DEFAULT_FEED, "bars:1s", "ES") not in await Store(redis).streams(DEFAULT_FEED)


async def test_a_live_feed_that_falls_quiet_has_its_bars(
    redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    settings = msgspec.structs.replace(settings, bars_lateness_s=0.2)
    now = Time.now()
    async with making(redis, settings, fill=True):
        await publisher.publish([trade("ES", 7, time=now)])
        first, second, *_ = await bars_in(redis, 2)
    assert first.time == now - now % NS_PER_SECOND
    assert (second.time, second.close) == (first.time + NS_PER_SECOND, 7)
    assert (first.trade_count, second.trade_count) == (1, 0)


async def test_a_bar_whose_trades_were_trimmed_is_not_sent(
    redis: Redis, settings: Settings
) -> None:
    settings = msgspec.structs.replace(settings, history_ticks=3)
    async with FeedPublisher(redis, DEFAULT_FEED, settings) as publisher:
        for seconds in (0, 3, 8, 12, 15):
            await publisher.publish([at(seconds)])
            await publisher.flush()
        async with making(redis, settings):
            assert starts(await bars_in(redis, 1)) == [12]


async def test_of_two_makers_one_is_refused(
    redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    await publisher.publish([at(0), at(4)])
    async with making(redis, settings, "1s", "1m"):
        assert starts(await bars_in(redis, 1)) == [0]
        async with making(redis, settings, "5s"), making(redis, settings, "5s", "1m") as second:
            await asyncio.wait([second], timeout=20)
            with pytest.raises(LeaseHeld, match="another program makes bars:5s, bars of feed"):
                second.result()
    # A maker that ends releases the claim at once.
    async with asyncio.timeout(4), making(redis, settings, "1s"):
        await publisher.publish([at(8)])
        assert starts(await bars_in(redis, 2)) == [0, 4]


async def test_connections_that_are_cut_cost_no_trade(
    redis_url: str, redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    async with make_client(redis_url) as client, making(client, settings):
        await publisher.publish([at(0), at(4)])
        await bars_in(redis, 1)
        admin: Any = redis
        for number in range(3):
            await admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            for tick in (5, 6, 7, 8):
                await publisher.publish([at(4 * number + tick + n / 50) for n in range(50)])
        await publisher.publish([at(100)])
        found = await bars_in(redis, 1 + 12 + 1)
    assert [bar.trade_count for bar in found] == [1, 1, *[50] * 12]


@pytest.mark.parametrize("keeps", [True, False], ids=["with its data", "without"])
async def test_each_bar_is_published_once_across_a_store_restart(
    runtime_dir: Path, settings: Settings, keeps: bool
) -> None:
    async with (
        own_store(runtime_dir) as store,
        make_client(store.url) as client,
        make_client(store.url) as source,
        making(client, settings),
        FeedPublisher(source, DEFAULT_FEED, settings, waits=True) as publisher,
    ):
        await publisher.publish([at(0), at(1), at(5)])
        assert starts(await bars_in(client, 2)) == [0, 1]
        store.kill()
        await publisher.publish([at(6), at(6.5), at(10)])
        await until(lambda: publisher.is_away)
        if not keeps:
            store.lose_data()
        await store.start()
        await publisher.publish([at(13), at(16), at(19)])
        await publisher.flush()
        # A bar that was open when the store lost it may lack trades, and so may those of the next 2
        # s.
        expected = [0, 1, 5, 6, 10, 13, 16] if keeps else [10, 13, 16]
        async with asyncio.timeout(20):
            while (found := await all_bars(client))[-1:] != [16]:
                await asyncio.sleep(0.05)
        assert found == expected


async def all_bars(client: Redis) -> list[float]:
    """Return the start times of the bars in the store, or nothing if it does not answer."""
    try:
        return starts(await bars_in(client, 0))
    except BrokerUnavailable:
        return []


@pytest.mark.skipif(
    not ES_TRADES.exists(), reason="the recorded trades are not beside this checkout"
)
async def test_real_trades_are_bars_at_a_client_though_the_maker_is_stopped_on_the_way(
    server: RunningServer, redis: Redis, settings: Settings, publisher: FeedPublisher
) -> None:
    ticks = [
        each for each in islice(CsvRecording(ES_TRADES, "ES"), 9_000) if isinstance(each, Trade)
    ]
    async with talking(server.stream) as talk:
        await talk.ask(action="subscribe", **{"bars": ["ES"], "bars:1s": ["ES"]})
        whole = BarBuilder(("1s", "1m"), settings.bars_lateness_s, fill=False)
        whole.open("ES", {}, ())
        expected: list[Bar] = []
        for place in range(0, len(ticks), 3_000):
            expected += whole.add_trades("ES", ticks[place : place + 3_000], Time.now(), Time.now())
            seconds = sum(bar.timeframe == "1s" for bar in expected)
            async with making(redis, settings, "1s", "1m"):
                await publisher.publish(ticks[place : place + 3_000])
                # Stopped with some bars sent and some not: tests/cli/test_bars.py does so to a
                # process.
                await bars_in(redis, seconds)
        async with making(redis, settings, "1s", "1m"):
            got = await talk.ticks(len(expected), timeout_s=30)
    for timeframe in ("1s", "1m"):
        ours = [tick for tick in got if tick.get("tf", "1m") == timeframe]
        assert [tick["seq"] for tick in ours] == list(range(1, len(ours) + 1))
        assert [wire(tick) for tick in ours] == [
            msgspec.to_builtins(bar, enc_hook=Time.rfc3339)
            for bar in expected
            if bar.timeframe == timeframe
        ]


def wire(tick: dict[str, Any]) -> dict[str, Any]:
    """Return a tick as received, without its number."""
    return {name: value for name, value in tick.items() if name != "seq"}
