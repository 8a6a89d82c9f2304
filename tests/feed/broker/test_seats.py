from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from feed.broker.seats import Seats
from feed.tasks import end_tasks
from tests.conftest import until

ONE = {"hall": 2}


@asynccontextmanager
async def telling(seats: Seats) -> AsyncIterator[None]:
    """Its seats are told to the store meanwhile."""
    task = asyncio.create_task(seats.run())
    try:
        yield
    finally:
        await end_tasks([task])


async def test_seats_are_counted_together_and_freed(redis: Redis) -> None:
    here, there = Seats(redis), Seats(redis)
    assert await here.take(ONE) is None
    assert await there.take(ONE) is None
    assert await here.take(ONE) == await there.take(ONE) == "hall"
    async with telling(there):
        there.free(ONE)
        async with asyncio.timeout(5):
            while await here.take(ONE):
                await asyncio.sleep(0.02)
    assert await there.take(ONE) == "hall"


async def test_what_was_taken_alone_is_told_when_the_store_is_back(redis: Redis) -> None:
    here, there = Seats(redis), Seats(redis)
    for _ in range(2):
        assert await here.take(ONE, shared=False) is None
    assert await here.take(ONE, shared=False) == "hall"
    async with telling(here):
        await until(lambda: not here._untold)
    assert await there.take(ONE) == "hall"


async def test_addresses_that_came_and_went_alone_leave_nothing(redis: Redis) -> None:
    seats = Seats(redis)
    assert await seats.take({"known": 1}) is None
    for number in range(100):
        room = {f"address:{number}": 1}
        assert await seats.take(room, shared=False) is None
        seats.free(room)
    seats.free({"known": 1})
    assert seats._untold == {"known"}
    assert not seats._taken
    async with telling(seats):
        await until(lambda: not seats._untold)
        await until(lambda: not seats._told)


async def test_a_server_that_falls_silent_counts_no_more(redis: Redis) -> None:
    here, there = Seats(redis), Seats(redis)
    for _ in range(2):
        assert await here.take(ONE) is None
    await here.leave()
    assert await there.take(ONE) is None
