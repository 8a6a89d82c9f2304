from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.conftest import until
from tickcast.broker.limits import ConnectionLimiter
from tickcast.broker.scripts import Script, ScriptCall
from tickcast.tasks import cancel_and_wait

ONE = {"hall": 2}


@asynccontextmanager
async def telling(seats: ConnectionLimiter) -> AsyncIterator[None]:
    """Keep reporting its seats to the store meanwhile."""
    task = asyncio.create_task(seats.run())
    try:
        yield
    finally:
        await cancel_and_wait([task])


async def test_seats_are_counted_together_and_freed(redis: Redis) -> None:
    here, there = ConnectionLimiter(redis), ConnectionLimiter(redis)
    assert await here.acquire(ONE) is None
    assert await there.acquire(ONE) is None
    assert await here.acquire(ONE) == await there.acquire(ONE) == "hall"
    async with telling(there):
        there.free(ONE)
        async with asyncio.timeout(5):
            while await here.acquire(ONE):
                await asyncio.sleep(0.02)
    assert await there.acquire(ONE) == "hall"


async def test_what_was_taken_alone_is_told_when_the_store_is_back(redis: Redis) -> None:
    here, there = ConnectionLimiter(redis), ConnectionLimiter(redis)
    for _ in range(2):
        assert await here.acquire(ONE, shared=False) is None
    assert await here.acquire(ONE, shared=False) == "hall"
    async with telling(here):
        await until(lambda: not here._untold)
    assert await there.acquire(ONE) == "hall"


async def test_addresses_that_came_and_went_alone_leave_nothing(redis: Redis) -> None:
    seats = ConnectionLimiter(redis)
    assert await seats.acquire({"known": 1}) is None
    for number in range(100):
        room = {f"address:{number}": 1}
        assert await seats.acquire(room, shared=False) is None
        seats.free(room)
    seats.free({"known": 1})
    assert seats._untold == {"known"}
    assert not seats._taken
    async with telling(seats):
        await until(lambda: not seats._untold)
        await until(lambda: not seats._told)


async def test_a_server_that_falls_silent_counts_no_more(redis: Redis) -> None:
    here, there = ConnectionLimiter(redis), ConnectionLimiter(redis)
    for _ in range(2):
        assert await here.acquire(ONE) is None
    await here.leave()
    assert await there.acquire(ONE) is None


async def test_a_count_does_not_overtake_a_later_one(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With pooled connections the first message may arrive last."""
    here, there = ConnectionLimiter(redis), ConnectionLimiter(redis)
    call_all, calls = Script.call_all, []

    async def first_is_slow(self: Script, client: Redis, wanted: Sequence[ScriptCall]) -> list[Any]:
        calls.append(wanted)
        if len(calls) == 1:
            await asyncio.sleep(0.1)
        return await call_all(self, client, wanted)

    monkeypatch.setattr(Script, "call_all", first_is_slow)
    first = asyncio.create_task(here.acquire(ONE))
    await until(lambda: len(calls) == 1)
    assert await here.acquire(ONE) is None
    assert await first is None
    assert await there.acquire(ONE) == "hall"


async def test_many_ask_with_few_messages_and_each_has_its_answer(redis: Redis) -> None:
    here, there = ConnectionLimiter(redis), ConnectionLimiter(redis)
    answers = await asyncio.gather(
        *(here.acquire({"hall": 300, f"door {n % 5}": 10}) for n in range(300))
    )
    assert answers.count(None) == 50
    assert here.taken("hall") == 50
    async with telling(here):
        await until(lambda: not here._untold)
    rest = await asyncio.gather(*(there.acquire({"hall": 60}) for _ in range(60)))
    assert rest.count(None) == 10
