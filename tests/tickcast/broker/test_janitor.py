from __future__ import annotations

import pytest
from redis.asyncio import Redis

from tests.builders import trades
from tickcast.broker.embedded import trim_if_full
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.wire.ticks import StreamKey


async def test_near_the_bound_long_histories_are_trimmed(
    redis: Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    roomy = Settings(runtime_dir=settings.runtime_dir, history_ticks=1_000_000)
    empty = (await redis.info("memory"))["used_memory"]
    async with FeedPublisher(redis, "live", roomy) as publisher:
        await publisher.publish(trades(200_000, "LONG"))
        await publisher.publish(trades(10, "SHORT"))
    used = (await redis.info("memory"))["used_memory"]
    assert used - empty > 4_000_000

    await trim_if_full(redis, used * 2)
    assert caplog.text == ""
    bound = round(empty + (used - empty) / 2)
    await trim_if_full(redis, bound)
    assert "history trimmed" in caplog.text
    assert (await redis.info("memory"))["used_memory"] < 0.85 * bound
    store = Store(redis)
    short = await store.history(StreamKey("live", "trades", "SHORT"), 0)
    assert sum(len(batch.ticks) for batch in short.batches) == 10
    (head,) = await store.heads([StreamKey("live", "trades", "LONG")])
    assert head.seq == 200_000
    tail = await store.history(StreamKey("live", "trades", "LONG"), 199_999)
    assert tail.batches[-1].ticks[-1].seq == 200_000


async def test_publishing_goes_on_when_nothing_is_left_to_trim(
    redis: Redis, publisher: FeedPublisher, caplog: pytest.LogCaptureFixture
) -> None:
    await publisher.publish(trades(100))
    await publisher.drain()
    await trim_if_full(redis, 1)
    await publisher.publish(trades(100))
    await publisher.drain()
    assert publisher.published == 200
