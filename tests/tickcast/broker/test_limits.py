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
async def reporting(limiter: ConnectionLimiter) -> AsyncIterator[None]:
    """Keep reporting the counts to the store meanwhile."""
    task = asyncio.create_task(limiter.report_forever())
    try:
        yield
    finally:
        await cancel_and_wait([task])


async def test_connections_of_all_servers_count_until_they_are_released(redis: Redis) -> None:
    here, there = ConnectionLimiter(redis), ConnectionLimiter(redis)
    assert await here.acquire(ONE) is None
    assert await there.acquire(ONE) is None
    assert await here.acquire(ONE) == await there.acquire(ONE) == "hall"
    async with reporting(there):
        there.release(ONE)
        async with asyncio.timeout(5):
            while await here.acquire(ONE):
                await asyncio.sleep(0.02)
    assert await there.acquire(ONE) == "hall"


async def test_connections_counted_alone_are_reported_when_the_store_is_back(redis: Redis) -> None:
    here, there = ConnectionLimiter(redis), ConnectionLimiter(redis)
    for _ in range(2):
        assert await here.acquire(ONE, shared=False) is None
    assert await here.acquire(ONE, shared=False) == "hall"
    async with reporting(here):
        await until(lambda: not here._unreported)
    assert await there.acquire(ONE) == "hall"


async def test_groups_that_the_store_never_knew_are_not_reported(redis: Redis) -> None:
    limiter = ConnectionLimiter(redis)
    assert await limiter.acquire({"known": 1}) is None
    for number in range(100):
        group = {f"address:{number}": 1}
        assert await limiter.acquire(group, shared=False) is None
        limiter.release(group)
    limiter.release({"known": 1})
    assert limiter._unreported == {"known"}
    assert not limiter._counts
    async with reporting(limiter):
        await until(lambda: not limiter._unreported)
        await until(lambda: not limiter._reported)


async def test_a_server_that_withdraws_no_longer_counts(redis: Redis) -> None:
    here, there = ConnectionLimiter(redis), ConnectionLimiter(redis)
    for _ in range(2):
        assert await here.acquire(ONE) is None
    await here.withdraw()
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


async def test_many_requests_share_few_messages(redis: Redis) -> None:
    here, there = ConnectionLimiter(redis), ConnectionLimiter(redis)
    answers = await asyncio.gather(
        *(here.acquire({"hall": 300, f"door {n % 5}": 10}) for n in range(300))
    )
    assert answers.count(None) == 50
    assert here.count("hall") == 50
    async with reporting(here):
        await until(lambda: not here._unreported)
    rest = await asyncio.gather(*(there.acquire({"hall": 60}) for _ in range(60)))
    assert rest.count(None) == 10
