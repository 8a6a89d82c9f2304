"""Build bars from trades, for all symbols of a feed, by the times of the trades. No I/O.

Two clocks decide when a bar ends, and both follow the times of trades. The symbol's clock is the
time of its newest trade. The feed's clock is the time of the newest trade of any symbol. If that
trade arrived within a minute of its time, the feed is live, and its clock advances with the wall
clock. A bar closes when the symbol's clock is past its end by the lateness. It also closes when
the feed's clock is past its end by the lateness and no trade of the symbol has arrived for as
long as the lateness, because then no trade is still on its way.

As a result, bars of a replay are correct at any speed and for any date, however unevenly the
symbols trade, and a live symbol that falls quiet still gets its bars in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Final

from producers.bars.series import NEVER, BarSeries, TradeOutcome
from tickcast.wire.ticks import Bar, Tick, Timeframe, Trade
from tickcast.wire.times import NS_PER_SECOND, Time

# How far a live trade's time may be from the wall clock. Trades further ahead are ignored.
NEAR_NS: Final = 60 * NS_PER_SECOND


class BarBuilder:
    """Builds the bars of all symbols in some timeframes.

    Args:
        lateness_s: how long after a newer trade a trade may still arrive, in seconds.
        fill: whether a symbol that has traded once also gets bars for periods without trades.
    """

    def __init__(self, timeframes: Sequence[Timeframe], lateness_s: float, fill: bool) -> None:
        self.timeframes = tuple(timeframes)
        self._lateness_ns = round(lateness_s * NS_PER_SECOND)
        self._fill = fill
        self._symbols: dict[str, _SymbolBars] = {}
        # The feed's clock: the time of the newest trade, and when that trade arrived.
        self._newest = NEVER
        self._newest_received = NEVER
        # Trades that arrived after their bar was closed. A trade may be late for one timeframe and
        # in time for another.
        self.late: Counter[Timeframe] = Counter()
        # Trades dated more than a minute in the future. They are in no bar.
        self.early = 0

    @property
    def incomplete(self) -> int:
        """The number of bars left out because some of their trades may be missing."""
        return sum(each.incomplete for each in self._all_series())

    @property
    def unfit(self) -> int:
        """The number of bars left out because one of their values doesn't fit in a tick."""
        return sum(each.unfit for each in self._all_series())

    def _all_series(self) -> Iterator[BarSeries]:
        return (series for bars in self._symbols.values() for series in bars.series)

    def open(
        self, symbol: str, published: Mapping[Timeframe, Bar], partial: Container[Timeframe]
    ) -> None:
        """Open a symbol before its first trades.

        Args:
            published: the latest published bar of each timeframe.
            partial: timeframes for which trades are missing between that bar and the first trade.
        """
        bars = self._symbols[symbol] = _SymbolBars(
            [BarSeries(symbol, each, self._lateness_ns, self._fill) for each in self.timeframes]
        )
        for series in bars.series:
            if series.timeframe in published:
                series.resume(published[series.timeframe])
            if series.timeframe in partial:
                series.mark_lost()
        bars.update_due()

    def add_trades(
        self, symbol: str, ticks: Iterable[Tick], received: Time, now: Time
    ) -> list[Bar]:
        """Process a symbol's next trades, in stream order, and return the bars that they close.

        Args:
            received: when the trades arrived, or were stored; not after `now`.
        """
        bars = self._symbols[symbol]
        bars.received = max(bars.received, received)
        for trade in ticks:
            if not isinstance(trade, Trade):
                continue
            if trade.time > now + NEAR_NS:
                self.early += 1
                continue
            for series in bars.series:
                if series.add_trade(trade, bars.watermark) is TradeOutcome.LATE:
                    self.late[series.timeframe] += 1
            if trade.time > self._newest:
                self._newest, self._newest_received = trade.time, received
            bars.watermark = max(bars.watermark, trade.time - self._lateness_ns)
        return bars.close_due()

    def mark_caught_up(self, symbol: str) -> None:
        """Note that all trades of a symbol from before this program started have been processed."""
        for series in self._symbols[symbol].series:
            series.mark_caught_up()

    def mark_lost(self, symbol: str) -> None:
        """Note that trades of a symbol are missing before the next one."""
        for series in self._symbols[symbol].series:
            series.mark_lost()

    def begin_epoch(self, symbol: str) -> None:
        """Reset a symbol's clock: its stream has started a new epoch, whose times may differ."""
        bars = self._symbols[symbol]
        bars.watermark = NEVER
        for series in bars.series:
            series.begin_epoch()
        bars.update_due()
        self._newest = self._newest_received = NEVER

    def advance(self, now: Time) -> list[Bar]:
        """Advance the wall clock and return the bars of quiet symbols that this closes."""
        if self._newest == NEVER:
            return []
        clock = self._newest
        if abs(self._newest_received - self._newest) <= NEAR_NS:
            clock += max(0, now - self._newest_received)
        quiet_since = now - self._lateness_ns
        watermark = clock - self._lateness_ns
        closed: list[Bar] = []
        for bars in self._symbols.values():
            if bars.due is not None and watermark >= bars.due and bars.received <= quiet_since:
                bars.watermark = max(bars.watermark, watermark)
                closed += bars.close_due()
        return closed


class _SymbolBars:
    """The series of one symbol, one for each timeframe."""

    __slots__ = ("due", "received", "series", "watermark")

    def __init__(self, series: list[BarSeries]) -> None:
        self.series = series
        # The symbol's clock minus the lateness.
        self.watermark = NEVER
        # When its last trades arrived.
        self.received = NEVER
        # The watermark at which its next bar closes.
        self.due: int | None = None

    def update_due(self) -> None:
        dues = (each.due() for each in self.series)
        self.due = min((due for due in dues if due is not None), default=None)

    def close_due(self) -> list[Bar]:
        """Close the bars that the watermark has passed. The grouping into batches has no effect."""
        self.update_due()
        if self.due is None or self.watermark < self.due:
            return []
        closed = [bar for each in self.series for bar in each.close_until(self.watermark)]
        self.update_due()
        return closed
