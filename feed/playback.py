"""Plays recorded ticks: which are due, and what pause, seek, speed and step make of that.

No I/O and no clock inside: whoever plays passes the time in, in seconds on any clock that is never
set back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Generator, Iterator, Mapping
from enum import Enum
from itertools import dropwhile
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from feed.times import NS_PER_SECOND, Time

SPEED: Final = (0.01, 10_000.0)
"""The slowest and the fastest speed but for `max`."""
MAX: Final = math.inf
"""The speed that takes no heed of time."""
STEPS_MAX: Final = 10_000
"""So many ticks at most in one step."""

_OFFSET = re.compile(r"([+-])(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)", re.ASCII)
_UNITS: Final = {"ms": 10**6, "s": NS_PER_SECOND, "m": 60 * NS_PER_SECOND,
                 "h": 3600 * NS_PER_SECOND, "d": 86_400 * NS_PER_SECOND}  # fmt: skip


class Timed(Protocol):
    """A tick, or something that stands for one."""

    @property
    def time(self) -> Time:
        """When it happened."""


T = TypeVar("T", bound=Timed)
T_co = TypeVar("T_co", bound=Timed, covariant=True)


class Source(Protocol[T_co]):
    """Recorded ticks that can be read from any point on.

    Their order is that of the file. Where a tick has an earlier time than one before it, it is due
    together with that one: a tick's *due time* is the greatest time up to it.
    """

    @property
    def first(self) -> Time:
        """The time of the first tick."""

    @property
    def last(self) -> Time:
        """The greatest time."""

    def read(self, start: Time | None) -> Iterator[T_co]:
        """The ticks from the first on whose time is not before `start`; it may begin earlier.

        They are the reader's own.
        """


class Mode(Enum):
    """What a deck does."""

    PLAYING = "playing"
    PAUSED = "paused"
    ENDED = "ended"


class State(NamedTuple):
    """Where a replay stands.

    Attributes:
        position: in the time of the recording.
        speed: how many times as fast as it happened; `MAX` takes no heed of time.
        first, last: what is played of the recording.
    """

    mode: Mode
    position: Time
    speed: float
    first: Time
    last: Time

    def fields(self) -> dict[str, Any]:
        """As clients and other programs are told; see `docs/protocol.md`, section "Replays"."""
        return {
            "state": self.mode.value,
            "position": self.position,
            "speed": show_speed(self.speed),
            "from": self.first,
            "to": self.last,
        }

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> State:
        """Read what `fields` gave, times in any form that a message has them in.

        Raises:
            ValueError, KeyError, TypeError: it is no state.
        """
        return cls(
            Mode(fields["state"]),
            Time.from_wire(fields["position"]),
            read_speed(fields["speed"]),
            Time.from_wire(fields["from"]),
            Time.from_wire(fields["to"]),
        )


class Schedule(NamedTuple):
    """When what is due: at `since_s` the clock stood at `position`, and it goes at `speed`."""

    since_s: float
    position: int
    speed: float

    def when(self, time: int) -> float:
        """When the clock comes by a time of the recording."""
        return self.since_s + (time - self.position) / NS_PER_SECOND / self.speed


class Deck(Generic[T]):
    """Plays a source, by the times of its ticks.

    The schedule is fixed by the last command: what comes late is made up for, and nothing adds up.

    Args:
        now_s: when it begins.
        speed: see `SPEED`, or `MAX`.
        start, end: what is to be played; without, all there is.
        loop: begin again at the end.

    Attributes:
        rewinds: how often it has gone back, so that ticks come once more. What `take` has returned
            in the same call comes before.
        rounds: how many of these were at the end, to begin again.

    Raises:
        ValueError: there is nothing between `start` and `end`, or the speed is out of bounds.
    """

    def __init__(
        self,
        source: Source[T],
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
                f"nothing lies there: the recording goes from {source.first.rfc3339()}"
                f" to {source.last.rfc3339()}"
            )
        if loop and self.first == self.last:
            raise ValueError("nothing to loop: all ticks have the same time")
        self._source = source
        self._loop = loop
        self._mode = Mode.PLAYING
        self._speed = check_speed(speed)
        self.rewinds = self.rounds = 0
        self._read_from(self.first, now_s)

    def _read_from(self, position: Time, now_s: float) -> None:
        """Go on from here, from now on."""
        self._reading = self._source.read(position if position > self._source.first else None)
        self._ticks = dropwhile(lambda tick: tick.time < position, self._reading)
        self._anchor = (now_s, int(position))
        self._played: int | None = None
        self._next = next(self._ticks, None)
        self._next_due: int = self._next.time if self._next else self.last
        self._look_at_end()

    def _look_at_end(self) -> None:
        if self._next is not None and self._next_due > self.last:
            self._next, self._next_due = None, self.last
        elif self._next is None:
            self._next_due = self.last

    # -- the flow

    def take(self, now_s: float, at_most: int = 500) -> list[T]:
        """The ticks that are due by now, at most so many; the others at once with the next call."""
        if self._mode is not Mode.PLAYING:
            return []
        taken = self._take_until(self._reach(now_s), at_most)
        if self._next is None and self._reach(now_s) >= self.last:
            self._end(now_s)
        return taken

    def close(self) -> None:
        """Close the file that is being read."""
        if isinstance(self._reading, Generator):
            self._reading.close()

    @property
    def due_s(self) -> float | None:
        """When the next tick is due, or the end; None while none is, however long one waits."""
        if self._mode is not Mode.PLAYING:
            return None
        return self.schedule.when(self._next_due)

    @property
    def mode(self) -> Mode:
        """What it does."""
        return self._mode

    @property
    def schedule(self) -> Schedule:
        """What holds until the next command or round."""
        return Schedule(*self._anchor, self._speed)

    def state(self, now_s: float) -> State:
        """Where it stands now; where ticks are late, at the first of these."""
        return State(self._mode, self._position(now_s), self._speed, self.first, self.last)

    def _take_until(self, reach: float, at_most: int) -> list[T]:
        taken: list[T] = []
        ticks, tick, due, last = self._ticks, self._next, self._next_due, self.last
        while tick is not None and due <= reach and len(taken) < at_most:
            taken.append(tick)
            self._played = due
            tick = next(ticks, None)
            if tick is not None and tick.time > due:
                due = tick.time
                if due > last:
                    tick = None
        self._next, self._next_due = tick, due
        self._look_at_end()
        return taken

    def _reach(self, now_s: float) -> float:
        """How far the clock has come; beyond the end it stands still."""
        if self._speed is MAX:
            return self.last
        since_s, position = self._anchor
        passed_ns = round((now_s - since_s) * self._speed * NS_PER_SECOND)
        return min(position + max(0, passed_ns), self.last)

    def _position(self, now_s: float) -> Time:
        if self._mode is Mode.PLAYING:
            return Time(min(self._reach(now_s), self._next_due))
        return Time(self._anchor[1])

    def _end(self, now_s: float) -> None:
        if not self._loop:
            self._mode = Mode.ENDED
            self._anchor = (now_s, self.last)
            return
        # From when it was due on: else each round would add what the last one was late.
        since_s = now_s if self._speed is MAX else self.due_s or now_s
        self.rewinds += 1
        self.rounds += 1
        self._read_from(self.first, since_s)

    # -- commands

    def begin(self, now_s: float) -> None:
        """Begin only now: after it was made, or after a seek, before anything was taken."""
        self._anchor = (now_s, self._anchor[1])

    def pause(self, now_s: float) -> None:
        """Stand still."""
        if self._mode is Mode.PLAYING:
            self._anchor = (now_s, self._position(now_s))
            self._mode = Mode.PAUSED

    def resume(self, now_s: float) -> None:
        """Go on."""
        if self._mode is Mode.PAUSED:
            self._anchor = (now_s, self._anchor[1])
            self._mode = Mode.PLAYING

    def seek(self, position: Time, now_s: float) -> None:
        """Go on from another place, within what is played. What has ended plays again."""
        position = Time(min(max(position, self.first), self.last))
        if position < self._position(now_s) or self._has_played(position):
            self.rewinds += 1
        if self._mode is Mode.ENDED:
            self._mode = Mode.PLAYING
        self._read_from(position, now_s)

    def _has_played(self, position: Time) -> bool:
        return self._played is not None and position <= self._played

    def set_speed(self, speed: float, now_s: float) -> None:
        """Go on at another speed.

        Raises:
            ValueError: it is out of bounds.
        """
        speed = check_speed(speed)
        if self._mode is Mode.PLAYING:
            at = self._position(now_s) if self._speed is MAX else int(self._reach(now_s))
            self._anchor = (now_s, at)
        self._speed = speed

    def step(self, count: int, now_s: float) -> list[T]:
        """Pause, and return the next ticks, whenever they are due.

        Raises:
            ValueError: it is not 1 to `STEPS_MAX` ticks.
        """
        if not 1 <= count <= STEPS_MAX:
            raise ValueError(f"a step is 1 to {STEPS_MAX} ticks")
        self.pause(now_s)
        if self._mode is Mode.ENDED:
            return []
        taken = self._take_until(self.last, count)
        if taken and self._played is not None:
            self._anchor = (now_s, max(self._anchor[1], self._played))
        if self._next is None:
            self._end(now_s)
        return taken


def check_speed(speed: float) -> float:
    """The speed, if it is one.

    Raises:
        ValueError: it is out of bounds.
    """
    if speed == MAX:
        return MAX
    slowest, fastest = SPEED
    if not slowest <= speed <= fastest:
        raise ValueError(f"a speed is a number from {slowest:g} to {fastest:g}, or max")
    return float(speed)


def read_speed(value: object) -> float:
    """A speed as people and messages write it: a number, or `max`.

    Raises:
        ValueError: it is neither, or out of bounds.

    >>> read_speed("0.5"), read_speed("max")
    (0.5, inf)
    """
    if value == "max":
        return MAX
    try:
        speed = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        speed = math.nan
    return check_speed(speed if math.isfinite(speed) else math.nan)


def show_speed(speed: float) -> int | float | str:
    """The same to be written."""
    if speed == MAX:
        return "max"
    return int(speed) if speed.is_integer() else speed


def read_offset(text: str) -> int | None:
    """The nanoseconds of `+10m`, `-1.5s` and the like; None where the text is no offset.

    >>> read_offset("-1.5s"), read_offset("10m")
    (-1500000000, None)
    """
    match = _OFFSET.fullmatch(text)
    if match is None:
        return None
    sign, amount, unit = match.groups()
    whole, _, fraction = amount.partition(".")
    ns = int(whole + fraction.ljust(9, "0")) * _UNITS[unit] // NS_PER_SECOND
    return -ns if sign == "-" else ns


def place(value: object, base: Time) -> Time:
    """A time, or an offset from another one: `2013-09-03T13:00:00Z`, `+10m`, nanoseconds.

    Raises:
        ValueError: it is neither, or lies outside the 64-bit range.

    >>> place("+10m", Time.parse("2013-09-03T13:00:00Z")).rfc3339()
    '2013-09-03T13:10:00Z'
    """
    offset = read_offset(value) if isinstance(value, str) else None
    if offset is not None:
        return Time.from_wire(int(base) + offset)
    try:
        return Time.from_wire(value)
    except ValueError as error:
        raise ValueError(f"neither a time nor an offset such as +10m: {error}") from None
