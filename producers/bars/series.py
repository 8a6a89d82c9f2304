"""Build the bars of one symbol and one timeframe: trades in, closed bars out. Reads no clock."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import Enum
from typing import Final

from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import Bar, Timeframe, Trade, validate
from tickcast.wire.times import NS_PER_SECOND, Time

# The length of a bar. Bars start at whole multiples of it since the Unix epoch, so in UTC.
LENGTHS_NS: Final[dict[Timeframe, int]] = {
    "1s": NS_PER_SECOND,
    "5s": 5 * NS_PER_SECOND,
    "1m": 60 * NS_PER_SECOND,
    "5m": 300 * NS_PER_SECOND,
    "1h": 3600 * NS_PER_SECOND,
    "1d": 86_400 * NS_PER_SECOND,
}
# The maximum number of consecutive bars without trades: an hour of `1s`. After that, a symbol
# counts as closed.
FILL_MAX: Final = 3_600
# A time before all others.
NEVER: Final = -(2**63)


class TradeOutcome(Enum):
    """The outcome of a trade."""

    ADDED = 1
    # Its bar is already closed.
    LATE = 2
    # Its bar was published before this program started.
    KNOWN = 3


class BarSeries:
    """The open bars of one symbol and one timeframe, and the end of the closed bars.

    Open and close are the first and the last trade of a bar in stream order, whatever their times.
    A bar is emitted when it closes, if all its trades are known. Bars that may lack trades are
    counted instead.

    Args:
        lateness_ns: how much older than the newest trade an arriving trade may be.
        fill: whether to emit bars for periods without trades.
    """

    __slots__ = (
        "_close", "_complete_from", "_fill", "_filled", "_lateness_ns", "_length_ns", "_lost",
        "_next", "_open", "_resumed_at", "incomplete", "symbol", "timeframe", "unfit",
    )  # fmt: skip

    def __init__(self, symbol: str, timeframe: Timeframe, lateness_ns: int, fill: bool) -> None:
        self.symbol = symbol
        self.timeframe = timeframe
        self._length_ns = LENGTHS_NS[timeframe]
        self._lateness_ns = lateness_ns
        self._fill = fill
        # The open bars, by start.
        self._open: dict[int, _Totals] = {}
        # The last closing price, and the number of bars filled with it since.
        self._close: float | None = None
        self._filled = 0
        # Trades are missing before the next one; see `add_trade`.
        self._lost = False
        # Bars that start earlier may lack trades.
        self._complete_from = NEVER
        # The end of the bar that was published before this program started.
        self._resumed_at = NEVER
        # The start of the first bar that may still be emitted.
        self._next = NEVER
        # Bars that were not emitted because some of their trades may be missing.
        self.incomplete = 0
        # Bars that were not emitted because one of their values doesn't fit in a tick.
        self.unfit = 0

    def resume(self, published: Bar) -> None:
        """Continue after a bar that was published before this program started."""
        self._next = self._resumed_at = self._start_of(published.time) + self._length_ns
        self._close = published.close

    def mark_caught_up(self) -> None:
        """Note that all trades from before this program started have been processed."""
        self._resumed_at = NEVER

    def mark_lost(self) -> None:
        """Note that trades with unknown times are missing between the last one and the next one."""
        self._lost = True

    def begin_epoch(self) -> None:
        """Discard the open bars and forget the published ones, because times may start over."""
        self.incomplete += len(self._open)
        self._open.clear()
        self._close = None
        self._complete_from = self._resumed_at = self._next = NEVER
        self._lost = True

    def add_trade(self, trade: Trade, watermark: int) -> TradeOutcome:
        """Add a trade to its bar, unless the bar is closed."""
        start = self._start_of(trade.time)
        if start < self._resumed_at:
            return TradeOutcome.KNOWN
        if start < self._next or start + self._length_ns <= watermark:
            return TradeOutcome.LATE
        if self._lost:
            # The missing trades were sent before this one, so they are newer by at most the
            # lateness.
            newest = max(trade.time, watermark + self._lateness_ns)
            self._lost = False
            self._complete_from = newest + self._lateness_ns + 1
        totals = self._open.get(start)
        if totals is None:
            totals = self._open[start] = _Totals(trade.price)
        totals.add(trade.price, trade.size)
        return TradeOutcome.ADDED

    def due(self) -> int | None:
        """Return the watermark at which the next bar closes; None if there is no such bar."""
        if self._fill and self._close is not None and self._filled < FILL_MAX:
            return self._next + self._length_ns
        return min(self._open) + self._length_ns if self._open else None

    def close_until(self, watermark: int) -> Iterator[Bar]:
        """Yield the bars that end by the watermark, in order."""
        end = self._start_of(watermark)
        if end <= self._next:
            return
        for start in sorted(start for start in self._open if start < end):
            yield from self._fill_until(start)
            yield from self._emit(start, self._open.pop(start))
        yield from self._fill_until(end)
        self._next = end

    def _emit(self, start: int, totals: _Totals) -> Iterator[Bar]:
        self._next = start + self._length_ns
        self._close = totals.close
        self._filled = 0
        if self._lost or start < self._complete_from:
            self.incomplete += 1
            return
        bar = totals.to_bar(self.symbol, self.timeframe, Time(start))
        try:
            validate(bar)
        except InvalidTick:
            self.unfit += 1
            return
        yield bar

    def _fill_until(self, end: int) -> Iterator[Bar]:
        if not self._fill or self._close is None:
            return
        while self._next < end and self._filled < FILL_MAX:
            if not self._lost and self._next >= self._complete_from:
                yield _Totals(self._close).to_bar(self.symbol, self.timeframe, Time(self._next))
            self._next += self._length_ns
            self._filled += 1

    def _start_of(self, time: int) -> int:
        return time - time % self._length_ns


class _Totals:
    """The running totals of an open bar. Adding a trade takes constant time.

    Volume and turnover are summed with their rounding errors (Knuth, The Art of Computer
    Programming, volume 2, section 4.2.2, theorem B), so they are exact to the last digit or two.
    """

    __slots__ = (
        "_turnover", "_turnover_error", "_volume", "_volume_error", "close", "count", "high", "low",
        "open",
    )  # fmt: skip

    def __init__(self, price: float) -> None:
        self.open = self.high = self.low = self.close = price
        self.count = 0
        self._volume = self._volume_error = 0.0
        self._turnover = self._turnover_error = 0.0

    def add(self, price: float, size: float) -> None:
        if price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price
        self.close = price
        self.count += 1
        volume = self._volume + size
        part = volume - self._volume
        self._volume_error += (self._volume - (volume - part)) + (size - part)
        self._volume = volume
        amount = price * size
        turnover = self._turnover + amount
        part = turnover - self._turnover
        self._turnover_error += (self._turnover - (turnover - part)) + (amount - part)
        self._turnover = turnover

    def to_bar(self, symbol: str, timeframe: Timeframe, start: Time) -> Bar:
        volume = self._volume + self._volume_error
        return Bar(
            symbol=symbol,
            open=self.open,
            high=self.high,
            low=self.low,
            close=self.close,
            volume=volume,
            trade_count=self.count,
            vwap=self._vwap(volume),
            time=start,
            timeframe=timeframe,
        )

    def _vwap(self, volume: float) -> float:
        if not volume:
            return self.close
        vwap = (self._turnover + self._turnover_error) / volume
        # Rounding must not move the average outside the range of prices.
        return vwap if math.isnan(vwap) else min(max(vwap, self.low), self.high)
