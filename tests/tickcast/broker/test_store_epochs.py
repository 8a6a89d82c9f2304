from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.store import Store, new_epoch

MINE = "0063f0000000aa-abcdef"
LOWER = "0063f0000000a9-ffffff"
HIGHER = "0063f0000000aa-abcdf0"


@pytest.mark.parametrize("stored", [None, LOWER, MINE])
async def test_a_new_epoch_is_later_than_any_stored_one(redis: Redis, stored: str | None) -> None:
    if stored is not None:
        await redis.set(keys.epoch("live"), stored)
    epoch = await Store(redis).begin_epoch("live", MINE)
    assert epoch > MINE
    assert await Store(redis).epoch("live") == epoch


async def test_a_later_stored_epoch_is_adopted(redis: Redis) -> None:
    await redis.set(keys.epoch("live"), HIGHER, ex=100)
    assert await Store(redis).begin_epoch("live", MINE) == HIGHER
    assert await Store(redis).epoch("live") == HIGHER
    assert await redis.ttl(keys.epoch("live")) == -1


async def test_concurrent_new_epochs_agree(redis: Redis) -> None:
    store = Store(redis)
    first = await store.epoch("live")
    begun = await asyncio.gather(*(store.begin_epoch("live", first) for _ in range(20)))
    assert len({*begun}) == 1
    assert begun[0] > first


async def test_a_clock_that_is_behind_does_not_matter(redis: Redis) -> None:
    ahead = new_epoch("7" * 14 + "-abcdef")
    await redis.set(keys.epoch("live"), ahead)
    assert await Store(redis).begin_epoch("live", ahead) > ahead


async def test_concurrent_first_readers_get_the_same_epoch(redis: Redis) -> None:
    store = Store(redis)
    asked = await asyncio.gather(*(store.epoch("live", keep=number == 7) for number in range(20)))
    assert len({*asked}) == 1
    assert await redis.ttl(keys.epoch("live")) == -1
