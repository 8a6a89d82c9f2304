"""Redis users with minimal rights: each can do its whole job, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from feed.server.engine import Engine
from producers.bars.bar_maker import BarMaker
from producers.bars.builder import BarBuilder
from tests.builders import T0, bar, trade
from tests.conftest import RunningServer, running_server, until
from tests.talk import talking
from tests.tickcast.broker.locked import (
    BAR_MAKER,
    PUBLISHER,
    READER,
    SERVER,
    LockedStore,
    client_of,
    locked_store,
)
from tests.tickcast.broker.stores import ES, numbered
from tickcast.broker import keys
from tickcast.broker.client import channel_of, check_version
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.replays import ControlCommand, ReplayControl, read_state, steer
from tickcast.broker.store import Store
from tickcast.broker.subscriber import Subscriber
from tickcast.commands.store import check_redis
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import ReplayFailed
from tickcast.wire.playback import ReplayMode, ReplayState
from tickcast.wire.ticks import Bar, StreamKey, Tick
from tickcast.wire.times import NS_PER_SECOND, Time

PUBLISHERS_MAX = 64


@pytest.fixture(params=[("live", 0), ("*", 3)], ids=["the feed live", "all feeds, database 3"])
async def store(request: pytest.FixtureRequest, runtime_dir: Path) -> AsyncIterator[LockedStore]:
    async with locked_store(runtime_dir, *request.param) as store:
        yield store


async def test_a_publisher_does_its_whole_job(store: LockedStore, settings: Settings) -> None:
    user = PUBLISHER
    async with client_of(store, user) as client, asyncio.timeout(30):
        async with FeedPublisher(client, "live", settings, waits=True) as publisher:
            await publisher.publish([*numbered(1, 2), *numbered(1, symbol="NQ")])
            await publisher.flush()
            await survive_an_outage(store, publisher, numbered(3))
            await outlive_a_loss(store, publisher, [numbered(4), numbered(5)])
            await remove_what_is_old(store, publisher, numbered(6))
            await publisher.begin_epoch()
            await replay_something(client)
        await come_after_many_others(store, client, settings, numbered(7))
    assert await store.refused() == []
    granted = store.commands_of(user)
    assert granted - await store.used() == set()


async def test_a_maker_of_bars_does_its_whole_job(store: LockedStore, settings: Settings) -> None:
    user = BAR_MAKER
    async with (
        client_of(store, PUBLISHER) as source,
        FeedPublisher(source, "live", settings) as trades,
        client_of(store, user) as client,
        asyncio.timeout(40),
    ):
        await store.do("CONFIG", "RESETSTAT")
        async with FeedPublisher(client, "live", settings, waits=True) as publisher:
            await publisher.publish(bars_at(1, 2))
            await publisher.flush()
            await survive_an_outage(store, publisher, bars_at(3))
            await outlive_a_loss(store, publisher, [bars_at(4), bars_at(5)], BARS)
            await remove_what_is_old(store, publisher, bars_at(6), BARS)
        await come_after_many_others(store, client, settings, bars_at(7), BARS)
        for symbol in ("NQ", "YM"):
            # The second symbol is announced.
            await make_a_bar(client, trades, settings, symbol)
    assert await store.refused() == []
    assert store.commands_of(user) - await store.used() == set()


async def make_a_bar(client: Redis, trades: FeedPublisher, settings: Settings, symbol: str) -> None:
    async with FeedPublisher(client, "live", settings, waits=True) as publisher:
        bars = BarBuilder(("1s",), 0, fill=False)
        maker = BarMaker(client, "live", settings, bars, ["*"], publisher)
        task = asyncio.create_task(maker.run_forever())
        try:
            for second in range(2):
                time = Time(T0 + second * NS_PER_SECOND)
                await trades.publish([trade(symbol, time=time)])
            await trades.flush()
            key = StreamKey("live", "bars:1s", symbol)
            while not (await Store(client).heads([key]))[0].seq:
                await asyncio.sleep(0.01)
        finally:
            await cancel_and_wait([task])


BARS = StreamKey("live", "bars", "ES")


def bars_at(*minutes: int) -> list[Bar]:
    return [bar("ES") for _ in minutes]


async def survive_an_outage(
    store: LockedStore, publisher: FeedPublisher, ticks: Sequence[Tick]
) -> None:
    before = publisher.published
    store.kill()
    await publisher.publish(ticks)
    await until(lambda: publisher.is_away)
    await store.start()
    await publisher.flush()
    assert (publisher.published - before, publisher.dropped_ticks) == (len(ticks), 0)


async def outlive_a_loss(
    store: LockedStore,
    publisher: FeedPublisher,
    ticks: Sequence[Sequence[Tick]],
    key: StreamKey = ES,
) -> None:
    """Publish to a stream without its number, and then in an epoch older than the stream's."""
    before = await Store(store.admin).epoch("live")
    await store.do("DEL", keys.meta(key))
    await publisher.publish(ticks[0])
    await publisher.flush()
    (head,) = await Store(store.admin).heads([key])
    assert head.epoch > before
    assert head.seq == 1
    later = "7" * 14 + "-000000"
    await store.do("HSET", keys.meta(key), "epoch", later)
    await publisher.publish(ticks[1])
    await publisher.flush()
    assert (await Store(store.admin).heads([key]))[0].epoch > later


async def remove_what_is_old(
    store: LockedStore, publisher: FeedPublisher, ticks: Sequence[Tick], key: StreamKey = ES
) -> None:
    await store.do("DEL", keys.history(key))
    await store.do("XADD", keys.history(key), "1-1", "b", "", "m", "")
    await publisher.publish(ticks)
    await publisher.flush()
    assert await store.ask("XLEN", keys.history(key)) == 1


async def replay_something(client: Redis) -> None:
    """Play, receive a command, and make room for the next replay."""
    state = ReplayState(ReplayMode.PLAYING, T0, 1.0, T0, T0)

    async def carry_out(command: ControlCommand) -> ReplayState:
        return state

    control = ReplayControl(client, "live")
    await control.announce(state)
    assert await control.streams.find_others()
    await control.streams.add_publisher("p:1", alone=True)
    serving = asyncio.create_task(control.serve_commands(carry_out))
    try:
        while True:
            with suppress(ReplayFailed):  # It may not listen yet.
                assert await steer(client, "live", {"do": "status"}) == state
                break
    finally:
        await cancel_and_wait([serving])
    await control.withdraw(state)


async def come_after_many_others(
    store: LockedStore,
    client: Redis,
    settings: Settings,
    ticks: Sequence[Tick],
    key: StreamKey = ES,
) -> None:
    await check_version(client)
    for number in range(PUBLISHERS_MAX + 1):
        await store.do("HSET", keys.meta(key), f"p:{number}", f"{number:012x} {number}")
    async with FeedPublisher(client, "live", settings) as publisher:
        await publisher.publish(ticks)
        await publisher.flush()


async def test_a_server_does_its_whole_job(store: LockedStore, runtime_dir: Path) -> None:
    settings = Settings(linger_s=0, unlimited_addresses=(), attempts="1000/second")
    async with (
        asyncio.timeout(30),
        client_of(store, PUBLISHER) as client,
        FeedPublisher(client, "live", settings) as publisher,
    ):
        await publisher.publish(numbered(1, 2))
        await publisher.flush()
        await store.do("CONFIG", "RESETSTAT")
        url = store.url_of(SERVER)
        await check_redis(url, ["live"])
        async with running_server(settings, url) as server:
            await look(server.http)
            await watch(server.stream, publisher)
            await follow_a_replay(server.stream, store)
            await until(lambda: not subscriber_of(server).channels)
            await lose_numbers(server, store)
            async with running_server(settings, url) as another, talking(another.stream):
                await come_again(server.stream, store)
    assert await store.refused() == []
    assert store.commands_of(SERVER) - await store.used() == set()


def subscriber_of(server: RunningServer) -> Subscriber:
    engine: Engine = server.app_state["engine"]
    return engine.upstream.subscriber


async def look(http: str) -> None:
    async with httpx.AsyncClient(base_url=http) as client:
        assert (await client.get("/ready")).status_code == 200
        assert (await client.get("/symbols")).json() == [{"S": "ES", "channels": ["trades"]}]
        assert len((await client.get("/snapshot?symbols=*")).json()) == 1


async def watch(url: str, publisher: FeedPublisher) -> None:
    """Use wildcards with snapshots, new symbols, and history by time and by number."""
    async with talking(url) as talk:
        answer = await talk.ask(action="subscribe", trades=["*"], snapshot=True, id=1)
        assert answer["T"] == "subscription"
        epoch = answer["epoch"]
        assert (await talk.ticks(1))[0]["seq"] == 2
        await publisher.publish(numbered(1, symbol="NQ"))
        assert (await talk.ticks(1))[0]["S"] == "NQ"
    for how in ({"start": T0.rfc3339()}, {"resume": {"epoch": epoch, "trades": {"ES": 0}}}):
        async with talking(url) as talk:
            await talk.ask(action="subscribe", trades=["ES"], **how)
            assert [tick["seq"] for tick in await talk.ticks(2)] == [1, 2]


async def follow_a_replay(url: str, store: LockedStore) -> None:
    state = ReplayState(ReplayMode.PLAYING, T0, 1.0, T0, T0)
    async with client_of(store, PUBLISHER) as client, talking(url) as talk:
        await ReplayControl(client, "live").announce(state)
        assert (await talk.ask(action="configure", replay=True))["T"] == "configured"
        assert (await talk.hear())["T"] == "replay"


async def lose_numbers(server: RunningServer, store: LockedStore) -> None:
    """Delete the numbers that the server remembers, so that it begins an epoch."""
    async with talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["ES"], id=1)
        before = await Store(store.admin).epoch("live")
        await store.do("HSET", keys.meta(ES), "seq", 1)
        assert await store.kill_server_connections()
        assert (await talk.hear())["T"] == "gap"
    assert await Store(store.admin).epoch("live") > before


async def come_again(url: str, store: LockedStore) -> None:
    """Connect until one window of attempts is over and has become the previous one.

    The server must also know by then that the store is back, so that it counts in the store.
    """
    while not {"rename", "zscore"} <= await store.used():
        async with talking(url):
            pass


async def test_a_reader_may_look(store: LockedStore, settings: Settings) -> None:
    async with (
        client_of(store, PUBLISHER) as client,
        FeedPublisher(client, "live", settings) as publisher,
    ):
        await publisher.publish(numbered(1, 2))
    async with client_of(store, READER) as client:
        reader: Any = client
        looking = Store(client)
        assert await looking.streams("live") == {ES}
        (head,) = await looking.heads([ES])
        assert head.seq == 2
        assert (await looking.history(ES, 0)).complete
        assert (await looking.locate([(ES, T0)]))[0].before == 0
        assert (await reader.get(keys.epoch("live"))).decode() == head.epoch
        assert len(await reader.xrevrange(keys.history(ES), count=1)) == 1
        assert await read_state(client, "live") is None
        async with client.pubsub() as messages:
            channels = (keys.ticks(ES), keys.announcements("live"), keys.replay_states("live"))
            await messages.subscribe(*(channel_of(client, each) for each in channels))
            pattern = keys.ticks(StreamKey(store.feed, "*", "*"))
            await messages.psubscribe(channel_of(client, pattern))
            await messages.unsubscribe()
            await messages.punsubscribe()
    assert await store.refused() == []
