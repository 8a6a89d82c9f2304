from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from redis.asyncio import Redis

from producers.recordings.formats import open_recording
from producers.simulation.merging import MergedSource
from producers.simulation.replay import Replay, ReplayOptions
from tests.builders import bar, quote, trade, trades
from tests.conftest import until
from tests.recorded import Recorded, at, places
from tests.tickcast.tapes.builders import a_tape
from tickcast.broker import keys
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.replays import (
    PauseCommand,
    ReplayControl,
    SeekCommand,
    SpeedCommand,
    StepCommand,
    read_state,
    steer,
)
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import InvalidSettings, ReplayFailed
from tickcast.wire.playback import MAX_SPEED, Player, ReplayMode, TickSource
from tickcast.wire.ticks import DEFAULT_FEED, StreamKey, Tick
from tickcast.wire.times import Time

ES = StreamKey(DEFAULT_FEED, "trades", "ES")


@pytest.fixture
async def publisher(redis: Redis, settings: Settings) -> AsyncIterator[FeedPublisher]:
    async with FeedPublisher(redis, DEFAULT_FEED, settings, waits=True) as publisher:
        yield publisher


def replay_of(
    redis: Redis,
    publisher: FeedPublisher,
    source: TickSource[Tick],
    options: ReplayOptions | None = None,
    *,
    speed: float = MAX_SPEED,
    loop: bool = False,
) -> Replay:
    player = Player(source, time.monotonic(), speed=speed, loop=loop)
    return Replay(player, publisher, ReplayControl(redis, DEFAULT_FEED), options or ReplayOptions())


@asynccontextmanager
async def running(replay: Replay) -> AsyncIterator[Replay]:
    task = asyncio.create_task(replay.run())
    try:
        async with asyncio.timeout(20):
            yield replay
    finally:
        await cancel_and_wait([task])


async def published(redis: Redis) -> list[Tick]:
    """Return the history of the current epoch."""
    history = await Store(redis).history(ES, 0)
    return [tick for batch in history.batches for tick in batch.ticks]


async def until_published(redis: Redis, count: int) -> list[Tick]:
    while len(ticks := await published(redis)) < count:
        await asyncio.sleep(0.005)
    return ticks


async def test_it_plays_to_the_end_and_removes_its_state(
    redis: Redis, publisher: FeedPublisher
) -> None:
    replay = replay_of(redis, publisher, Recorded(*range(1200)))
    await replay.run()
    assert replay.count == publisher.published == 1200
    assert places(await published(redis)) == list(range(1200))
    assert await read_state(redis, DEFAULT_FEED) is None


async def test_it_keeps_to_the_schedule(redis: Redis, publisher: FeedPublisher) -> None:
    began = time.monotonic()
    await replay_of(redis, publisher, Recorded(0, 1, 1, 3), speed=10).run()
    assert time.monotonic() - began >= 0.299


class Held(FeedPublisher):
    """Its ticks are in transit for as long as a test needs."""

    arrived: asyncio.Event

    async def flush(self) -> None:
        await self.arrived.wait()
        await super().flush()


async def test_announcements_do_not_overtake_the_last_ticks(
    redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producers.simulation.replay.ANNOUNCE_EVERY_S", 0.01)
    states = redis.pubsub(ignore_subscribe_messages=True)
    await states.subscribe(keys.replay_states(DEFAULT_FEED))

    async def heard() -> str:
        while (message := await states.get_message(timeout=5)) is None:
            pass
        mode: str = json.loads(message["data"])["state"]
        return mode

    publisher = Held(redis, DEFAULT_FEED, settings, waits=True)
    publisher.arrived = asyncio.Event()
    async with publisher, running(replay_of(redis, publisher, Recorded(0, 1))) as replay:
        await until(lambda: replay.state.mode is ReplayMode.ENDED)
        assert {await heard() for _ in range(5)} == {"playing"}
        publisher.arrived.set()
        while await heard() != "ended":
            pass
    await states.aclose()  # type: ignore[no-untyped-call]


async def test_a_limit_and_a_rate_are_kept(redis: Redis, publisher: FeedPublisher) -> None:
    began = time.monotonic()
    replay = replay_of(redis, publisher, Recorded(*range(99)), ReplayOptions(max_rate=20, limit=5))
    await replay.run()
    assert replay.count == 5
    assert time.monotonic() - began >= 0.199


async def test_the_same_recording_has_the_same_hash(redis: Redis, publisher: FeedPublisher) -> None:
    hashes = []
    ticks = []
    for speed in (MAX_SPEED, 5000.0):
        source = Recorded(*range(700))
        replay = replay_of(redis, publisher, source, ReplayOptions(hashed=True), speed=speed)
        await replay.run()
        hashes.append(replay.hashes())
        ticks.append(await published(redis))
    assert hashes[0] == hashes[1]
    assert list(hashes[0]) == ["trades/ES"]
    assert ticks[0] == ticks[1], "with their numbers: each replay has an epoch of its own"
    other = replay_of(redis, publisher, Recorded(*range(699)), ReplayOptions(hashed=True))
    await other.run()
    assert other.hashes() != hashes[0]


async def test_the_hash_is_that_of_a_tape(
    redis: Redis, publisher: FeedPublisher, tmp_path: Path
) -> None:
    tape = a_tape(tmp_path, Recorded(*range(50)).ticks)
    source = open_recording(tape.path, None, {}, lambda line, error: None)
    replay = replay_of(redis, publisher, source, ReplayOptions(hashed=True))
    await replay.run()
    assert replay.hashes() == {"trades/ES": tape.manifest.streams[0].sha256}


async def test_after_a_seek_back_numbers_start_over(redis: Redis, publisher: FeedPublisher) -> None:
    store = Store(redis)
    source = Recorded(*(each / 100 for each in range(400)))
    async with running(replay_of(redis, publisher, source, speed=0.01)) as replay:
        assert (await replay.execute(StepCommand(id="x", ticks=300))).position == at(2.99)
        (before,) = await store.heads([ES])
        assert before.seq == 300
        state = await replay.execute(SeekCommand(id="x", position="-2s"))
        assert (state.mode, state.position) == (ReplayMode.PAUSED, at(0.99))
        assert await store.epoch(DEFAULT_FEED) > before.epoch
        await replay.execute(StepCommand(id="x", ticks=3))
        (after,) = await store.heads([ES])
        assert (after.epoch, after.seq) == (await store.epoch(DEFAULT_FEED), 3)
        assert places(await published(redis)) == [99, 100, 101]
        await replay.execute(SeekCommand(id="x", position=at(3).rfc3339()))
        await replay.execute(StepCommand(id="x"))
        assert places(await published(redis)) == [99, 100, 101, 300]


async def test_after_a_seek_back_later_ticks_are_gone(
    redis: Redis, publisher: FeedPublisher
) -> None:
    source = MergedSource([Recorded(*range(100)), Recorded(0, 50, symbol="NQ")])
    quiet = ES._replace(symbol="NQ")
    async with running(replay_of(redis, publisher, source, speed=0.01)) as replay:
        await replay.execute(StepCommand(id="x", ticks=80))
        before = await Store(redis).heads([ES, quiet])
        assert [head.seq for head in before] == [78, 2]
        await replay.execute(SeekCommand(id="x", position=int(at(10))))
        after = await Store(redis).heads([ES, quiet])
        assert [(head.seq, head.latest) for head in after] == [(0, None), (0, None)]
        assert {head.epoch for head in after} == {await Store(redis).epoch(DEFAULT_FEED)}


class Slow(Recorded):
    """A recording whose seeks block until the test releases them."""

    def __init__(self, *seconds: float) -> None:
        super().__init__(*seconds)
        self.requested, self.found = threading.Event(), threading.Event()

    def read(self, start: Time | None) -> Iterator[Tick]:
        if start is not None:
            self.requested.set()
            assert self.found.wait(20)
        return super().read(start)


async def test_a_long_seek_blocks_no_other_command(redis: Redis, publisher: FeedPublisher) -> None:
    source = Slow(0, 1000, 2000)
    async with running(replay_of(redis, publisher, source, speed=1)) as replay:
        await until_published(redis, 1)
        seeking = asyncio.create_task(replay.execute(SeekCommand(id="x", position=int(at(1500)))))
        while not source.requested.is_set():
            await asyncio.sleep(0.005)
        assert (await until_steered(redis, {"do": "status"})).mode is ReplayMode.PLAYING
        assert not seeking.done()
        source.found.set()
        await seeking
        assert at(1500) <= replay.state.position < at(1510), "it goes on from when it is found"


async def test_losing_the_exclusive_right_ends_it(redis: Redis, publisher: FeedPublisher) -> None:
    replay = replay_of(redis, publisher, Recorded(0, 1000), speed=1)
    running = asyncio.create_task(replay.run())
    await until_published(redis, 1)
    await redis.hset(keys.replay(DEFAULT_FEED), "owner", "somebody else")
    with pytest.raises(ReplayFailed, match="another replay plays"):
        async with asyncio.timeout(10):
            await running
    assert await redis.hget(keys.replay(DEFAULT_FEED), "owner") == b"somebody else"


async def test_each_round_begins_an_epoch(redis: Redis, publisher: FeedPublisher) -> None:
    options = ReplayOptions(limit=25)
    await replay_of(redis, publisher, Recorded(*range(10)), options, loop=True).run()
    ticks = await published(redis)
    assert places(ticks) == list(range(5))
    assert [tick.seq for tick in ticks] == [1, 2, 3, 4, 5]


async def test_retimed_rounds_continue_in_the_present(
    redis: Redis, publisher: FeedPublisher
) -> None:
    began_ns = time.time_ns()
    source = Recorded(*(each / 100 for each in range(10)))
    options = ReplayOptions(retime=True, limit=25)
    await replay_of(redis, publisher, source, options, speed=1, loop=True).run()
    ticks = await published(redis)
    assert [tick.seq for tick in ticks] == list(range(1, 26))
    times = [tick.time for tick in ticks]
    assert times == sorted(times)
    assert began_ns <= times[0]
    assert times[-1] <= time.time_ns()
    spacing = {round((b - a) / 1e7) for a, b in pairwise(times[:10])}
    assert spacing == {1}, "as in the recording, to the nanosecond, however late they go out"


async def test_it_is_steered_through_redis(redis: Redis, publisher: FeedPublisher) -> None:
    async with running(replay_of(redis, publisher, Recorded(0, 1000, 2000), speed=1)):
        await until_published(redis, 1)
        while await read_state(redis, DEFAULT_FEED) is None:
            await asyncio.sleep(0.005)
        assert (await until_steered(redis, {"do": "pause"})).mode is ReplayMode.PAUSED
        stored = await read_state(redis, DEFAULT_FEED)
        assert stored is not None
        assert stored.mode is ReplayMode.PAUSED
        state = await steer(redis, DEFAULT_FEED, {"do": "step", "ticks": 1})
        assert state.position == at(1000)
        assert len(await published(redis)) == 2
        for command, words in (
            ({"do": "speed", "speed": 0}, "a speed is"),
            ({"do": "speed", "speed": "fast"}, "a speed is"),
            ({"do": "seek", "position": "soon"}, "neither a time nor an offset"),
        ):
            with pytest.raises(ReplayFailed, match=words):
                await steer(redis, DEFAULT_FEED, command)
        state = await steer(redis, DEFAULT_FEED, {"do": "speed", "speed": "max"})
        assert (state.mode, state.speed) == (ReplayMode.PAUSED, MAX_SPEED)
        await steer(redis, DEFAULT_FEED, {"do": "resume"})
        await until_published(redis, 3)


async def until_steered(redis: Redis, command: dict[str, object]):  # type: ignore[no-untyped-def]
    """Retry until the replay listens; return the answer."""
    while True:
        try:
            return await steer(redis, DEFAULT_FEED, command)
        except ReplayFailed:
            await asyncio.sleep(0.01)


async def test_a_second_replay_is_refused_and_disturbs_nothing(
    redis: Redis, publisher: FeedPublisher
) -> None:
    async with running(replay_of(redis, publisher, Recorded(0, 1000), speed=1)) as first:
        await until_published(redis, 1)
        with pytest.raises(ReplayFailed, match="another replay plays into the feed"):
            await replay_of(redis, publisher, Recorded(0)).run()
        assert (await first.execute(PauseCommand(id="x"))).mode is ReplayMode.PAUSED


async def test_with_stay_it_waits_at_the_end(redis: Redis, publisher: FeedPublisher) -> None:
    async with running(
        replay_of(redis, publisher, Recorded(0, 1), ReplayOptions(stay=True))
    ) as replay:
        await until_published(redis, 2)
        while replay.state.mode is not ReplayMode.ENDED:
            await asyncio.sleep(0.005)
        await replay.execute(SpeedCommand(id="x", speed=0.01))
        state = await replay.execute(SeekCommand(id="x", position=int(at(0))))
        assert state.mode is ReplayMode.PLAYING
        replay.stop()


async def test_commands_after_the_end_are_refused(redis: Redis, publisher: FeedPublisher) -> None:
    replay = replay_of(redis, publisher, Recorded(0, 1000), speed=1)
    asking = asyncio.create_task(replay.execute(PauseCommand(id="x")))
    await asyncio.sleep(0)
    replay.stop()
    await replay.run()
    with pytest.raises(ReplayFailed, match="the replay is over"):
        await asking


# ------------------------------------------------------------------------ ticks of other publishers


async def publish(redis: Redis, settings: Settings, *ticks: Tick) -> None:
    async with FeedPublisher(redis, DEFAULT_FEED, settings) as publisher:
        await publisher.publish(ticks)


async def replayed(
    redis: Redis, settings: Settings, options: ReplayOptions | None = None, *symbols: str
) -> int:
    """Replay a few ticks into a feed that must not be overwritten; return how many."""
    source = Recorded(0, symbol=symbols[0]) if symbols else Recorded(0, 1, 2)
    async with FeedPublisher(redis, DEFAULT_FEED, settings, waits=True) as publisher:
        replay = replay_of(redis, publisher, source, options or ReplayOptions(overwrite=False))
        await replay.run()
        return replay.count


async def test_a_feed_that_others_publish_into_is_not_overwritten(
    redis: Redis, settings: Settings
) -> None:
    await publish(redis, settings, *trades(30, "BTC-USD"), quote("NQ"))
    with pytest.raises(InvalidSettings) as refused:
        await replayed(redis, settings)
    assert str(refused.value) == (
        "the feed live holds 2 streams that no replay has published, such as quotes/NQ, and the"
        " replay would discard their history: choose another feed with --feed NAME, or give"
        " --overwrite"
    )
    (head,) = await Store(redis).heads([StreamKey(DEFAULT_FEED, "trades", "BTC-USD")])
    assert head.seq == 30
    assert await read_state(redis, DEFAULT_FEED) is None
    # These options discard nothing.
    assert await replayed(redis, settings, ReplayOptions(overwrite=False, retime=True)) == 3
    assert await replayed(redis, settings, ReplayOptions(overwrite=True)) == 3
    (head,) = await Store(redis).heads([StreamKey(DEFAULT_FEED, "trades", "BTC-USD")])
    assert head.seq == 0
    # Nothing is left of the other ticks.
    assert await replayed(redis, settings) == 3


async def test_a_replay_can_be_repeated(redis: Redis, settings: Settings) -> None:
    for _ in range(3):
        assert await replayed(redis, settings) == 3
    assert await replayed(redis, settings, None, "NQ") == 1
    assert await replayed(redis, settings, ReplayOptions(overwrite=False, retime=True)) == 3
    assert await replayed(redis, settings) == 3
    # Bars are made from the replayed trades.
    await publish(redis, settings, bar("ES"))
    assert await replayed(redis, settings) == 3
    await publish(redis, settings, bar("NQ"), bar("YM"))
    with pytest.raises(InvalidSettings, match=r"holds 1 stream that .* bars/YM"):
        await replayed(redis, settings)


async def test_ticks_published_after_a_replay_are_not_overwritten(
    redis: Redis, settings: Settings
) -> None:
    """This applies to the streams of the replay and to others."""
    for tick in (trade("ES"), trade("NQ")):
        assert await replayed(redis, settings, ReplayOptions()) == 3
        await publish(redis, settings, tick)
        with pytest.raises(InvalidSettings, match=f"such as trades/{tick.symbol}"):
            await replayed(redis, settings)
