"""Requests to publish: each is answered when its own ticks are published, and repeated safely."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from tests.builders import quote, trade
from tests.tickcast.broker.stores import OwnStore, Proxy, ids_in, numbered, until_seq
from tickcast.broker import request_publisher
from tickcast.broker.batch_sender import OutgoingBatch
from tickcast.broker.client import make_client
from tickcast.broker.request_publisher import KeyReused, Overloaded, RequestPublisher
from tickcast.settings import Settings
from tickcast.wire.errors import BrokerUnavailable
from tickcast.wire.ticks import StreamKey

S = 5.0


@asynccontextmanager
async def opened(client: Redis, settings: Settings) -> AsyncIterator[RequestPublisher]:
    publisher = RequestPublisher(client, "live", settings)
    await publisher.open()
    try:
        yield publisher
    finally:
        await publisher.stop()


@pytest.fixture
async def publisher(client: Redis, settings: Settings) -> AsyncIterator[RequestPublisher]:
    async with opened(client, settings) as publisher:
        yield publisher


async def test_a_request_is_published_when_it_returns(
    publisher: RequestPublisher, client: Redis
) -> None:
    await publisher.publish([*numbered(1, 2), quote()], S)
    assert await ids_in(client) == [1, 2]


async def test_many_requests_at_once_are_each_published_once(
    publisher: RequestPublisher, client: Redis
) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(publisher.publish(numbered(number), S))
    assert sorted(await ids_in(client)) == list(range(200))


async def test_a_key_publishes_once(publisher: RequestPublisher, client: Redis) -> None:
    for _ in range(3):
        assert await publisher.publish_once(numbered(1, 2), "key", "digest", S) == 2
    assert await publisher.publish_once(numbered(3), "other", "digest", S) == 1
    assert await ids_in(client) == [1, 2, 3]


async def test_a_key_in_two_requests_at_the_same_time_publishes_once(
    publisher: RequestPublisher, client: Redis, settings: Settings
) -> None:
    async with opened(client, settings) as other, asyncio.TaskGroup() as group:
        for each in [publisher, other] * 10:
            group.create_task(each.publish_once(numbered(1, 2), "key", "digest", S))
    assert await ids_in(client) == [1, 2]


async def test_a_key_for_other_ticks_is_refused(publisher: RequestPublisher) -> None:
    await publisher.publish_once(numbered(1), "key", "digest", S)
    with pytest.raises(KeyReused):
        await publisher.publish_once(numbered(2), "key", "another", S)


async def test_a_request_repeated_after_a_lost_answer_is_published_once(
    proxy: Proxy, client: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_client(proxy.url) as through_proxy, opened(through_proxy, settings) as first:
        await first.publish(numbered(0), S)
        send = first._sender.send

        async def send_and_lose_the_answer(batches: dict[StreamKey, OutgoingBatch]) -> None:
            proxy.loses_answers = True
            await send(batches)

        monkeypatch.setattr(first._sender, "send", send_and_lose_the_answer)
        with pytest.raises(BrokerUnavailable, match="may still be published"):
            await first.publish_once(numbered(1, 2), "key", "digest", 0.2)
        await until_seq(client, 3)
    async with opened(client, settings) as second:
        assert await second.publish_once(numbered(1, 2), "key", "digest", S) == 2
    assert await ids_in(client) == [0, 1, 2]


async def test_during_an_outage_requests_fail_at_once_and_leave_nothing(
    publisher: RequestPublisher, store: OwnStore, client: Redis
) -> None:
    await publisher.publish(numbered(1), S)
    store.kill()
    with pytest.raises(BrokerUnavailable, match="may still be published"):
        await publisher.publish(numbered(2), 0.3)
    assert publisher.is_away
    with pytest.raises(BrokerUnavailable, match="no answer from Redis"):
        await publisher.publish(numbered(3), S)
    await store.start()
    await until_seq(client, 2)
    while publisher.is_away:
        await asyncio.sleep(0.01)
    await publisher.publish(numbered(4), S)
    assert await ids_in(client) == [1, 2, 4]


async def test_too_many_waiting_ticks_are_refused(
    publisher: RequestPublisher, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_publisher, "WAITING_TICKS_MAX", 10)
    with pytest.raises(Overloaded):
        await publisher.publish(numbered(*range(11)), S)
    await publisher.publish(numbered(*range(10)), S)
    assert await ids_in(client) == list(range(10))


async def test_a_request_that_waits_fails_when_the_publisher_closes(
    publisher: RequestPublisher, store: OwnStore
) -> None:
    store.kill()
    requests = [asyncio.create_task(publisher.publish([trade()], S)) for _ in range(3)]
    await asyncio.sleep(0)
    await publisher.stop()
    for request in requests:
        with pytest.raises(BrokerUnavailable, match="shutting down"):
            await request
