"""Plays recorded ticks: decides which are due, with pause, seek, speed and step.

No I/O and no clock: the caller passes the time, in seconds on any monotonic clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterator, Mapping
from enum import Enum
from itertools import dropwhile
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from tickcast.wire.times import NS_PER_SECOND, Time

# The slowest and the fastest speed, as multiples of the original one.
SPEED_RANGE: Final = (0.01, 10_000.0)
# The speed that ignores the times of ticks: `max` in messages and on command lines.
MAX_SPEED: Final = math.inf
# Maximum number of ticks in one step.
STEPS_MAX: Final = 10_000

_OFFSET = re.compile(r"([+-])(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
_UNITS: Final = {"ms": 10**6, "s": NS_PER_SECOND, "m": 60 * NS_PER_SECOND,
                 "h": 3600 * NS_PER_SECOND, "d": 86_400 * NS_PER_SECOND}  # fmt: skip


class Timed(Protocol):
    """A tick, or an object that represents one."""

    @property
    def time(self) -> Time:
        """When it happened."""


T = TypeVar("T", bound=Timed)
T_co = TypeVar("T_co", bound=Timed, covariant=True)


class TickSource(Protocol[T_co]):
    """Recorded ticks that can be read from any point.

    Ticks come in the order of the file. A tick with an earlier time than one before it is due
    together with that one: a tick's *due time* is the greatest time up to and including it.
    """

    @property
    def first(self) -> Time:
        """The time of the first tick."""

    @property
    def last(self) -> Time:
        """The greatest time."""

    def read(self, start: Time | None) -> Iterator[T_co]:
        """Read from the first tick that is not before `start`; may begin with earlier ticks.

        The ticks belong to the caller.
        """


class ReplayMode(Enum):
    """What a replay is doing."""

    PLAYING = "playing"
    PAUSED = "paused"
    ENDED = "ended"


class ReplayState(NamedTuple):
    """The state of a replay.

    Attributes:
        position: time in the recording.
        speed: multiple of the original speed; infinity ignores the times of ticks.
        first, last: the part of the recording that is played.
    """

    mode: ReplayMode
    position: Time
    speed: float
    first: Time
    last: Time

    def to_fields(self) -> dict[str, Any]:
        """The fields of a `replay` message; see `docs/protocol.md`, section "Replays"."""
        return {
            "state": self.mode.value,
            "position": self.position,
            "speed": format_speed(self.speed),
            "from": self.first,
            "to": self.last,
        }

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> ReplayState:
        """Read the result of `to_fields`, with times in any form that messages use.

        Raises ValueError, KeyError or TypeError if the fields are not a valid state.
        """
        return cls(
            ReplayMode(fields["state"]),
            Time.from_wire(fields["position"]),
            parse_speed(fields["speed"]),
            Time.from_wire(fields["from"]),
            Time.from_wire(fields["to"]),
        )


class PlaybackSchedule(NamedTuple):
    """Maps recording time, in nanoseconds, to clock time, in seconds."""

    # When the replay was at `position`, on the caller's clock.
    since_s: float
    position: int
    speed: float

    def when(self, time: int) -> float:
        """When the replay reaches a time of the recording."""
        return self.since_s + (time - self.position) / NS_PER_SECOND / self.speed

    def position_at(self, now_s: float) -> int:
        """The time of the recording that is reached at a speed below `MAX_SPEED`."""
        return self.position + max(0, round((now_s - self.since_s) * self.speed * NS_PER_SECOND))


class Player(Generic[T]):
    """Plays a source by the times of its ticks.

    Args:
        now_s: when playback begins.
        speed: within `SPEED_RANGE`, or `MAX_SPEED`.
        start, end: the part to play; the whole source by default.
        loop: start over at the end.

    Raises:
        ValueError: there is nothing between `start` and `end`, or the speed is out of bounds.
    """

    def __init__(
        self,
        source: TickSource[T],
        now_s: float,
        *,
        speed: float = 1.0,
        start: Time | None = None,
        end: Time | None = None,
        loop: bool = False,
    ) -> None:
        self.first = source.first if start is None else Time(max(start, source.first))
        self.last = source.last if end is None else Time(min(end, source.last))
        if self.first > self.last:
            raise ValueError(
                f"no ticks in this range: the recording goes from {source.first.rfc3339()}"
                f" to {source.last.rfc3339()}"
            )
        if loop and self.first == self.last:
            raise ValueError("nothing to loop: all ticks have the same time")
        self._source = source
        self._loop = loop
        self._mode = ReplayMode.PLAYING
        # Changed by commands and loops only. Everything is computed from it, so that playback
        # catches up after a delay and delays do not accumulate.
        self.schedule = PlaybackSchedule(now_s, self.first, check_speed(speed))
        # How often playback has gone back, so that ticks are repeated, and how many of these
        # rewinds were loops at the end. Ticks returned by the `pop_due` call that rewinds come
        # before the rewind.
        self.rewinds = self.loops = 0
        self._read_from(self.first, now_s)

    def _read_from(self, position: Time, now_s: float) -> None:
        """Continue from `position`, starting now."""
        self.schedule = self.schedule._replace(since_s=now_s, position=position)
        self._reading = self._source.read(position if position > self._source.first else None)
        self._ticks = dropwhile(lambda tick: tick.time < position, self._reading)
        # The due time of the last tick that was returned.
        self._played: int | None = None
        self._next = next(self._ticks, None)
        self._next_due: int = self._next.time if self._next else self.last
        self._stop_at_end()

    def _stop_at_end(self) -> None:
        if self._next is None or self._next_due > self.last:
            self._next, self._next_due = None, self.last

    def close(self) -> None:
        """Close the file that is being read."""
        if isinstance(self._reading, Generator):
            self._reading.close()

    @property
    def mode(self) -> ReplayMode:
        """Whether it is playing, paused or ended."""
        return self._mode

    @property
    def next_due_s(self) -> float | None:
        """When the next tick or the end is due; None unless it is playing."""
        if self._mode is not ReplayMode.PLAYING:
            return None
        return self.schedule.when(self._next_due)

    def state(self, now_s: float) -> ReplayState:
        """The current state. If ticks are late, the position is that of the first late one."""
        return ReplayState(
            self._mode, self._position(now_s), self.schedule.speed, self.first, self.last
        )

    def pop_due(self, now_s: float, limit: int = 500) -> list[T]:
        """Return ticks that are due, at most `limit`; the next call returns the rest."""
        if self._mode is not ReplayMode.PLAYING:
            return []
        reached = self._reached(now_s)
        ticks = self._pop_until(reached, limit)
        if self._next is None and reached >= self.last:
            self._end(now_s)
        return ticks

    def _pop_until(self, reached: int, limit: int) -> list[T]:
        popped: list[T] = []
        # Local variables, because fast replays spend most of their time here.
        ticks, tick, due = self._ticks, self._next, self._next_due
        while tick is not None and due <= reached and len(popped) < limit:
            popped.append(tick)
            self._played = due
            tick = next(ticks, None)
            if tick is not None and tick.time > due:
                due = tick.time
        self._next, self._next_due = tick, due
        self._stop_at_end()
        return popped

    def _reached(self, now_s: float) -> int:
        """The time of the recording reached by now; it stops at the end."""
        if self.schedule.speed == MAX_SPEED:
            return self.last
        return min(self.schedule.position_at(now_s), self.last)

    def _position(self, now_s: float) -> Time:
        if self._mode is ReplayMode.PLAYING:
            return Time(min(self._reached(now_s), self._next_due))
        return Time(self.schedule.position)

    def _end(self, now_s: float) -> None:
        if not self._loop:
            self._mode = ReplayMode.ENDED
            self.schedule = self.schedule._replace(since_s=now_s, position=self.last)
            return
        # Start from the due time: otherwise the delay of each loop would add to the next.
        since_s = now_s if self.schedule.speed == MAX_SPEED else self.next_due_s or now_s
        self.rewinds += 1
        self.loops += 1
        self._read_from(self.first, since_s)

    # -- commands

    def postpone(self, now_s: float) -> None:
        """Postpone the beginning until now; call it before any tick was returned.

        That is right after creation or after a seek.
        """
        self.schedule = self.schedule._replace(since_s=now_s)

    def pause(self, now_s: float) -> None:
        """Pause playback."""
        if self._mode is ReplayMode.PLAYING:
            self.schedule = self.schedule._replace(since_s=now_s, position=self._position(now_s))
            self._mode = ReplayMode.PAUSED

    def resume(self, now_s: float) -> None:
        """Resume playback after a pause."""
        if self._mode is ReplayMode.PAUSED:
            self.schedule = self.schedule._replace(since_s=now_s)
            self._mode = ReplayMode.PLAYING

    def seek(self, position: Time, now_s: float) -> None:
        """Continue from another position, limited to the part being played.

        A player that has ended plays again.
        """
        position = Time(min(max(position, self.first), self.last))
        has_played = self._played is not None and position <= self._played
        if position < self._position(now_s) or has_played:
            self.rewinds += 1
        if self._mode is ReplayMode.ENDED:
            self._mode = ReplayMode.PLAYING
        self._read_from(position, now_s)

    def set_speed(self, speed: float, now_s: float) -> None:
        """Change the speed. Raises ValueError."""
        speed = check_speed(speed)
        if self._mode is ReplayMode.PLAYING:
            at_max = self.schedule.speed == MAX_SPEED
            position = self._position(now_s) if at_max else self._reached(now_s)
            self.schedule = self.schedule._replace(since_s=now_s, position=position)
        self.schedule = self.schedule._replace(speed=speed)

    def step(self, count: int, now_s: float) -> list[T]:
        """Pause and return the next ticks, regardless of when they are due. Raises ValueError."""
        if not 1 <= count <= STEPS_MAX:
            raise ValueError(f"a step is 1 to {STEPS_MAX} ticks")
        self.pause(now_s)
        if self._mode is ReplayMode.ENDED:
            return []
        ticks = self._pop_until(self.last, count)
        if ticks and self._played is not None:
            position = max(self.schedule.position, self._played)
            self.schedule = self.schedule._replace(since_s=now_s, position=position)
        if self._next is None:
            self._end(now_s)
        return ticks


# -- speeds and offsets


def check_speed(speed: float) -> float:
    """Return the speed if it is valid.

    Raises:
        ValueError: it is out of bounds.
    """
    if speed == MAX_SPEED:
        return MAX_SPEED
    slowest, fastest = SPEED_RANGE
    if not slowest <= speed <= fastest:
        raise ValueError(f"a speed is a number from {slowest:g} to {fastest:g}, or max")
    return float(speed)


def parse_speed(value: object) -> float:
    """Parse a speed: a number, or `max`.

    Raises:
        ValueError: it is neither, or out of bounds.

    >>> parse_speed("0.5"), parse_speed("max")
    (0.5, inf)
    """
    if value == "max":
        return MAX_SPEED
    try:
        speed = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        speed = math.nan
    return check_speed(speed if math.isfinite(speed) else math.nan)


def format_speed(speed: float) -> int | float | str:
    """Format a speed in the form that `parse_speed` accepts."""
    if speed == MAX_SPEED:
        return "max"
    return int(speed) if speed.is_integer() else speed


def parse_offset(text: str) -> int | None:
    """Parse an offset such as `+10m` or `-1.5s` into nanoseconds; None if it is not one.

    >>> parse_offset("-1.5s"), parse_offset("10m")
    (-1500000000, None)
    """
    match = _OFFSET.fullmatch(text)
    if match is None:
        return None
    sign, amount, unit = match.groups()
    whole, _, fraction = amount.partition(".")
    ns = int(whole + fraction.ljust(9, "0")) * _UNITS[unit] // NS_PER_SECOND
    return -ns if sign == "-" else ns


def resolve_time(value: object, base: Time) -> Time:
    """Resolve a time (`2013-09-03T13:00:00Z` or nanoseconds) or an offset from `base` (`+10m`).

    Raises:
        ValueError: it is neither, or the result is outside the 64-bit range.

    >>> resolve_time("+10m", Time.parse("2013-09-03T13:00:00Z")).rfc3339()
    '2013-09-03T13:10:00Z'
    """
    offset = parse_offset(value) if isinstance(value, str) else None
    if offset is not None:
        return Time.from_wire(int(base) + offset)
    try:
        return Time.from_wire(value)
    except ValueError as error:
        raise ValueError(f"neither a time nor an offset such as +10m: {error}") from None
