from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.builders import quote, trade, trades
from tickcast.broker import keys
from tickcast.broker.publish_buffer import BATCH_TICKS_MAX, WAITING_TICKS_MAX
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store, new_epoch
from tickcast.settings import Settings
from tickcast.wire.errors import InvalidTick
from tickcast.wire.sequence import Batch
from tickcast.wire.ticks import StreamKey

ES = StreamKey("live", "trades", "ES")


async def history_of(store: Store, key: StreamKey = ES) -> list[int]:
    history = await store.history(key, 0)
    assert history.complete
    return [tick.seq or 0 for batch in history.batches for tick in batch.ticks]


async def test_ticks_are_numbered_stored_and_published(
    publisher: FeedPublisher, redis: Redis
) -> None:
    listener = redis.pubsub()
    await listener.subscribe(keys.ticks(ES))
    await listener.get_message(timeout=5)
    await publisher.publish(trades(3))
    await publisher.publish([quote()])
    await publisher.flush()
    message = await listener.get_message(timeout=5)
    await listener.aclose()  # type: ignore[no-untyped-call]
    assert message is not None
    batch = Batch.parse(message["data"])
    store = Store(redis)
    assert [tick.seq for tick in batch.ticks] == [1, 2, 3]
    assert batch.epoch == await store.epoch("live")
    assert batch.published_us > 1_700_000_000_000_000
    assert await history_of(store) == [1, 2, 3]
    (head, never) = await store.heads([ES, StreamKey("live", "trades", "NONE")])
    assert head.seq == 3
    assert head.latest == batch.ticks[-1]
    assert (never.epoch, never.seq, never.latest) == ("", 0, None)
    assert await store.streams("live") == {ES, StreamKey("live", "quotes", "ES")}
    assert publisher.published == 4


async def test_two_publishers_share_one_numbering(redis: Redis, settings: Settings) -> None:
    async with (
        FeedPublisher(redis, "live", settings) as one,
        FeedPublisher(redis, "live", settings) as two,
    ):
        for _ in range(20):
            await asyncio.gather(one.publish(trades(3)), two.publish(trades(2)))
    assert await history_of(Store(redis)) == list(range(1, 101))


async def test_under_load_batches_form_and_order_is_kept(
    publisher: FeedPublisher, redis: Redis
) -> None:
    count = 3 * BATCH_TICKS_MAX
    for tick in trades(count):
        await publisher.publish([tick])
    await publisher.flush()
    history = await Store(redis).history(ES, 0)
    assert [tick.seq for batch in history.batches for tick in batch.ticks] == [*range(1, count + 1)]
    assert [tick.time for batch in history.batches for tick in batch.ticks] == [
        tick.time for tick in trades(count)
    ]
    assert len(history.batches) < count / 10


async def test_publish_waits_while_too_many_ticks_wait(publisher: FeedPublisher) -> None:
    await publisher.publish(trades(2 * WAITING_TICKS_MAX))
    assert publisher._buffer.count < WAITING_TICKS_MAX


async def test_history_is_bounded_in_ticks(redis: Redis, settings: Settings) -> None:
    bounded = Settings(runtime_dir=settings.runtime_dir, history_ticks=10)
    async with FeedPublisher(redis, "live", bounded) as publisher:
        for tick in trades(35):
            await publisher.publish([tick])
            await publisher.flush()
        assert await history_of(Store(redis)) == list(range(26, 36))
        assert (await Store(redis).history(ES, 30)).batches[0].first_seq == 31


async def test_history_is_bounded_in_age(redis: Redis, settings: Settings) -> None:
    bounded = Settings(runtime_dir=settings.runtime_dir, history_age_s=1)
    async with FeedPublisher(redis, "live", bounded) as publisher:
        await publisher.publish(trades(3))
        await publisher.flush()
        assert 0 < await redis.pttl(keys.history(ES)) <= 1000
        # Pretend that these were published two seconds ago.
        entries: Any = await redis.xrange(keys.history(ES))
        ((entry, fields),) = entries
        seq, _, ms = entry.decode().partition("-")
        await redis.delete(keys.history(ES))
        await redis.xadd(keys.history(ES), fields, id=f"{seq}-{int(ms) - 2000}")
        await publisher.publish(trades(1))
        await publisher.flush()
        assert await history_of(Store(redis)) == [4]
        assert (await Store(redis).heads([ES]))[0].seq == 4


async def test_history_is_read_in_pages(publisher: FeedPublisher, redis: Redis) -> None:
    for tick in trades(2500):
        await publisher.publish([tick])
        await publisher.flush()
    store, seen = Store(redis), list[int]()
    while True:
        page = await store.history(ES, seen[-1] if seen else 0)
        seen += [tick.seq or 0 for batch in page.batches for tick in batch.ticks]
        if page.complete:
            break
    assert seen == list(range(1, 2501))


async def test_publish_rejects_invalid_ticks(publisher: FeedPublisher) -> None:
    with pytest.raises(InvalidTick, match="symbol"):
        await publisher.publish([trade("good"), trade("not good")])
    await publisher.flush()
    assert publisher.published == 1


async def test_lost_data_begins_a_new_epoch(publisher: FeedPublisher, redis: Redis) -> None:
    store = Store(redis)
    await publisher.publish(trades(3))
    await publisher.flush()
    before = await store.epoch("live")
    await redis.flushall()
    await publisher.publish(trades(2))
    await publisher.flush()
    (head,) = await store.heads([ES])
    assert head.epoch == await store.epoch("live") > before
    assert head.seq == 2
    assert ES in await store.streams("live")


async def test_one_lost_stream_begins_a_new_epoch(publisher: FeedPublisher, redis: Redis) -> None:
    await publisher.publish(trades(3))
    await publisher.flush()
    before = await Store(redis).epoch("live")
    await redis.delete(keys.meta(ES), keys.history(ES))
    await publisher.publish(trades(1))
    await publisher.flush()
    assert (await Store(redis).heads([ES]))[0].epoch > before


async def test_a_publisher_with_an_old_epoch_adopts_the_new_one(
    publisher: FeedPublisher, redis: Redis, settings: Settings
) -> None:
    store = Store(redis)
    await publisher.publish(trades(3))
    await publisher.flush()
    later = await store.begin_epoch("live", await store.epoch("live"))
    async with FeedPublisher(redis, "live", settings) as other:
        await other.publish(trades(1))
    await publisher.publish(trades(1))
    await publisher.flush()
    (head,) = await store.heads([ES])
    assert (head.epoch, head.seq) == (later, 2)


async def test_scripts_may_be_flushed(publisher: FeedPublisher, redis: Redis) -> None:
    await publisher.publish(trades(1))
    await publisher.flush()
    await redis.script_flush()
    await publisher.publish(trades(1))
    await publisher.flush()
    assert await history_of(Store(redis)) == [1, 2]


async def test_an_unused_epoch_expires(redis: Redis) -> None:
    store = Store(redis)
    epoch = await store.epoch("made-up")
    assert 0 < await redis.ttl(keys.epoch("made-up")) <= 86_400
    assert await store.epoch("made-up", keep=True) == epoch
    assert await redis.ttl(keys.epoch("made-up")) == -1


def test_new_epochs_are_greater() -> None:
    first = new_epoch()
    assert new_epoch(first) > first
    assert new_epoch("7fffffffffffff-abcdef") > "7fffffffffffff-abcdef"
