"""Convert frames to new ticks: drop duplicates, detect gaps and compare the clocks. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, NamedTuple

from producers.venues.symbols import UnknownMarket
from producers.venues.venue import Notice, NoticeKind, SequenceSeries, Venue
from tickcast.wire.errors import BadFrame
from tickcast.wire.ticks import Tick
from tickcast.wire.times import NS_PER_SECOND, Time

_BACK_MAX: Final = 10_000
"""A number that is further behind the highest one starts a new numbering."""
_HOLES_MAX: Final = 64
_UNKNOWN_MAX: Final = 1000
_SKEW_WINDOW_NS: Final = 30 * NS_PER_SECOND

logger = logging.getLogger("tickcast.venues")


@dataclass
class IntakeCounts:
    """Counts of what a venue's frames contained.

    Attributes:
        ticks: new ticks, which were passed on.
        repeats: duplicate ticks, and quotes older than one already received.
        missing: numbers that were skipped and have not arrived since.
        gaps: how often numbers were skipped.
        unmapped: frames that contain nothing we use.
        bad_frames: frames that differ from the documentation, and the first frame of each market
            without a symbol.
        refusals: responses that refused a request.
    """

    ticks: int = 0
    repeats: int = 0
    missing: int = 0
    gaps: int = 0
    unmapped: int = 0
    bad_frames: int = 0
    refusals: int = 0


class Jump(NamedTuple):
    """A range of skipped numbers, both ends included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """The count of skipped numbers."""
        return self.last - self.first + 1


class NumberSeries:
    """The numbers of one series received so far: the highest one, and the holes below it."""

    def __init__(self, first: int) -> None:
        self._highest = first
        self._holes: list[Jump] = []

    def pass_by(self, number: int) -> Jump | None:
        """Add a number above the highest one and return the range that it skipped, if any."""
        jump = Jump(self._highest + 1, number - 1)
        self._highest = number
        if not jump.size:
            return None
        self._holes.append(jump)
        del self._holes[:-_HOLES_MAX]
        return jump

    def fill(self, number: int) -> bool:
        """Add a number that isn't above the highest one and return whether it was missing."""
        for place, hole in enumerate(self._holes):
            if hole.first <= number <= hole.last:
                parts = (Jump(hole.first, number - 1), Jump(number + 1, hole.last))
                self._holes[place : place + 1] = [part for part in parts if part.size]
                return True
        return False

    def is_ahead(self, number: int) -> bool:
        """Return whether a number is above the highest one."""
        return number > self._highest

    def is_far_back(self, number: int) -> bool:
        """Return whether a number is so far back that a new numbering must have started."""
        return number < self._highest - _BACK_MAX


class Skew:
    """The lead of our clock over the venue's, delays included: the minimum of the last minute.

    A delayed frame looks like a clock that is ahead, so the minimum is the best estimate.
    """

    def __init__(self) -> None:
        self._since: int | None = None
        self._now: int | None = None
        self._before: int | None = None

    @property
    def ns(self) -> int | None:
        """The skew in nanoseconds; None before the first frame with a time."""
        known = [each for each in (self._now, self._before) if each is not None]
        return min(known, default=None)

    def add(self, venue_time: Time, received: Time) -> None:
        """Add a frame that has the venue's time."""
        if self._since is None or not 0 <= received - self._since < _SKEW_WINDOW_NS:
            self._since, self._before, self._now = received, self._now, None
        ahead = received - venue_time
        self._now = ahead if self._now is None else min(self._now, ahead)


class Intake:
    """Processes all frames of a venue, whichever connection they arrive on.

    Args:
        symbols: the symbols whose ticks are wanted; None means all.

    Attributes:
        heard_of: the symbols with at least one new tick.
        tally: counts so far.
        skew: the difference between the two clocks.
    """

    def __init__(self, venue: Venue, symbols: AbstractSet[str] | None = None) -> None:
        self._venue = venue
        self._symbols = symbols
        self._numbers: dict[tuple[SequenceSeries, str], NumberSeries] = {}
        self._unknown: set[str] = set()
        self.heard_of: set[str] = set()
        self.tally = IntakeCounts()
        self.skew = Skew()

    def receive(self, frame: bytes, received: Time) -> list[Tick] | Notice:
        """Return the new ticks of a frame, or a notice if it is of another kind.

        Raises:
            BadFrame: the frame differs from the documentation. It is counted. A market whose name
                can't be converted to a symbol is reported once.
        """
        try:
            said = self._venue.parse(frame, received)
        except UnknownMarket as error:
            if error.market in self._unknown:
                self.tally.unmapped += 1
                return Notice(NoticeKind.UNMAPPED, "a market without a symbol")
            if len(self._unknown) < _UNKNOWN_MAX:
                self._unknown.add(error.market)
            self.tally.bad_frames += 1
            raise
        except BadFrame:
            self.tally.bad_frames += 1
            raise
        if said.venue_time is not None:
            self.skew.add(said.venue_time, received)
        if isinstance(said, Notice):
            self.tally.unmapped += said.kind is NoticeKind.UNMAPPED
            self.tally.refusals += said.kind is NoticeKind.REFUSED
            return said
        fresh = [
            each.tick
            for each in said.ticks
            if (self._symbols is None or each.tick.symbol in self._symbols)
            and (each.series is None or self._is_new(each.series, each.tick.symbol, each.number))
            and not each.void
        ]
        self.tally.ticks += len(fresh)
        self.heard_of.update(tick.symbol for tick in fresh)
        return fresh

    def _is_new(self, series: SequenceSeries, symbol: str, number: int) -> bool:
        key = (series, symbol)
        numbers = self._numbers.get(key)
        if numbers is None or numbers.is_far_back(number):
            self._numbers[key] = NumberSeries(number)
            return True
        if numbers.is_ahead(number):
            jump = numbers.pass_by(number)
            if jump and series.is_gapless:
                self._note(jump, symbol)
            return True
        if series.is_gapless and numbers.fill(number):
            self.tally.missing -= 1
            return True
        self.tally.repeats += 1
        return False

    def _note(self, jump: Jump, symbol: str) -> None:
        self.tally.gaps += 1
        self.tally.missing += jump.size
        logger.warning(
            "trades are missing",
            extra={"venue": self._venue.name, "symbol": symbol, "first": jump.first,
                   "last": jump.last},
        )  # fmt: skip
