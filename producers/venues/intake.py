"""From frames to ticks that are new: repeats left out, gaps noticed, the clock compared. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, NamedTuple

from feed.errors import BadFrame
from feed.ticks import Tick
from feed.times import NS_PER_SECOND, Time
from producers.venues.symbols import UnknownMarket
from producers.venues.venue import Kind, Notice, Series, Venue

_BACK_MAX: Final = 10_000
"""A number that is further back is the first of a new numbering."""
_HOLES_MAX: Final = 64
_UNKNOWN_MAX: Final = 1000
_SKEW_WINDOW_NS: Final = 30 * NS_PER_SECOND

logger = logging.getLogger("tickcast.venues")


@dataclass
class Tally:
    """What has come of a venue's frames.

    Attributes:
        ticks: new ones, handed on.
        repeats: ticks that had come before, or quotes older than one that had.
        missing: numbers that were skipped and have not come since.
        gaps: how often some were.
        unmapped: frames that are nothing to us.
        bad_frames: frames that were not as documented; of a market without a symbol, the first.
        refusals: answers that said no.
    """

    ticks: int = 0
    repeats: int = 0
    missing: int = 0
    gaps: int = 0
    unmapped: int = 0
    bad_frames: int = 0
    refusals: int = 0


class Jump(NamedTuple):
    """Numbers that were skipped."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """How many."""
        return self.last - self.first + 1


class Numbers:
    """What of one series of numbers has come: the highest, and the holes below it."""

    def __init__(self, first: int) -> None:
        self._highest = first
        self._holes: list[Jump] = []

    def pass_by(self, number: int) -> Jump | None:
        """A number above all that were: what was skipped, if anything."""
        jump = Jump(self._highest + 1, number - 1)
        self._highest = number
        if not jump.size:
            return None
        self._holes.append(jump)
        del self._holes[:-_HOLES_MAX]
        return jump

    def fill(self, number: int) -> bool:
        """A number that is not above all that were: whether it was missing."""
        for place, hole in enumerate(self._holes):
            if hole.first <= number <= hole.last:
                parts = (Jump(hole.first, number - 1), Jump(number + 1, hole.last))
                self._holes[place : place + 1] = [part for part in parts if part.size]
                return True
        return False

    def is_ahead(self, number: int) -> bool:
        """Whether it is above all that were."""
        return number > self._highest

    def is_far_back(self, number: int) -> bool:
        """Whether the numbering must have begun anew."""
        return number < self._highest - _BACK_MAX


class Skew:
    """How far our clock is ahead of the venue's, delays included: the least of the last minute.

    A frame that is underway for long looks like a clock that is ahead, so the least is nearest.
    """

    def __init__(self) -> None:
        self._since: int | None = None
        self._now: int | None = None
        self._before: int | None = None

    @property
    def ns(self) -> int | None:
        """Nanoseconds; None: nothing has been heard."""
        known = [each for each in (self._now, self._before) if each is not None]
        return min(known, default=None)

    def add(self, venue_time: Time, received: Time) -> None:
        """A frame that says when it was made."""
        if self._since is None or not 0 <= received - self._since < _SKEW_WINDOW_NS:
            self._since, self._before, self._now = received, self._now, None
        ahead = received - venue_time
        self._now = ahead if self._now is None else min(self._now, ahead)


class Intake:
    """All frames of a venue go through one of these, whatever connection they came by.

    Args:
        symbols: whose ticks are wanted; None: all.

    Attributes:
        heard_of: symbols of which something has come.
        tally: what has come so far.
        skew: between the two clocks.
    """

    def __init__(self, venue: Venue, symbols: AbstractSet[str] | None = None) -> None:
        self._venue = venue
        self._symbols = symbols
        self._numbers: dict[tuple[Series, str], Numbers] = {}
        self._unknown: set[str] = set()
        self.heard_of: set[str] = set()
        self.tally = Tally()
        self.skew = Skew()

    def take(self, frame: bytes, received: Time) -> list[Tick] | Notice:
        """The new ticks of a frame, or what else it says.

        Raises:
            BadFrame: it is not as documented; counted. A market whose name can't be made into a
                symbol is reported once.
        """
        try:
            said = self._venue.parse(frame, received)
        except UnknownMarket as error:
            if error.market in self._unknown:
                self.tally.unmapped += 1
                return Notice(Kind.UNMAPPED, "a market without a symbol")
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
            self.tally.unmapped += said.kind is Kind.UNMAPPED
            self.tally.refusals += said.kind is Kind.REFUSED
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

    def _is_new(self, series: Series, symbol: str, number: int) -> bool:
        key = (series, symbol)
        numbers = self._numbers.get(key)
        if numbers is None or numbers.is_far_back(number):
            self._numbers[key] = Numbers(number)
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
