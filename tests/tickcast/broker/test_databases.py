"""Databases of one Redis: pub/sub ignores them, and yet nothing crosses between them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from producers.bars.bar_maker import BarMaker
from producers.bars.builder import BarBuilder
from tests.builders import T0, trade
from tests.conftest import running_server
from tests.talk import talking
from tests.tickcast.broker.stores import ES, OwnStore
from tickcast.broker import keys
from tickcast.broker.client import make_client
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.replays import ControlCommand, ReplayControl, steer
from tickcast.commands.store import check_redis
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import ReplayFailed
from tickcast.wire.playback import ReplayMode, ReplayState

STATE = ReplayState(ReplayMode.PLAYING, T0, 1.0, T0, T0)


@asynccontextmanager
async def replaying(client: Redis) -> AsyncIterator[list[str]]:
    """A replay into the feed `live`, and the commands that it receives."""
    received: list[str] = []

    async def carry_out(command: ControlCommand) -> ReplayState:
        received.append(type(command).__name__)
        return STATE

    control = ReplayControl(client, "live")
    await control.announce(STATE)
    task = asyncio.create_task(control.serve_commands(carry_out))
    try:
        yield received
    finally:
        await cancel_and_wait([task])
        await control.withdraw(STATE)


async def steer_soon(client: Redis) -> None:
    """Steer a replay that may not be listening yet."""
    async with asyncio.timeout(10):
        while True:
            try:
                await steer(client, "live", {"do": "status"})
            except ReplayFailed:
                await asyncio.sleep(0.01)
            else:
                return


@pytest.mark.parametrize(("ours", "theirs"), [(0, 1), (1, 0), (2, 1)])
async def test_nothing_crosses_databases(
    store: OwnStore, settings: Settings, ours: int, theirs: int
) -> None:
    urls = [f"{store.url}?db={number}" for number in (ours, theirs)]
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        here, there = [await stack.enter_async_context(make_client(url)) for url in urls]
        server = await stack.enter_async_context(running_server(settings, urls[0]))
        publishers = [
            await stack.enter_async_context(FeedPublisher(client, "live", settings))
            for client in (here, there)
        ]
        talk = await stack.enter_async_context(talking(server.stream))
        await talk.ask(action="subscribe", trades=["*"], id=1)
        assert (await talk.ask(action="configure", replay=True))["T"] == "configured"
        received = await stack.enter_async_context(replaying(here))
        assert (await talk.hear())["T"] == "replay"

        # A later epoch, new streams, and another replay, all in the other database.
        await publishers[1].publish([trade("ES", id=1), trade("OTHER", id=1)])
        await publishers[1].flush()
        await publishers[1].begin_epoch()
        await publishers[1].flush()
        with pytest.raises(ReplayFailed, match="no replay plays into the feed live"):
            await steer(there, "live", {"do": "pause"})
        async with replaying(there) as received_there:
            await steer_soon(there)
            assert received_there
        assert received == []

        await publishers[0].publish([trade("ES", id=7), trade("NQ", id=8)])
        seen = [message for message in await talk.ticks(2) if message["T"] == "t"]
        assert sorted((tick["S"], tick["i"], tick["seq"]) for tick in seen) == [
            ("ES", 7, 1), ("NQ", 8, 1),
        ]  # fmt: skip
        await steer_soon(here)
        assert len(received) == 1


async def test_each_database_has_channels_of_its_own(store: OwnStore, settings: Settings) -> None:
    """Every channel that servers, producers, bar makers and replays publish or listen to."""
    url = f"{store.url}?db=3"
    async with AsyncExitStack() as stack, asyncio.timeout(30):
        client, first = [
            await stack.enter_async_context(make_client(each)) for each in (url, store.url)
        ]
        listener: Any = await stack.enter_async_context(first.pubsub())
        await listener.psubscribe("*")
        await check_redis(url)
        server = await stack.enter_async_context(running_server(settings, url))
        publisher = await stack.enter_async_context(FeedPublisher(client, "live", settings))
        bars = BarMaker(
            client, "live", settings, BarBuilder(("1s",), 0, fill=False), ["*"], publisher
        )
        making = asyncio.create_task(bars.run_forever())
        stack.push_async_callback(cancel_and_wait, [making])
        talk = await stack.enter_async_context(talking(server.stream))
        await talk.ask(action="subscribe", trades=["ES"], id=1)
        await talk.ask(action="configure", replay=True)
        await publisher.publish([trade("ES")])
        await talk.ticks(1)
        async with replaying(client):
            await steer_soon(client)
        kinds: set[str] = set()
        while kinds < {"ticks", "announcements", "heartbeat", "states", "commands", "replies"}:
            message = await listener.get_message(ignore_subscribe_messages=True, timeout=1)
            if message is not None:
                channel = message["channel"].decode()
                assert channel.startswith("tickcast@3:"), channel
                kinds.update(re.findall(r"[a-z]+", channel))
        channels: Any = await first.pubsub_channels()
        subscribed = [name.decode() for name in channels]
        assert subscribed
        assert [name for name in subscribed if not name.startswith("tickcast@3:")] == []


def test_names_in_the_first_database_stay_as_they_are() -> None:
    """Existing stores with data, and other programs that read them, continue to work."""
    assert keys.ticks(ES) == "tickcast:{live/trades/ES}:ticks"
    assert keys.channel_in(0, keys.ticks(ES)) == keys.ticks(ES)
    for name in (keys.ticks(ES), keys.heartbeat("x"), keys.replay_states("live")):
        for database in (0, 1, 15):
            assert keys.channel_in_first(keys.channel_in(database, name)) == name
