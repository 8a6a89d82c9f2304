"""Replay a recording: play a deck into a publisher and obey commands meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tickcast.broker.publish_buffer import BATCH_TICKS_MAX
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.replays import (
    PauseCommand,
    ReplayCommand,
    ReplayControl,
    ResumeCommand,
    SeekCommand,
    SpeedCommand,
    StatusCommand,
    StepCommand,
)
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import BrokerUnavailable, InvalidSettings, ReplayFailed
from tickcast.wire.playback import Player, ReplayMode, ReplayState, parse_speed, resolve_time
from tickcast.wire.ticks import StreamKey, Tick, channel_of
from tickcast.wire.times import NS_PER_SECOND, Time

ANNOUNCE_S: Final = 1.0
_COMMANDS_MAX: Final = 100

logger = logging.getLogger("tickcast.replay")


@dataclass
class ReplayOrder:
    """Options of a replay that the deck doesn't know about.

    Attributes:
        retime: replace the recorded time of each tick with the time at which it is due.
        max_rate: the maximum number of ticks per second, evenly spaced.
        limit: end after this number of ticks.
        stay: wait at the end for further commands, such as a seek.
        hashed: keep a hash of each stream.
        overwrite: begin a new epoch even if that discards ticks that no replay has published.
    """

    retime: bool = False
    max_rate: float | None = None
    limit: int | None = None
    stay: bool = False
    hashed: bool = False
    overwrite: bool = True


@dataclass
class _Asked:
    command: ReplayCommand
    done: asyncio.Future[ReplayState] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Replay:
    """One replay into one feed.

    Args:
        clock: returns monotonic time in seconds.

    Attributes:
        count: the number of ticks taken from the deck so far.
    """

    def __init__(
        self,
        deck: Player[Tick],
        publisher: FeedPublisher,
        stage: ReplayControl,
        order: ReplayOrder,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deck = deck
        self._publisher = publisher
        self._stage = stage
        self._order = order
        self._clock = clock
        self._asked: deque[_Asked] = deque()
        self._woken = asyncio.Event()
        self._stopped = False
        self._is_alone = False
        self._epochs = 0
        self._told: ReplayMode = deck.state(clock()).mode
        self._free_s = clock()
        self._wall_ns = time.time_ns() - round(clock() * NS_PER_SECOND)
        self._newest = 0
        self._hashes: dict[tuple[str, str], hashlib._Hash] = {}
        self.count = 0

    @property
    def state(self) -> ReplayState:
        """The current state of the deck."""
        return self._deck.state(self._clock())

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each stream's ticks as JSON lines without `seq`.

        The keys have the form `channel/symbol`.

        Source: docs/recording.md, "The content hash".
        """
        return {"/".join(key): digest.hexdigest() for key, digest in sorted(self._hashes.items())}

    async def ask(self, command: ReplayCommand) -> ReplayState:
        """Carry out a command and return the state afterwards.

        Raises:
            ReplayFailed: the command can't be carried out.
        """
        if isinstance(command, StatusCommand):
            return self.state
        if len(self._asked) >= _COMMANDS_MAX:
            raise ReplayFailed("too many commands are waiting")
        asked = _Asked(command)
        self._asked.append(asked)
        self._woken.set()
        return await asked.done

    def stop(self) -> None:
        """End as soon as all ticks already taken from the deck are published."""
        self._stopped = True
        self._woken.set()

    async def run(self) -> None:
        """Play to the end.

        Raises:
            ReplayFailed: another replay is using the feed.
            InvalidSettings: the feed holds streams from other producers that must not be
                overwritten.
            InvalidRecording: the recording turns out to be damaged.
            BrokerUnavailable, BrokerUnsuitable: see `FeedPublisher`.
        """
        others = await self._stage.origins.others() if self._publisher.has_streams else []
        if others and not (self._order.overwrite or self._order.retime):
            raise InvalidSettings(_describe_others(self._stage.feed, others))
        self._is_alone = not others
        await self._stage.announce(self.state)
        tasks = [
            asyncio.create_task(self._play(), name="replay"),
            asyncio.create_task(self._announce_forever(), name="announcements"),
            asyncio.create_task(self._stage.serve(self.ask), name="commands"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await cancel_and_wait(tasks)
            self._refuse_all()
            await self._leave()

    async def _leave(self) -> None:
        try:
            await self._stage.leave(self.state._replace(mode=ReplayMode.ENDED))
        except BrokerUnavailable as error:
            logger.debug("could not say that the replay is over: %s", error)

    def _refuse_all(self) -> None:
        while self._asked:
            done = self._asked.popleft().done
            if not done.done():
                done.set_exception(ReplayFailed("the replay is over"))
                done.exception()  # Mark it as retrieved: the caller may no longer wait for it.

    # -- the flow

    async def _play(self) -> None:
        if self._publisher.has_streams and not self._order.retime:
            # Times go back, so ticks already in the streams belong to another epoch.
            await self._begin_epoch()
        elif self._is_alone:
            await self._note(alone=False)
        while not self._is_over():
            while self._asked:
                await self._carry_out(self._asked.popleft())
            if self._epochs != self._epochs_due():
                await self._begin_epoch()
            elif (wait_s := self._wait_s()) is None or wait_s > 0:
                await self._rest(wait_s)
            else:
                await self._give()
            if self.state.mode is not self._told:
                await self._tell()
        await self._publisher.drain()

    def _is_over(self) -> bool:
        limit = self._order.limit
        if self._stopped or (limit is not None and self.count >= limit):
            return True
        return self.state.mode is ReplayMode.ENDED and not self._order.stay

    def _wait_s(self) -> float | None:
        """Return the seconds until a tick is due; None means to wait for a command."""
        due_s = self._deck.next_due_s
        return None if due_s is None else max(due_s, self._free_s) - self._clock()

    async def _rest(self, wait_s: float | None) -> None:
        self._woken.clear()
        try:
            async with asyncio.timeout(wait_s):
                await self._woken.wait()
        except TimeoutError:
            pass

    async def _give(self) -> None:
        now_s = self._clock()
        schedule = self._deck.schedule
        ticks = self._deck.pop_due(now_s, self._room(now_s))
        if self._order.retime:
            self._retime(ticks, lambda at: min(schedule.when(at), now_s))
        await self._publish(ticks)

    def _room(self, now_s: float) -> int:
        """Return how many ticks may be published now."""
        most, limit, rate = BATCH_TICKS_MAX, self._order.limit, self._order.max_rate
        if limit is not None:
            most = min(most, limit - self.count)
        if rate is not None:
            # The rate limit runs from when ticks were due, so that a late replay catches up.
            self._free_s = max(self._free_s, self._deck.next_due_s or now_s)
            most = min(most, 1 + int((now_s - self._free_s) * rate))
        return most

    def _retime(self, ticks: list[Tick], when: Callable[[Time], float]) -> None:
        for tick in ticks:
            at_ns = self._wall_ns + round(when(tick.time) * NS_PER_SECOND)
            self._newest = max(self._newest, at_ns)
            tick.time = Time(self._newest)

    async def _publish(self, ticks: list[Tick]) -> None:
        self.count += len(ticks)
        if self._order.max_rate is not None:
            self._free_s += len(ticks) / self._order.max_rate
        if self._order.hashed:
            self._hash(ticks)
        await self._publisher.publish(ticks, checked=True)  # Every source validates its ticks.
        await asyncio.sleep(0)

    def _hash(self, ticks: list[Tick]) -> None:
        for tick in ticks:
            key = (channel_of(tick), tick.symbol)
            if key not in self._hashes:
                self._hashes[key] = hashlib.sha256()
            self._hashes[key].update(encode(tick, Encoding.JSON) + b"\n")

    # -- epochs

    def _epochs_due(self) -> int:
        """Return the number of epochs that should have begun: one each time that times go back."""
        rewinds = self._deck.rewinds
        return rewinds - self._deck.loops if self._order.retime else rewinds

    async def _begin_epoch(self) -> None:
        self._epochs = self._epochs_due()
        await self._publisher.begin_epoch()
        await self._note(alone=True)

    async def _note(self, *, alone: bool) -> None:
        """Record the origin of the ticks, so that a later replay into the feed isn't refused."""
        try:
            await self._stage.origins.note(self._publisher.name, alone=alone)
        except BrokerUnavailable as error:
            logger.debug("could not note that the feed is replayed: %s", error)

    # -- commands and announcements

    async def _carry_out(self, asked: _Asked) -> None:
        """Carry out a command, and answer when all ticks from before are published."""
        try:
            if isinstance(asked.command, SeekCommand):
                # Unpacking a large file up to the new position may take long. Nothing else changes
                # the deck meanwhile, and announcements of its state stay accurate enough.
                ticks = await asyncio.to_thread(self._obey, asked.command)
                self._deck.postpone(self._clock())
            else:
                ticks = self._obey(asked.command)
        except ValueError as error:
            if not asked.done.done():
                asked.done.set_exception(ReplayFailed(str(error)))
            return
        if ticks:
            await self._publish(ticks)
        await self._tell()
        if not asked.done.done():
            asked.done.set_result(self.state)

    def _obey(self, command: ReplayCommand) -> list[Tick]:
        """Apply a command to the deck and return the ticks that it releases.

        Raises:
            ValueError: the command makes no sense.
        """
        deck, now_s = self._deck, self._clock()
        match command:
            case PauseCommand():
                deck.pause(now_s)
            case ResumeCommand():
                deck.resume(now_s)
            case SeekCommand(position=position):
                deck.seek(resolve_time(position, self.state.position), now_s)
            case SpeedCommand(speed=speed):
                deck.set_speed(parse_speed(speed), now_s)
            case StepCommand(ticks=count):
                ticks = deck.step(count, now_s)
                if self._order.retime:
                    self._retime(ticks, lambda at: now_s)
                return ticks
        return []

    async def _tell(self) -> None:
        """Announce a change after the ticks that precede it."""
        if self._epochs != self._epochs_due():
            await self._begin_epoch()
        await self._publisher.drain()
        self._told = self.state.mode
        try:
            await self._stage.announce(self.state)
        except BrokerUnavailable as error:
            logger.debug("could not tell of a change: %s", error)

    async def _announce_forever(self) -> None:
        while True:
            await asyncio.sleep(ANNOUNCE_S)
            try:
                # Keep the announced mode: a change must not overtake ticks still in transit.
                await self._stage.announce(self.state._replace(mode=self._told))
            except BrokerUnavailable as error:
                logger.debug("could not tell where the replay stands: %s", error)


def _describe_others(feed: str, others: Sequence[StreamKey]) -> str:
    count = f"{len(others):,} stream{'s'[: len(others) != 1]}"
    return (
        f"the feed {feed} holds {count} that no replay has published, such as"
        f" {others[0].channel}/{others[0].symbol}, and the replay would discard their history:"
        " choose another feed with --feed NAME, or give --overwrite"
    )
