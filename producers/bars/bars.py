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
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from producers.bars.series import NEVER, BarSeries, TradeOutcome
from tickcast.wire.ticks import Bar, Tick, Timeframe, Trade
from tickcast.wire.times import NS_PER_SECOND, Time

NEAR_NS: Final = 60 * NS_PER_SECOND
"""How far a live trade's time may be from the wall clock. Trades further ahead are ignored."""


class Bars:
    """The bars of all symbols in some timeframes.

    Args:
        lateness_s: how long after a newer trade a trade may still arrive, in seconds.
        fill: whether a symbol that has traded once also gets bars for periods without trades.

    Attributes:
        late: trades that arrived after their bar was closed, by timeframe. A trade may be late
            for one timeframe and in time for another.
        early: trades dated more than a minute in the future. They are in no bar.
    """

    def __init__(self, timeframes: Sequence[Timeframe], lateness_s: float, fill: bool) -> None:
        self.timeframes = tuple(timeframes)
        self._lateness_ns = round(lateness_s * NS_PER_SECOND)
        self._fill = fill
        self._symbols: dict[str, _Symbol] = {}
        self._newest = NEVER
        self._newest_came = NEVER
        self.late: Counter[Timeframe] = Counter()
        self.early = 0

    @property
    def incomplete(self) -> int:
        """The number of bars left out because some of their trades may be missing."""
        return sum(each.incomplete for of in self._symbols.values() for each in of.series)

    @property
    def unfit(self) -> int:
        """The number of bars left out because one of their values doesn't fit in a tick."""
        return sum(each.unfit for of in self._symbols.values() for each in of.series)

    def open(
        self, symbol: str, sent: Mapping[Timeframe, Bar], partial: Iterable[Timeframe]
    ) -> None:
        """Open a symbol before its first trades.

        Args:
            sent: the latest published bar of each timeframe.
            partial: timeframes for which trades are missing between that bar and the first trade.
        """
        of = self._symbols[symbol] = _Symbol(
            [BarSeries(symbol, each, self._lateness_ns, self._fill) for each in self.timeframes]
        )
        lacking = set(partial)
        for series in of.series:
            if series.timeframe in sent:
                series.resume(sent[series.timeframe])
            if series.timeframe in lacking:
                series.lose()
        of.peek_next()

    def add(self, symbol: str, ticks: Iterable[Tick], came: Time, now: Time) -> list[Bar]:
        """Process a symbol's next trades, in stream order, and return the bars that they close.

        Args:
            came: when the trades arrived, or were stored; not after `now`.
        """
        of = self._symbols[symbol]
        of.came = max(of.came, came)
        for trade in ticks:
            if not isinstance(trade, Trade):
                continue
            if trade.time > now + NEAR_NS:
                self.early += 1
                continue
            for series in of.series:
                if series.add(trade, of.watermark) is TradeOutcome.LATE:
                    self.late[series.timeframe] += 1
            if trade.time > self._newest:
                self._newest, self._newest_came = trade.time, came
            of.watermark = max(of.watermark, trade.time - self._lateness_ns)
        return of.close_due()

    def mark_caught_up(self, symbol: str) -> None:
        """Note that all trades of a symbol from before this program started have been processed."""
        for series in self._symbols[symbol].series:
            series.mark_caught_up()

    def lose(self, symbol: str) -> None:
        """Note that trades of a symbol are missing before the next one."""
        for series in self._symbols[symbol].series:
            series.lose()

    def restart(self, symbol: str) -> None:
        """Reset a symbol's clock: its stream has started a new epoch, whose times may differ."""
        of = self._symbols[symbol]
        of.watermark = NEVER
        for series in of.series:
            series.restart()
        of.peek_next()
        self._newest = self._newest_came = NEVER

    def advance(self, now: Time) -> list[Bar]:
        """Advance the wall clock and return the bars of quiet symbols that this closes."""
        if self._newest == NEVER:
            return []
        clock = self._newest
        if abs(self._newest_came - self._newest) <= NEAR_NS:
            clock += max(0, now - self._newest_came)
        quiet_since = now - self._lateness_ns
        watermark = clock - self._lateness_ns
        closed: list[Bar] = []
        for of in self._symbols.values():
            if of.due is not None and watermark >= of.due and of.came <= quiet_since:
                of.watermark = max(of.watermark, watermark)
                closed += of.close_due()
        return closed


class _Symbol:
    """The series of one symbol, and its watermark: its clock minus the lateness.

    Attributes:
        came: when its last trades arrived.
        due: the watermark at which its next bar closes.
    """

    __slots__ = ("came", "due", "series", "watermark")

    def __init__(self, series: list[BarSeries]) -> None:
        self.series = series
        self.watermark = NEVER
        self.came = NEVER
        self.due: int | None = None

    def peek_next(self) -> None:
        dues = (each.due() for each in self.series)
        self.due = min((due for due in dues if due is not None), default=None)

    def close_due(self) -> list[Bar]:
        """Close the bars that the watermark has passed. The grouping into batches has no effect."""
        self.peek_next()
        if self.due is None or self.watermark < self.due:
            return []
        closed = [bar for each in self.series for bar in each.close(self.watermark)]
        self.peek_next()
        return closed
