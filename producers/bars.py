"""Bars out of trades, for all symbols of a feed, by the times of the trades. No I/O inside.

Two clocks decide when a bar is over, and both run on the times of trades. A symbol's own is its
newest trade. The feed's is the newest trade of any symbol; where that came within a minute of its
time, the feed is live, and its clock goes on with the wall's. A bar is closed when the symbol's
clock is past its end by the lateness. It is closed as well when the feed's clock is, and nothing
has come of the symbol for as long as the lateness: then nothing is on its way.

So a replay is right at any speed and of any year, however unevenly its symbols come, and a live
symbol that falls quiet has its bars in time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from feed.ticks import Bar, Tick, Timeframe, Trade
from feed.times import NS_PER_SECOND, Time
from producers.series import NEVER, Series, Verdict

NEAR_NS: Final = 60 * NS_PER_SECOND
"""How far a live trade's time may be from the wall clock; one further ahead is not believed."""


class Bars:
    """All symbols' bars of some timeframes.

    Args:
        lateness_s: how much later than a newer one a trade may come.
        fill: whether a symbol that has traded once has bars without trades as well.

    Attributes:
        late: trades that came when their bar was closed, by timeframe; a trade may be late for
            one and in time for another.
        early: trades that are dated more than a minute after now; they are in no bar.
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
        """Bars that were left out, because trades of theirs may be missing."""
        return sum(each.incomplete for of in self._symbols.values() for each in of.series)

    @property
    def unfit(self) -> int:
        """Bars that were left out, because a figure of theirs is beyond what a tick can hold."""
        return sum(each.unfit for of in self._symbols.values() for each in of.series)

    def open(
        self, symbol: str, sent: Mapping[Timeframe, Bar], partial: Iterable[Timeframe]
    ) -> None:
        """Begin with a symbol, whose trades come next.

        Args:
            sent: the latest bars that were sent before.
            partial: timeframes that lack trades after those, before the first that comes.
        """
        of = self._symbols[symbol] = _Symbol(
            [Series(symbol, each, self._lateness_ns, self._fill) for each in self.timeframes]
        )
        lacking = set(partial)
        for series in of.series:
            if series.timeframe in sent:
                series.resume(sent[series.timeframe])
            if series.timeframe in lacking:
                series.lose()
        of.look_ahead()

    def take(self, symbol: str, ticks: Iterable[Tick], came: Time, now: Time) -> list[Bar]:
        """Take a symbol's next trades, in the order of their stream; returns bars that closed.

        Args:
            came: when they came, or were stored; not after `now`.
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
                if series.take(trade, of.watermark) is Verdict.LATE:
                    self.late[series.timeframe] += 1
            if trade.time > self._newest:
                self._newest, self._newest_came = trade.time, came
            of.watermark = max(of.watermark, trade.time - self._lateness_ns)
        return of.close_due()

    def settle(self, symbol: str) -> None:
        """What was there of a symbol before this program began has been taken."""
        for series in self._symbols[symbol].series:
            series.settle()

    def lose(self, symbol: str) -> None:
        """Trades of a symbol are missing before the next one."""
        for series in self._symbols[symbol].series:
            series.lose()

    def restart(self, symbol: str) -> None:
        """A symbol's numbering has begun anew, perhaps at another time: so does its clock."""
        of = self._symbols[symbol]
        of.watermark = NEVER
        for series in of.series:
            series.restart()
        of.look_ahead()
        self._newest = self._newest_came = NEVER

    def advance(self, now: Time) -> list[Bar]:
        """Let the wall clock go on; returns bars of quiet symbols that closed by it."""
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
    """One symbol's series, and its clock less the lateness.

    Attributes:
        came: when its last trades came.
        due: the watermark at which one of its bars is to be closed.
    """

    __slots__ = ("came", "due", "series", "watermark")

    def __init__(self, series: list[Series]) -> None:
        self.series = series
        self.watermark = NEVER
        self.came = NEVER
        self.due: int | None = None

    def look_ahead(self) -> None:
        dues = (each.due() for each in self.series)
        self.due = min((due for due in dues if due is not None), default=None)

    def close_due(self) -> list[Bar]:
        """The bars that the clock has passed; in which batch a trade came makes no difference."""
        self.look_ahead()
        if self.due is None or self.watermark < self.due:
            return []
        closed = [bar for each in self.series for bar in each.close(self.watermark)]
        self.look_ahead()
        return closed
