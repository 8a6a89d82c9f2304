"""Convert frames to new ticks: drop duplicates, detect gaps and compare the clocks. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final, NamedTuple

from tickcast.venues import (
    Notice,
    NoticeKind,
    NumberSeries,
    TickFrame,
    UnknownMarket,
    Venue,
    escape,
)
from tickcast.wire.errors import BadFrame, InvalidTick
from tickcast.wire.ticks import Tick
from tickcast.wire.times import NS_PER_SECOND, Time

# A number that is further behind the highest one starts a new numbering.
_BACK_MAX: Final = 10_000
_HOLES_MAX: Final = 64
_UNKNOWN_MARKETS_MAX: Final = 1000
_SKEW_WINDOW_NS: Final = 30 * NS_PER_SECOND
# What parsers raise for unexpected content. A missing key is a LookupError, and a null instead of a
# number a TypeError.
_FRAME_ERRORS: Final = (
    InvalidTick, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
    ValueError,
)  # fmt: skip

logger = logging.getLogger("tickcast.venues")


@dataclass
class FrameCounts:
    """Counts of what a venue's frames contained."""

    # New ticks, which were passed on.
    ticks: int = 0
    # Duplicate ticks, and quotes older than one already received.
    repeats: int = 0
    # Numbers that were skipped and have not arrived since.
    missing: int = 0
    # How often numbers were skipped.
    gaps: int = 0
    # Frames that contain nothing we use.
    unmapped: int = 0
    # Frames that differ from the documentation, and the first frame of each unknown market.
    bad_frames: int = 0
    # Responses that refused a request.
    refusals: int = 0


class NumberRange(NamedTuple):
    """A range of numbers, both ends included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """The count of numbers in the range."""
        return self.last - self.first + 1


class ReceivedNumbers:
    """The numbers of one series received so far: the highest one, and the holes below it."""

    def __init__(self, number: int) -> None:
        self.highest = number
        self._holes: list[NumberRange] = []

    def advance(self, number: int) -> NumberRange | None:
        """Add a number above the highest one and return the range that it skipped, if any."""
        hole = NumberRange(self.highest + 1, number - 1)
        self.highest = number
        if not hole.size:
            return None
        self._holes.append(hole)
        del self._holes[:-_HOLES_MAX]
        return hole

    def fill(self, number: int) -> bool:
        """Add a number that isn't above the highest one and return whether it was missing."""
        for index, hole in enumerate(self._holes):
            if hole.first <= number <= hole.last:
                rest = (NumberRange(hole.first, number - 1), NumberRange(number + 1, hole.last))
                self._holes[index : index + 1] = [part for part in rest if part.size]
                return True
        return False


class ClockSkew:
    """The lead of our clock over the venue's, delays included: the minimum of the last minute.

    A delayed frame looks like a clock that is ahead, so the minimum is the best estimate.
    """

    def __init__(self) -> None:
        self._window_start: int | None = None
        # The minimum of the current window and that of the one before.
        self._current: int | None = None
        self._previous: int | None = None

    @property
    def ns(self) -> int | None:
        """The skew in nanoseconds; None before the first frame with a time."""
        known = [each for each in (self._current, self._previous) if each is not None]
        return min(known, default=None)

    def update(self, venue_time: Time, received: Time) -> None:
        """Add a frame that has the venue's time."""
        start = self._window_start
        if start is None or not 0 <= received - start < _SKEW_WINDOW_NS:
            self._window_start, self._previous, self._current = received, self._current, None
        lead = received - venue_time
        self._current = lead if self._current is None else min(self._current, lead)


def parse_frame(venue: Venue, frame: bytes, received: Time) -> TickFrame | Notice:
    """Parse a frame. Raises BadFrame, whichever way the venue reports it."""
    try:
        content = venue.parse(frame, received)
    except _FRAME_ERRORS as error:
        kind = "" if type(error) in (InvalidTick, ValueError) else f"{type(error).__name__}: "
        raise BadFrame(kind + escape(str(error))) from None
    if not isinstance(content, TickFrame | Notice):
        raise BadFrame(f"parse returned {type(content).__name__}, not a TickFrame or a Notice")
    return content


class Normalizer:
    """Converts all frames of a venue to ticks, whichever connection they arrive on.

    Args:
        symbols: the symbols whose ticks are wanted; None means all.
    """

    def __init__(self, venue: Venue, symbols: AbstractSet[str] | None = None) -> None:
        self._venue = venue
        self._symbols = symbols
        self._numbers: dict[tuple[NumberSeries, str], ReceivedNumbers] = {}
        self._unknown_markets: set[str] = set()
        # The symbols with at least one new tick.
        self.active_symbols: set[str] = set()
        self.counts = FrameCounts()
        self.skew = ClockSkew()

    def process(self, frame: bytes, received: Time) -> list[Tick] | Notice:
        """Return the new ticks of a frame, or a notice if it is of another kind.

        Raises:
            BadFrame: the frame differs from the documentation. It is counted. A market whose name
                can't be converted to a symbol is reported once.
        """
        try:
            content = parse_frame(self._venue, frame, received)
        except UnknownMarket as error:
            if error.market in self._unknown_markets:
                self.counts.unmapped += 1
                return Notice(NoticeKind.UNMAPPED, "a market without a symbol")
            if len(self._unknown_markets) < _UNKNOWN_MARKETS_MAX:
                self._unknown_markets.add(error.market)
            self.counts.bad_frames += 1
            raise
        except BadFrame:
            self.counts.bad_frames += 1
            raise
        if content.venue_time is not None:
            self.skew.update(content.venue_time, received)
        if isinstance(content, Notice):
            self.counts.unmapped += content.kind is NoticeKind.UNMAPPED
            self.counts.refusals += content.kind is NoticeKind.REFUSED
            return content
        ticks = [
            each.tick
            for each in content.ticks
            if (self._symbols is None or each.tick.symbol in self._symbols)
            and (each.series is None or self._is_new(each.series, each.tick.symbol, each.number))
            and not each.is_placeholder
        ]
        self.counts.ticks += len(ticks)
        self.active_symbols.update(tick.symbol for tick in ticks)
        return ticks

    def _is_new(self, series: NumberSeries, symbol: str, number: int) -> bool:
        key = (series, symbol)
        numbers = self._numbers.get(key)
        if numbers is None or number < numbers.highest - _BACK_MAX:
            self._numbers[key] = ReceivedNumbers(number)
            return True
        if number > numbers.highest:
            hole = numbers.advance(number)
            if hole and series.is_gapless:
                self._report_gap(hole, symbol)
            return True
        # Quotes are never filled in: an older quote is worthless.
        if series.is_gapless and numbers.fill(number):
            self.counts.missing -= 1
            return True
        self.counts.repeats += 1
        return False

    def _report_gap(self, hole: NumberRange, symbol: str) -> None:
        self.counts.gaps += 1
        self.counts.missing += hole.size
        logger.warning(
            "trades are missing",
            extra={"venue": self._venue.name, "symbol": symbol, "first": hole.first,
                   "last": hole.last},
        )  # fmt: skip
