"""Replay a recording: play it into a publisher and execute commands meanwhile."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from tickcast.broker.publish_buffer import BATCH_TICKS_MAX
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.replays import (
    ControlCommand,
    PauseCommand,
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

ANNOUNCE_EVERY_S: Final = 1.0
_COMMANDS_MAX: Final = 100

logger = logging.getLogger("tickcast.replay")


@dataclass
class ReplayOptions:
    """Options of a replay that its player doesn't know about."""

    # Replace the recorded time of each tick with the time at which it is due.
    retime: bool = False
    # The maximum number of ticks per second, evenly spaced.
    max_rate: float | None = None
    # End after this number of ticks.
    limit: int | None = None
    # Wait at the end for further commands, such as a seek.
    stay: bool = False
    # Keep a hash of each stream.
    hashed: bool = False
    # Begin a new epoch even if that discards ticks that no replay has published.
    overwrite: bool = True


class _PendingCommand(NamedTuple):
    command: ControlCommand
    done: asyncio.Future[ReplayState]


class Replay:
    """One replay into one feed."""

    def __init__(
        self,
        player: Player[Tick],
        publisher: FeedPublisher,
        control: ReplayControl,
        options: ReplayOptions,
    ) -> None:
        self._player = player
        self._publisher = publisher
        self._control = control
        self._options = options
        self._pending: deque[_PendingCommand] = deque()
        # Set when a command arrives or the replay is stopped.
        self._wakeup = asyncio.Event()
        self._is_stopped = False
        # Whether the feed has no streams from other producers.
        self._is_alone = False
        # The number of rewinds for which an epoch has begun.
        self._epochs = 0
        self._announced_mode: ReplayMode = player.state(time.monotonic()).mode
        # With `max_rate`, when the next tick may be published.
        self._next_free_s = time.monotonic()
        # With `retime`, the wall clock at 0 of the monotonic one, and the latest time of a tick.
        self._wall_ns = time.time_ns() - round(time.monotonic() * NS_PER_SECOND)
        self._latest_ns = 0
        self._hashes: dict[tuple[str, str], hashlib._Hash] = {}
        # The number of ticks taken from the player so far.
        self.count = 0

    @property
    def state(self) -> ReplayState:
        """The current state of the player."""
        return self._player.state(time.monotonic())

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each stream's ticks as JSON lines without `seq`.

        The keys have the form `channel/symbol`.

        Source: docs/recording.md, "The content hash".
        """
        return {"/".join(key): digest.hexdigest() for key, digest in sorted(self._hashes.items())}

    async def execute(self, command: ControlCommand) -> ReplayState:
        """Execute a command and return the state afterwards. Raises ReplayFailed."""
        if isinstance(command, StatusCommand):
            return self.state
        if len(self._pending) >= _COMMANDS_MAX:
            raise ReplayFailed("too many commands are waiting")
        pending = _PendingCommand(command, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        self._wakeup.set()
        return await pending.done

    def stop(self) -> None:
        """End as soon as all ticks already taken from the player are published."""
        self._is_stopped = True
        self._wakeup.set()

    async def run(self) -> None:
        """Play to the end.

        Raises:
            ReplayFailed: another replay is using the feed.
            InvalidSettings: the feed holds streams from other producers that must not be
                overwritten.
            InvalidRecording: the recording turns out to be damaged.
            BrokerUnavailable, BrokerUnsuitable: see `FeedPublisher`.
        """
        others = await self._control.streams.find_others() if self._publisher.has_streams else []
        if others and not (self._options.overwrite or self._options.retime):
            raise InvalidSettings(_describe_others(self._control.feed, others))
        self._is_alone = not others
        await self._control.announce(self.state)
        tasks = [
            asyncio.create_task(self._play(), name="replay"),
            asyncio.create_task(self._announce_forever(), name="announcements"),
            asyncio.create_task(self._control.serve_commands(self.execute), name="commands"),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await cancel_and_wait(tasks)
            self._refuse_pending()
            with _may_fail("announce the end of the replay"):
                await self._control.withdraw(self.state._replace(mode=ReplayMode.ENDED))

    def _refuse_pending(self) -> None:
        while self._pending:
            done = self._pending.popleft().done
            if not done.done():
                done.set_exception(ReplayFailed("the replay is over"))
                done.exception()  # Mark it as retrieved: the caller may no longer wait for it.

    # -- playback

    async def _play(self) -> None:
        if self._publisher.has_streams and not self._options.retime:
            # Times go back, so ticks already in the streams belong to another epoch.
            await self._begin_epoch()
        elif self._is_alone:
            await self._record_origin(alone=False)
        while not self._is_over():
            while self._pending:
                await self._execute_pending(self._pending.popleft())
            if self._epochs != self._epochs_due():
                await self._begin_epoch()
            elif (wait_s := self._wait_s()) is None or wait_s > 0:
                await self._sleep(wait_s)
            else:
                await self._publish_due()
            if self.state.mode is not self._announced_mode:
                await self._announce_change()
        await self._publisher.flush()

    def _is_over(self) -> bool:
        limit = self._options.limit
        if self._is_stopped or (limit is not None and self.count >= limit):
            return True
        return self.state.mode is ReplayMode.ENDED and not self._options.stay

    def _wait_s(self) -> float | None:
        """Return the seconds until a tick is due; None means to wait for a command."""
        due_s = self._player.next_due_s
        return None if due_s is None else max(due_s, self._next_free_s) - time.monotonic()

    async def _sleep(self, wait_s: float | None) -> None:
        """Sleep until a command arrives, at most this long."""
        self._wakeup.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wakeup.wait()

    async def _publish_due(self) -> None:
        now_s = time.monotonic()
        schedule = self._player.schedule
        ticks = self._player.pop_due(now_s, self._batch_size(now_s))
        if self._options.retime:
            self._retime(ticks, lambda time: min(schedule.when(time), now_s))
        await self._publish(ticks)

    def _batch_size(self, now_s: float) -> int:
        """Return how many ticks may be published now."""
        size, limit, rate = BATCH_TICKS_MAX, self._options.limit, self._options.max_rate
        if limit is not None:
            size = min(size, limit - self.count)
        if rate is not None:
            # The rate limit runs from when ticks were due, so that a late replay catches up.
            self._next_free_s = max(self._next_free_s, self._player.next_due_s or now_s)
            size = min(size, 1 + int((now_s - self._next_free_s) * rate))
        return size

    def _retime(self, ticks: list[Tick], when: Callable[[Time], float]) -> None:
        for tick in ticks:
            at_ns = self._wall_ns + round(when(tick.time) * NS_PER_SECOND)
            self._latest_ns = max(self._latest_ns, at_ns)
            tick.time = Time(self._latest_ns)

    async def _publish(self, ticks: list[Tick]) -> None:
        self.count += len(ticks)
        if self._options.max_rate is not None:
            self._next_free_s += len(ticks) / self._options.max_rate
        if self._options.hashed:
            for tick in ticks:
                key = (channel_of(tick), tick.symbol)
                if key not in self._hashes:
                    self._hashes[key] = hashlib.sha256()
                self._hashes[key].update(encode(tick, Encoding.JSON) + b"\n")
        await self._publisher.publish(ticks, checked=True)  # Every source validates its ticks.
        # `publish` may return at once. Let announcements and commands run, too.
        await asyncio.sleep(0)

    # -- epochs

    def _epochs_due(self) -> int:
        """Return the number of epochs that should have begun: one each time that times go back."""
        rewinds = self._player.rewinds
        return rewinds - self._player.loops if self._options.retime else rewinds

    async def _begin_epoch(self) -> None:
        self._epochs = self._epochs_due()
        await self._publisher.begin_epoch()
        await self._record_origin(alone=True)

    async def _record_origin(self, *, alone: bool) -> None:
        """Record the origin of the ticks, so that a later replay into the feed isn't refused."""
        with _may_fail("record that the feed is replayed"):
            await self._control.streams.add_publisher(self._publisher.name, alone=alone)

    # -- commands and announcements

    async def _execute_pending(self, pending: _PendingCommand) -> None:
        """Execute a command, and answer when all ticks from before are published."""
        try:
            if isinstance(pending.command, SeekCommand):
                # Unpacking a large file up to the new position may take long. Nothing else changes
                # the player meanwhile, and announcements of its state stay accurate enough.
                ticks = await asyncio.to_thread(self._apply, pending.command)
                self._player.postpone(time.monotonic())
            else:
                ticks = self._apply(pending.command)
        except ValueError as error:
            if not pending.done.done():
                pending.done.set_exception(ReplayFailed(str(error)))
            return
        if ticks:
            await self._publish(ticks)
        await self._announce_change()
        if not pending.done.done():
            pending.done.set_result(self.state)

    def _apply(self, command: ControlCommand) -> list[Tick]:
        """Apply a command to the player; return the ticks that it releases. Raises ValueError."""
        player, now_s = self._player, time.monotonic()
        match command:
            case PauseCommand():
                player.pause(now_s)
            case ResumeCommand():
                player.resume(now_s)
            case SeekCommand(position=position):
                player.seek(resolve_time(position, self.state.position), now_s)
            case SpeedCommand(speed=speed):
                player.set_speed(parse_speed(speed), now_s)
            case StepCommand(ticks=count):
                ticks = player.step(count, now_s)
                if self._options.retime:
                    self._retime(ticks, lambda time: now_s)
                return ticks
        return []

    async def _announce_change(self) -> None:
        """Announce a change after the ticks that precede it."""
        if self._epochs != self._epochs_due():
            await self._begin_epoch()
        await self._publisher.flush()
        self._announced_mode = self.state.mode
        with _may_fail("announce a change"):
            await self._control.announce(self.state)

    async def _announce_forever(self) -> None:
        while True:
            await asyncio.sleep(ANNOUNCE_EVERY_S)
            with _may_fail("announce the position of the replay"):
                # Keep the announced mode: a change must not overtake ticks still in transit.
                await self._control.announce(self.state._replace(mode=self._announced_mode))


@contextmanager
def _may_fail(what: str) -> Iterator[None]:
    """Continue if Redis is away: a replay does not depend on these calls."""
    try:
        yield
    except BrokerUnavailable as error:
        logger.debug("could not %s: %s", what, error)


def _describe_others(feed: str, others: Sequence[StreamKey]) -> str:
    count = f"{len(others):,} stream{'s'[: len(others) != 1]}"
    return (
        f"the feed {feed} holds {count} that no replay has published, such as"
        f" {others[0].channel}/{others[0].symbol}, and the replay would discard their history:"
        " choose another feed with --feed NAME, or give --overwrite"
    )
