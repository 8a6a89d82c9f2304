"""`tickcast.Publisher`, which user programs publish with."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests.tickcast.broker.stores import ES
from tickcast import Bar, Publisher, Quote, Time, Trade
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.wire.errors import InvalidSettings, InvalidTick, StoreUnavailable


async def test_leaving_the_block_publishes_everything(redis: Redis, redis_url: str) -> None:
    async with Publisher(redis=redis_url) as publisher:
        await publisher.publish(Trade("ES", 1640.25, 3, time=Time(1)))
        await publisher.publish(Trade("ES", 1640.5, size) for size in range(9))
        await publisher.publish([Quote("ES", 1640.25, 3, 1640.5, 2)])
    assert (publisher.published, publisher.dropped) == (11, 0)
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
    with pytest.raises(RuntimeError, match="async with"):
        await Publisher().publish([])
    monkeypatch.setenv("TICKCAST_RUNTIME_DIR", str(tmp_path / "none"))
    with pytest.raises(StoreUnavailable, match="no store is running"):
        await Publisher().__aenter__()
    async with Publisher(redis=redis_url) as publisher:
        with pytest.raises(InvalidTick, match="symbol"):
            await publisher.publish(Trade("no symbol", 1, 1))
