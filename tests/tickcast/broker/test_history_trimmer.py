from __future__ import annotations

import pytest
from redis.asyncio import Redis

from tests.builders import trades
from tickcast.broker.embedded import HistoryTrimmer
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.wire.ticks import StreamKey


async def test_near_the_limit_long_histories_are_trimmed(
    redis: Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    roomy = Settings(runtime_dir=settings.runtime_dir, history_ticks=1_000_000)
    empty = (await redis.info("memory"))["used_memory"]
    async with FeedPublisher(redis, "live", roomy) as publisher:
        await publisher.publish(trades(200_000, "LONG"))
        await publisher.publish(trades(10, "SHORT"))
    used = (await redis.info("memory"))["used_memory"]
    assert used - empty > 4_000_000

    await HistoryTrimmer(redis, used * 2).trim_if_full()
    assert caplog.text == ""
    bound = round(empty + (used - empty) / 2)
    await HistoryTrimmer(redis, bound).trim_if_full()
    assert "history trimmed" in caplog.text
    assert (await redis.info("memory"))["used_memory"] < 0.85 * bound
    store = Store(redis)
    short = await store.history(StreamKey("live", "trades", "SHORT"), 0)
    assert sum(len(batch.ticks) for batch in short.batches) == 10
    (head,) = await store.heads([StreamKey("live", "trades", "LONG")])
    assert head.seq == 200_000
    tail = await store.history(StreamKey("live", "trades", "LONG"), 199_999)
    assert tail.batches[-1].ticks[-1].seq == 200_000


async def test_publishing_continues_when_nothing_is_left_to_trim(
    redis: Redis, publisher: FeedPublisher, caplog: pytest.LogCaptureFixture
) -> None:
    await publisher.publish(trades(100))
    await publisher.flush()
    await HistoryTrimmer(redis, 1).trim_if_full()
    await publisher.publish(trades(100))
    await publisher.flush()
    assert publisher.published == 200
