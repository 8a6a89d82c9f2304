from __future__ import annotations

from typing import Any

import pytest

from feed.history.cache import HistoryCache
from tests.builders import T0
from tests.feed.accounting_client import AccountingClient
from tests.feed.world import World
from tickcast.wire.ticks import StreamKey

ES = StreamKey("live", "trades", "ES")


@pytest.fixture
def world() -> World:
    world = World()
    world.open(ES)
    return world


def subscribe(world: World, **options: Any) -> tuple[AccountingClient, list[Any]]:
    """Return a client that has caught up and what it received: numbers, and other messages."""
    client = AccountingClient(world)
    client.perform(action="subscribe", trades=["ES"], **options)
    return client, received(client)


def received(client: AccountingClient) -> list[Any]:
    found: list[Any] = []
    for _ in range(20):
        client.advance()
        while client.reads:
            client.answer_read()
    for message in client.sink.take():
        if message["T"] == "t":
            found.append((message["seq"], "snap") if message.get("snap") else message["seq"])
        elif message["T"] == "gap":
            found.append((message["reason"], message["from"], message["to"]))
    return found


def publish(world: World, *counts: int, arrives: bool = True) -> None:
    for count in counts:
        world.publish(ES, count, arrives)


def test_from_a_time_on(world: World) -> None:
    publish(world, 3, 3, 3)
    client, past = subscribe(world, start=T0 + 5)
    assert past == [5, 6, 7, 8, 9]
    publish(world, 2)
    world.pass_time(5)
    assert received(client) == [10, 11]


def test_from_a_time_that_is_not_retained(world: World) -> None:
    publish(world, 3, 3, 3)
    del world.store.streams[ES].batches[:2]
    assert subscribe(world, start=T0 + 2)[1] == [("retention", None, 6), 7, 8, 9]
    assert subscribe(world, start=T0 + 7)[1] == [7, 8, 9]
    del world.store.streams[ES].batches[:]
    assert subscribe(world, start=T0 + 2)[1] == [("retention", None, 9)]


def test_from_a_future_time(world: World) -> None:
    publish(world, 3)
    client, past = subscribe(world, start=T0 + 100)
    assert past == []
    publish(world, 1)
    world.pass_time(5)
    assert received(client) == [4]


def test_ticks_that_the_hub_has_not_received_yet_come_once(world: World) -> None:
    publish(world, 2)
    publish(world, 2, arrives=False)
    client, past = subscribe(world, start=T0 + 1)
    world.repair_all()
    world.pass_time(5)
    assert past + received(client) == [1, 2, 3, 4]
    client, past = subscribe(world, start=T0 + 4)
    assert past == [4]


def test_after_a_position(world: World) -> None:
    publish(world, 3, 3)
    epoch = world.store.epoch
    assert subscribe(world, resume={"epoch": epoch, "trades": {"ES": 4}})[1] == [5, 6]
    assert subscribe(world, resume={"epoch": epoch, "trades": {"ES": 6}})[1] == []
    assert subscribe(world, resume={"epoch": "any", "trades": {"ES": 0}})[1] == [1, 2, 3, 4, 5, 6]


def test_after_a_position_that_is_not_retained(world: World) -> None:
    publish(world, 3, 3, 3)
    resume = {"epoch": world.store.epoch, "trades": {"ES": 2}}
    del world.store.streams[ES].batches[:2]
    assert subscribe(world, resume=resume)[1] == [("retention", 3, 6), 7, 8, 9]
    del world.store.streams[ES].batches[:]
    assert subscribe(world, resume=resume)[1] == [("retention", 3, 9)]


def test_after_a_position_of_another_epoch(world: World) -> None:
    publish(world, 3)
    for epoch, seq in (("e0000", 2), ("e0000", 3), ("zzz", 1), (world.store.epoch, 4)):
        client, past = subscribe(world, resume={"epoch": epoch, "trades": {"ES": seq}})
        assert past == [("epoch", None, None), (3, "snap")]
        publish(world, 1)
        world.pass_time(5)
        assert received(client) == [4]
        world = World()
        world.open(ES)
        publish(world, 3)


def test_another_server_was_further_ahead(world: World) -> None:
    publish(world, 3)
    publish(world, 3, arrives=False)
    client, past = subscribe(world, resume={"epoch": world.store.epoch, "trades": {"ES": 5}})
    assert past == []
    world.repair_all()
    assert received(client) == [6]


def test_the_numbering_restarts_on_the_way(world: World) -> None:
    publish(world, *[500] * 6)
    client = AccountingClient(world)
    client.perform(action="subscribe", trades=["ES"], start=T0 + 1)
    for _ in range(2):
        client.advance()
        client.answer_read()
    client.advance()
    world.store.generation += 1
    publish(world, 2)
    found = received(client)
    begin = found.index(("epoch", None, None))
    assert found[begin + 1 :] == [1, 2]
    assert found[:begin] == list(range(1, begin + 1))
    assert 0 < begin < 3000


def test_history_is_complete_and_live_ticks_are_conflated(world: World) -> None:
    other, _ = subscribe(world, conflate_ms=50)
    publish(world, 3, 3)
    client, past = subscribe(world, start=T0 + 1, conflate_ms=50)
    assert past == [1, 2, 3, 4, 5, 6]
    publish(world, 2)
    world.pass_time(100)
    (tick,) = (message for message in client.sink.take() if message["T"] == "t")
    assert (tick["seq"], tick["cf"]) == (8, 1)
    assert received(other) == [6, 8]


def test_a_client_that_stops_reading_keeps_no_ticks_in_memory(world: World) -> None:
    publish(world, *[400] * 10)
    client = AccountingClient(world)
    client.perform(action="subscribe", trades=["ES"], start=T0 + 1)
    client.sink.paused = True
    for _ in range(20):
        client.advance()
        client.answer_read()
    stream = world.hub.stream(ES)
    assert stream is not None
    assert stream.tail is None
    assert client.outbox.waiting_bytes < 1000
    assert not client.closed
    client.sink.paused = False
    client.session.drain()
    assert received(client) == list(range(1, 4001))


def test_unsubscribing_while_catching_up(world: World) -> None:
    publish(world, 400, 400, 400)
    client = AccountingClient(world)
    client.perform(action="subscribe", trades=["ES"], start=T0 + 1)
    client.advance()
    client.perform(action="unsubscribe", trades=["ES"])
    assert received(client) == []
    client.perform(action="subscribe", trades=["ES"], start=T0 + 1199)
    assert received(client) == [1199, 1200]
    stream = world.hub.stream(ES)
    assert stream is not None
    assert stream.tail is None


def test_a_subscribed_stream_is_not_sent_again(world: World) -> None:
    client, _ = subscribe(world)
    publish(world, 3)
    world.pass_time(5)
    assert received(client) == [1, 2, 3]
    client.perform(action="subscribe", trades=["ES"], start=T0 + 1)
    assert received(client) == []


def test_positions_of_streams(world: World) -> None:
    publish(world, 3)
    client = AccountingClient(world)
    client.perform(action="subscribe", trades=["ES"], positions=True, id=1)
    (reply,) = client.sink.take()
    assert reply["positions"] == [{"epoch": world.store.epoch, "trades": {"ES": 3}}]
    client.perform(action="subscribe", quotes=["ES"], positions=True, id=1)
    assert client.sink.take()[0]["positions"] == []


def test_clients_share_encoded_pages(world: World) -> None:
    publish(world, *[250] * 8)
    first, past = subscribe(world, start=T0 + 1)
    assert past == list(range(1, 2001))
    assert any(page.encoded for page in world.cache._pages.values())
    second = AccountingClient(world)
    second.perform(action="subscribe", trades=["ES"], start=T0 + 101)
    assert received(second) == list(range(101, 2001))
    assert world.cache.size_bytes <= 400_000
    del first


def test_unused_pages_are_dropped(world: World) -> None:
    world.cache = HistoryCache()
    publish(world, *[500] * 4)
    assert len(subscribe(world, start=T0 + 1)[1]) == 2000
    cache, epoch = world.cache, world.store.epoch
    cache.drop_unused()
    assert cache.find(ES, epoch, 700) is not None
    cache.drop_unused()
    assert cache.find(ES, epoch, 700) is not None
    assert cache.find(ES, epoch, 1) is None
    cache.drop_unused()
    cache.drop_unused()
    assert cache.size_bytes == 0
