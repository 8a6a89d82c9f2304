"""The exclusive right to make something: acquired, renewed, lost and released."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

import pytest
from redis.asyncio import Redis

from tests.conftest import until
from tests.tickcast.broker.stores import own_store
from tickcast.broker import keys
from tickcast.broker import lease as lease_module
from tickcast.broker.client import make_client
from tickcast.broker.lease import Lease
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import LeaseHeld

CHANNELS = ["bars", "bars:1s"]
LASTS_S = 1.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "_RENEW_S", 0.05)
    monkeypatch.setattr(lease_module, "LASTS_S", LASTS_S)
    monkeypatch.setattr(lease_module, "_MARGIN_S", 0.2)


async def test_one_holds_it_until_it_is_released(redis: Redis) -> None:
    first, second = Lease(redis, "live", CHANNELS), Lease(redis, "live", ["bars:1s"])
    assert not first.holds
    await first.acquire()
    assert first.holds
    waiting = asyncio.create_task(second.acquire())
    other = Lease(redis, "other", CHANNELS)
    await other.acquire()
    assert not waiting.done()
    began = monotonic()
    await first.release()
    await waiting
    assert monotonic() - began < LASTS_S
    assert (first.holds, second.holds) == (False, True)
    assert await redis.get(keys.maker("live", "bars")) is None


async def test_it_expires_if_its_holder_is_killed(redis: Redis) -> None:
    await Lease(redis, "live", CHANNELS).acquire()
    left_ms = await redis.pttl(keys.maker("live", "bars"))
    assert 0 < left_ms <= LASTS_S * 1000


async def test_all_channels_or_none(redis: Redis) -> None:
    await redis.set(keys.maker("live", "bars:1s"), "somebody", ex=60)
    with pytest.raises(LeaseHeld, match="another program makes bars, bars:1s of feed live"):
        await Lease(redis, "live", CHANNELS).acquire()
    assert await redis.get(keys.maker("live", "bars")) is None


async def test_a_holder_that_has_lost_it_fails(redis: Redis) -> None:
    lease = Lease(redis, "live", CHANNELS)
    await lease.acquire()
    keeping = asyncio.create_task(lease.renew_forever())
    await redis.delete(keys.maker("live", "bars"))
    async with asyncio.timeout(10):
        while await redis.get(keys.maker("live", "bars")) is None:
            await asyncio.sleep(0.01)
    await redis.set(keys.maker("live", "bars"), "somebody")
    await asyncio.wait([keeping], timeout=10)
    with pytest.raises(LeaseHeld, match="another program has taken over"):
        keeping.result()
    assert not lease.holds


async def test_it_expires_while_the_store_is_away(runtime_dir: Path) -> None:
    async with own_store(runtime_dir) as store, make_client(store.url) as client:
        lease = Lease(client, "live", CHANNELS)
        await lease.acquire()
        keeping = asyncio.create_task(lease.renew_forever())
        store.kill()
        await until(lambda: not lease.holds)
        await store.start()
        await until(lambda: lease.holds)
        await cancel_and_wait([keeping])
