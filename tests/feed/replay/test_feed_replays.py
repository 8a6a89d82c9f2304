"""A replay, a server and its clients: notifications, and how a seek back affects the accounts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from feed.server.engine import Engine
from producers.simulation.replay import Replay, ReplayOptions
from tests.conftest import RunningServer, running_server, until
from tests.recorded import Recorded, at
from tests.talk import Talk, talking
from tests.tickcast.broker.stores import OwnStore, own_store
from tickcast.broker import keys
from tickcast.broker.client import make_client
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.replays import ReplayControl, SeekCommand, StepCommand, steer
from tickcast.client.accounts import Gap
from tickcast.client.stream import connect
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import ReplayFailed
from tickcast.wire.playback import Player


@pytest.fixture
async def publisher(redis: Redis, settings: Settings) -> AsyncIterator[FeedPublisher]:
    async with FeedPublisher(redis, "live", settings, waits=True) as publisher:
        yield publisher


@asynccontextmanager
async def playing(
    redis: Redis, publisher: FeedPublisher, source: Recorded, speed: float = 1, feed: str = "live"
) -> AsyncIterator[Replay]:
    deck = Player(source, time.monotonic(), speed=speed)
    replay = Replay(deck, publisher, ReplayControl(redis, feed), ReplayOptions())
    task = asyncio.create_task(replay.run())
    try:
        yield replay
    finally:
        await cancel_and_wait([task])


async def state_from(talk: Talk, state: str) -> dict[str, object]:
    """Return the replay's next message with this state; skip all others."""
    async with asyncio.timeout(10):
        while (message := await talk.hear())["T"] != "replay" or message["state"] != state:
            pass
    return message


async def test_followers_receive_every_change(
    server: RunningServer, redis: Redis, publisher: FeedPublisher
) -> None:
    async with talking(server.stream) as talk, talking(server.stream) as other:
        configured = await talk.ask(action="configure", replay=True, id=1)
        assert configured["replay"] is True
        async with playing(redis, publisher, Recorded(0, 1000, 2000)) as replay:
            assert await state_from(talk, "playing") == {
                "T": "replay", "state": "playing", "position": at(0).rfc3339(), "speed": 1,
                "from": at(0).rfc3339(), "to": at(2000).rfc3339(),
            }  # fmt: skip
            await until(lambda: replay.count == 1)
            await replay.execute(StepCommand(id="x"))
            assert (await state_from(talk, "paused"))["position"] == at(1000).rfc3339()
            first, second = [await state_from(talk, "paused") for _ in range(2)]
            assert first == second, "once a second"
        await state_from(talk, "ended")
        await other.say(action="ping")
        assert (await other.hear())["T"] == "pong", (
            "a client that does not follow it receives nothing"
        )


async def test_clients_steer_the_replay_if_the_server_allows_it(
    server: RunningServer, redis: Redis, publisher: FeedPublisher
) -> None:
    async with talking(server.stream) as talk:
        assert (await talk.ask(action="replay.pause"))["code"] == 410
        async with playing(redis, publisher, Recorded(0, 1000, 2000)):
            while (said := await talk.ask(action="replay.pause"))["T"] == "error":
                assert said["code"] == 410  # The replay does not listen yet.
            assert said["state"] == "paused"
            said = await talk.ask(action="replay.seek", position=at(1500).rfc3339())
            assert (said["state"], said["position"]) == ("paused", at(1500).rfc3339())
            assert (await talk.ask(action="replay.speed", speed="max"))["speed"] == "max"
            assert (await talk.ask(action="replay.resume"))["T"] == "replay"
            assert (await talk.ask(action="replay.stop"))["code"] == 400


async def test_steering_is_refused_if_the_server_forbids_it(
    settings: Settings, redis_url: str, redis: Redis, publisher: FeedPublisher
) -> None:
    strict = replace(settings, steer_replays=False)
    async with (
        running_server(strict, redis_url) as server,
        talking(server.stream) as talk,
        playing(redis, publisher, Recorded(0, 1000)),
    ):
        said = await talk.ask(action="replay.pause")
        assert said["code"] == 410
        assert said["msg"].startswith(
            "invalid action for this feed: this server does not let clients"
        )


async def test_a_late_follower_receives_the_state_at_once(
    server: RunningServer, redis: Redis, publisher: FeedPublisher
) -> None:
    async with playing(redis, publisher, Recorded(0, 1000, 2000)) as replay:
        await until(lambda: replay.count == 1)
        await replay.execute(StepCommand(id="x"))
        async with talking(server.stream) as talk:
            await talk.ask(action="configure", replay=True)
            assert (await talk.hear())["position"] == at(1000).rfc3339()


async def test_states_come_after_the_ticks_published_before_them(
    server: RunningServer, redis: Redis, publisher: FeedPublisher
) -> None:
    async with talking(server.stream) as talk:
        await talk.ask(action="configure", replay=True)
        # Not "*": a new stream is first read from its beginning, and states would overtake its
        # ticks.
        await talk.ask(action="subscribe", trades=["ES"])
        async with playing(redis, publisher, Recorded(*range(3000)), speed=10_000):
            count = 0
            while (message := await talk.hear()).get("state") != "ended":
                count += message["T"] == "t"
    assert count == 3000


async def test_only_feeds_with_followers_are_subscribed_to(
    server: RunningServer, redis: Redis
) -> None:
    engine: Engine = server.app_state["engine"]
    channel = keys.replay_states("live")
    async with talking(server.stream) as one, talking(server.stream) as two:
        assert channel not in engine.upstream.subscriber.channels
        for talk in (one, two):
            await talk.ask(action="configure", replay=True)
        await until(lambda: channel in engine.upstream.subscriber.channels)
        await one.ask(action="configure", replay=False)
        await one.ask(action="ping")
        assert channel in engine.upstream.subscriber.channels
    await until(lambda: channel not in engine.upstream.subscriber.channels)


async def test_an_invalid_state_is_ignored(
    server: RunningServer, redis: Redis, publisher: FeedPublisher
) -> None:
    async with talking(server.stream) as talk:
        await talk.ask(action="configure", replay=True)
        await talk.ask(action="ping")
        await redis.publish(keys.replay_states("live"), b'{"state":"rewinding"}')
        async with playing(redis, publisher, Recorded(0, 1000)):
            await state_from(talk, "playing")


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
async def test_the_accounts_of_a_client_balance_after_a_seek_back(
    server: RunningServer, redis: Redis, publisher: FeedPublisher, encoding: str
) -> None:
    gaps: list[Gap] = []
    async with connect(server.stream, encoding=encoding, on_gap=gaps.append) as stream:
        await stream.subscribe(trades=["ES"])
        async with asyncio.timeout(20), playing(redis, publisher, Recorded(*range(900))) as replay:
            await replay.execute(StepCommand(id="x", ticks=600))
            assert [(await anext(stream)).seq for _ in range(600)] == [*range(1, 601)]
            await replay.execute(SeekCommand(id="x", position=at(200).rfc3339()))
            await replay.execute(StepCommand(id="x", ticks=500))
            ticks = [await anext(stream) for _ in range(500)]
        assert [tick.seq for tick in ticks] == [*range(1, 501)]
        assert (ticks[0].time, ticks[-1].time) == (at(200), at(699))
        report = stream.report()
    assert [(gap.reason, gap.symbol) for gap in gaps] == [("epoch", "ES")]
    assert report.balanced


async def test_replays_survive_an_outage_of_redis(settings: Settings, runtime_dir: Path) -> None:
    async with own_store(runtime_dir) as store:
        await run_through_an_outage(store, settings)


async def run_through_an_outage(store: OwnStore, settings: Settings) -> None:
    async with (
        asyncio.timeout(40),
        running_server(settings, store.url) as server,
        make_client(store.url) as redis,
        FeedPublisher(redis, "live", settings, waits=True) as publisher,
        playing(redis, publisher, Recorded(*range(9000))) as replay,
        talking(server.stream) as talk,
    ):
        await talk.ask(action="configure", replay=True)
        await state_from(talk, "playing")
        store.kill()
        await until(lambda: publisher.is_away)
        await store.start()
        await until(lambda: not publisher.is_away)
        before = replay.state.position
        while True:
            state = await state_from(talk, "playing")
            if str(state["position"]) > before.rfc3339():
                break
        while True:
            with suppress(ReplayFailed):  # It takes a moment until it listens again.
                assert (await steer(redis, "live", {"do": "status"})).position > before
                break
