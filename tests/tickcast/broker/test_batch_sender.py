"""How the publish script and its sender handle repetitions and lost numbers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.builders import T0, trade, trades
from tickcast.broker import keys
from tickcast.broker.batch_sender import BatchSender
from tickcast.broker.store import Store, new_epoch
from tickcast.settings import Settings
from tickcast.wire.ticks import StreamKey, Trade
from tickcast.wire.times import Time

ES = StreamKey("live", "trades", "ES")


@pytest.fixture
async def sender(redis: Redis, settings: Settings) -> AsyncIterator[BatchSender]:
    async for each in opened(redis, settings):
        yield each


async def opened(redis: Redis, settings: Settings) -> AsyncIterator[BatchSender]:
    sender = BatchSender(redis, "live", settings)
    await sender.open()
    yield sender
    await sender.disconnect()


async def send(sender: BatchSender, ticks: list[Trade]) -> None:
    await sender.send(sender.prepare({ES: ticks}))


async def position(redis: Redis) -> tuple[str, int]:
    (head,) = await Store(redis).heads([ES])
    return head.epoch, head.seq


async def seqs(redis: Redis) -> list[int]:
    entries: Any = await redis.xrange(keys.history(ES))
    return [int(entry.partition(b"-")[0]) for entry, _ in entries]


async def marks(redis: Redis) -> dict[str, str]:
    fields: Any = await redis.hgetall(keys.meta(ES))
    return {name.decode(): mark.decode() for name, mark in fields.items() if name.startswith(b"p:")}


async def test_a_batch_sent_again_is_not_published_again(sender: BatchSender, redis: Redis) -> None:
    listener = redis.pubsub()
    await listener.subscribe(keys.ticks(ES))
    await listener.get_message(timeout=5)
    first, second = (sender.prepare({ES: trades(3)}) for _ in range(2))
    for batches in (first, first, second, first, second):
        await sender.send(dict(batches))
    assert await seqs(redis) == [3, 6]
    await send(sender, trades(1))
    assert await seqs(redis) == [3, 6, 7]
    messages = [await listener.get_message(timeout=0.2) for _ in range(4)]
    assert [message is None for message in messages] == [False, False, False, True]
    await listener.aclose()  # type: ignore[no-untyped-call]


async def test_a_batch_sent_again_in_a_later_epoch_is_not_published_again(
    sender: BatchSender, redis: Redis, settings: Settings
) -> None:
    batches = sender.prepare({ES: trades(3)})
    await sender.send(dict(batches))
    later = await Store(redis).begin_epoch("live", await Store(redis).epoch("live"))
    async for other in opened(redis, settings):
        await send(other, trades(1))
    await sender.send(dict(batches))
    assert await position(redis) == (later, 1)
    await send(sender, trades(1))
    assert await position(redis) == (later, 2)


async def test_a_sender_may_be_behind_another(
    sender: BatchSender, redis: Redis, settings: Settings
) -> None:
    batches = sender.prepare({ES: trades(3)})
    async for other in opened(redis, settings):
        for _ in range(5):
            await send(other, trades(1))
    await sender.send(batches)
    assert await seqs(redis) == [1, 2, 3, 4, 5, 8]


async def test_the_latest_64_publishers_are_remembered(sender: BatchSender, redis: Redis) -> None:
    await send(sender, trades(1))
    ((mine, mark),) = (await marks(redis)).items()
    now = int(mark.split(" ")[1])
    others = {f"p:{number}": f"000000000001 {now + number}" for number in range(62)}
    others["p:old"] = f"00000000ffff {now - 1}"
    await redis.hset(keys.meta(ES), mapping=dict[Any, Any](others))
    for _ in range(2):
        await send(sender, trades(1))
    assert await marks(redis) == {**others, mine: (await marks(redis))[mine]}
    await redis.hdel(keys.meta(ES), mine)
    await send(sender, trades(1))
    assert (await marks(redis)).keys() == {*others, mine}
    await redis.hdel(keys.meta(ES), mine)
    await redis.hset(keys.meta(ES), "p:one more", f"000000000001 {now + 100}")
    await send(sender, trades(1))
    assert (await marks(redis)).keys() == {*others, "p:one more", mine} - {"p:old"}


async def test_numbers_lost_by_a_restored_copy_are_not_assigned_again(
    sender: BatchSender, redis: Redis
) -> None:
    await send(sender, trades(3))
    before, _ = await position(redis)
    copy = await redis.dump(keys.meta(ES))
    await send(sender, trades(2))
    assert copy is not None
    await redis.restore(keys.meta(ES), 0, copy, replace=True)
    await send(sender, trades(1))
    epoch, seq = await position(redis)
    assert epoch == await Store(redis).epoch("live") > before
    assert seq == 1
    assert await seqs(redis) == [1]


async def test_numbers_of_an_epoch_lost_by_a_restored_copy_are_not_assigned_again(
    sender: BatchSender, redis: Redis
) -> None:
    await send(sender, trades(3))
    copy = await redis.dump(keys.meta(ES))
    later = await Store(redis).begin_epoch("live", await Store(redis).epoch("live"))
    await redis.hset(keys.meta(ES), "epoch", new_epoch(later))
    await send(sender, trades(1))
    given = await position(redis)
    assert copy is not None
    await redis.restore(keys.meta(ES), 0, copy, replace=True)
    await send(sender, trades(1))
    assert await position(redis) > given


async def test_a_listed_stream_may_be_in_an_earlier_epoch(
    sender: BatchSender, redis: Redis, settings: Settings
) -> None:
    await send(sender, trades(3))
    later = await Store(redis).begin_epoch("live", await Store(redis).epoch("live"))
    async for other in opened(redis, settings):
        await send(other, trades(1))
    assert await position(redis) == (later, 1)


@pytest.mark.parametrize("made_by_a_late_clock", [False, True])
async def test_a_stream_may_be_ahead_of_the_feed(
    sender: BatchSender, redis: Redis, made_by_a_late_clock: bool
) -> None:
    await send(sender, trades(3))
    ahead = "7" * 14 + "-abcdef"
    await redis.hset(keys.meta(ES), "epoch", ahead)
    await redis.delete(keys.epoch("live"))
    if made_by_a_late_clock:
        await redis.set(keys.epoch("live"), "0" * 14 + "-abcdef")
    await send(sender, trades(1))
    epoch, seq = await position(redis)
    assert epoch == await Store(redis).epoch("live") > ahead
    assert seq == 1


async def test_many_lost_streams_begin_one_epoch(sender: BatchSender, redis: Redis) -> None:
    streams = [StreamKey("live", "trades", f"S{number}") for number in range(150)]
    await sender.send(sender.prepare({key: trades(1, key.symbol) for key in streams}))
    before = await Store(redis).epoch("live")
    await redis.flushall()
    await redis.set(keys.epoch("live"), before)
    await sender.send(sender.prepare({key: trades(1, key.symbol) for key in streams}))
    heads = await Store(redis).heads(streams)
    assert {head.epoch for head in heads} == {await Store(redis).epoch("live")}
    assert {head.seq for head in heads} == {1}
    assert await Store(redis).streams("live") == {*streams}
    assert sender.published == 300


async def test_the_greatest_time_so_far_is_kept(sender: BatchSender, redis: Redis) -> None:
    for times in ([5, 3], [4], [7, 9, 8], [-(2**63)]):
        await send(sender, [trade(time=Time(each)) for each in times])
    assert await greatest_times(redis) == ["", *map(sortable, (5, 5, 9))]
    assert await redis.hget(keys.meta(ES), "max") == sortable(9).encode()
    await Store(redis).begin_epoch("live", await Store(redis).epoch("live"))
    await redis.delete(keys.meta(ES))
    await send(sender, [trade(time=Time(2))])
    await send(sender, [trade(time=Time(1))])
    assert await greatest_times(redis) == ["", sortable(2)]
    assert await redis.hget(keys.meta(ES), "max") == sortable(2).encode()


async def test_the_greatest_time_starts_over_with_an_epoch(
    sender: BatchSender, redis: Redis, settings: Settings
) -> None:
    await send(sender, [trade(time=T0)])
    await Store(redis).begin_epoch("live", await Store(redis).epoch("live"))
    async for other in opened(redis, settings):
        await send(other, [trade(time=Time(2))])
    assert await greatest_times(redis) == [""]
    assert await redis.hget(keys.meta(ES), "max") == sortable(2).encode()


async def greatest_times(redis: Redis) -> list[str]:
    entries: Any = await redis.xrange(keys.history(ES))
    return [fields[b"m"].decode() for _, fields in entries]


def sortable(ns: int) -> str:
    return keys.sortable(Time(ns))


def test_sortable_times_sort_as_text() -> None:
    times = [-(2**63), -1, 0, 1, T0, T0 + 1, 2**63 - 1]
    texts = [sortable(each) for each in times]
    assert texts == sorted(texts)
    assert {len(text) for text in texts} == {16}
    assert texts[0] == "0" * 16
    assert texts[-1] == "f" * 16


async def test_a_batch_whose_answer_was_lost_is_not_another_programs(sender: BatchSender) -> None:
    await send(sender, trades(3))
    batches = sender.prepare({ES: trades(2)})
    await sender.send(dict(batches))
    # As after a lost answer: sent before, and not known to be published.
    sender._last_seqs[ES] = 3
    batches[ES].is_in_doubt = True
    await sender.send(batches)
    await send(sender, trades(1))
    assert sender.shared_streams == {}
    assert sender._last_seqs[ES] == 6


async def test_numbers_between_two_batches_are_another_programs(
    sender: BatchSender, redis: Redis, settings: Settings
) -> None:
    async for other in opened(redis, settings):
        for _ in range(2):
            await send(sender, trades(3))
            await send(other, trades(1))
        assert list(sender.shared_streams) == list(other.shared_streams) == [ES]
