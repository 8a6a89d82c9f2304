"""A publisher ends before everything is published: nothing hangs, and the totals are exact."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from tests.builders import T0
from tests.conftest import until
from tests.tickcast.broker.stores import ES, OwnStore, Proxy, numbered, until_seq
from tickcast.broker import keys
from tickcast.broker.client import make_client
from tickcast.broker.publish_buffer import DroppedTicks
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.errors import BrokerUnavailable, BrokerUnsuitable
from tickcast.wire.times import Time


class Failed(Exception):
    """An error inside the block of a publisher."""


async def test_a_block_left_by_an_error_accounts_for_all_ticks(
    proxy: Proxy, client: Redis, settings: Settings
) -> None:
    async with make_client(proxy.url) as through_proxy:
        publisher = FeedPublisher(through_proxy, "live", settings, waits=True)
        with suppress(Failed):
            async with publisher:
                await publisher.publish(numbered(1))
                await publisher.flush()
                proxy.loses_answers = True
                await publisher.publish(numbered(2, 3))
                await until_seq(client, 3)
                await publisher.publish(numbered(4))
                raise Failed
    assert (publisher.published, publisher.in_doubt, publisher.dropped_ticks) == (1, 2, 1)
    assert publisher.dropped == {ES: DroppedTicks(1, Time(T0 + 4), Time(T0 + 4))}


async def test_a_block_left_by_an_error_publishes_what_it_can(
    client: Redis, settings: Settings
) -> None:
    with suppress(Failed):
        async with FeedPublisher(client, "live", settings) as publisher:
            await publisher.publish(numbered(*range(1000)))
            raise Failed
    assert publisher.published == 1000
    assert (publisher.in_doubt, publisher.dropped_ticks) == (0, 0)


@pytest.mark.parametrize("waits", [False, True])
async def test_cancelling_a_flush_ends_the_publisher(
    store: OwnStore, client: Redis, settings: Settings, waits: bool
) -> None:
    publisher = FeedPublisher(client, "live", settings, waits=waits)

    async def work() -> None:
        async with publisher:
            store.kill()
            await publisher.publish(numbered(1, 2))
            await until(lambda: publisher.is_away)
            await publisher.publish(numbered(3))

    task = asyncio.create_task(work())
    await until(lambda: publisher._buffer.count == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # There was no connection, so nothing was sent.
    assert (publisher.published, publisher.in_doubt, publisher.dropped_ticks) == (0, 0, 3)


async def test_flush_or_give_up_ends_at_its_limit(
    store: OwnStore, client: Redis, settings: Settings
) -> None:
    publisher = FeedPublisher(client, "live", settings)
    await publisher.__aenter__()
    store.kill()
    await publisher.publish(numbered(1, 2))
    with pytest.raises(BrokerUnavailable, match=r"no answer from Redis: .*; gave up after 0\.1 s"):
        await publisher.flush_or_give_up(0.1)
    assert publisher.dropped_ticks == 2
    with pytest.raises(BrokerUnavailable, match="gave up"):
        await publisher.publish(numbered(3))
    with pytest.raises(BrokerUnavailable, match="gave up"):
        await publisher.__aexit__(None, None, None)
    assert publisher.dropped_ticks == 2


async def test_a_permanent_error_ends_it_with_exact_counts(
    client: Redis, settings: Settings
) -> None:
    publisher = FeedPublisher(client, "live", settings, waits=True)

    async def work() -> None:
        async with publisher:
            await publisher.publish(numbered(1, 2))
            await publisher.flush()
            await client.delete(keys.meta(ES))
            await client.set(keys.meta(ES), "not a hash")
            await publisher.publish([*numbered(3, symbol="NQ"), *numbered(4, 5)])

    with pytest.raises(BrokerUnsuitable, match="WRONGTYPE"):
        await work()
    assert (publisher.accepted, publisher.published) == (5, 3)
    assert publisher.dropped == {ES: DroppedTicks(2, Time(T0 + 4), Time(T0 + 5))}
    assert publisher.in_doubt == 0
