"""State of a market's symbols, updated from ticks, in bounded memory. No I/O."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable
from typing import Final, Self

from clients.terminal.formats import count_decimals
from tickcast.wire.ticks import Quote, Tick, Trade
from tickcast.wire.times import Time

ROWS_MAX: Final = 1_000
"""Maximum number of symbols to show: the busiest ones."""
HIDDEN_MAX: Final = 100_000
"""Maximum number of other symbols whose ticks are counted."""
SPARK_POINTS: Final = 60
TURN_S: Final = 1.0
"""Interval at which rates and sparklines are updated, in seconds."""
_RATE_TURNS: Final = 5
_REVIEW_TURNS: Final = 2
_CLEARLY_BUSIER: Final = 2


class Row:
    """One symbol.

    Attributes:
        first, last: the first price seen here and the current price; 0 while unknown.
        moved: 1 after the price rose, -1 after it fell, at `moved_at`.
        decimals: the largest number of decimals of its prices.
        volume: the volume traded since it was first seen, without snapshots.
        latest: the time of its latest tick, by the venue's clock.
        course: the last price of each turn, for a sparkline.
    """

    __slots__ = (
        "_count", "_counts", "_timeframe", "course", "decimals", "first", "last", "latest", "moved",
        "moved_at", "quote", "rate", "symbol", "updated_at", "volume",
    )  # fmt: skip

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        self.first = self.last = self.volume = self.rate = 0.0
        self.moved, self.decimals = 0, 2
        self.moved_at = self.updated_at = -1e9
        self.latest = Time(0)
        self.quote: Quote | None = None
        self.course: deque[float] = deque(maxlen=SPARK_POINTS)
        self._count = 0
        self._counts: deque[int] = deque(maxlen=_RATE_TURNS)
        self._timeframe: str | None = None

    @property
    def change(self) -> float:
        """The change in price since the symbol was first seen, in percent."""
        return (self.last / self.first - 1) * 100 if self.first else 0.0

    @property
    def spread(self) -> float | None:
        """Ask minus bid."""
        return self.quote.ask_price - self.quote.bid_price if self.quote else None

    def update(self, tick: Tick, now: float) -> None:
        """Update from a tick that arrived at `now`."""
        self.updated_at = now
        self.latest = tick.time
        self._count += 1
        if isinstance(tick, Quote):
            self.quote = tick
            self._see(tick.bid_price)
            self._see(tick.ask_price)
        elif isinstance(tick, Trade):
            self._timeframe = "trades"
            self._move(tick.price, 0.0 if tick.snap else tick.size, now)
        else:
            # Bars of a second timeframe, and bars of a symbol with trades, would count twice.
            self._timeframe = self._timeframe or tick.timeframe
            counts = tick.timeframe == self._timeframe and not tick.snap
            self._move(tick.close, tick.volume if counts else 0.0, now)

    def _move(self, price: float, size: float, now: float) -> None:
        if not math.isfinite(price):
            return  # MessagePack allows infinity and NaN, which can't be drawn.
        self.volume += size
        if not self.first:
            self.first = price
        elif price != self.last:
            self.moved, self.moved_at = (1 if price > self.last else -1), now
        self.last = price
        self._see(price)

    def _see(self, price: float) -> None:
        self.decimals = max(self.decimals, count_decimals(price))

    def turn(self, elapsed_s: float) -> None:
        """Update the rate and the sparkline, `elapsed_s` after the last turn."""
        self._counts.append(self._count)
        self._count = 0
        self.rate = sum(self._counts) / len(self._counts) / elapsed_s
        if self.first:
            self.course.append(self.last)

    @property
    def recent(self) -> int:
        """The number of ticks since the beginning of the turns that the rate covers."""
        return sum(self._counts) + self._count

    def copy(self) -> Row:
        """Return an independent copy."""
        other = Row(self.symbol)
        for name in Row.__slots__:
            setattr(other, name, getattr(self, name))
        other.course, other._counts = self.course.copy(), self._counts.copy()
        return other


class Market:
    """The busiest symbols, and counts of the others.

    Attributes:
        ticks: the number of ticks taken.
        rate: recent ticks per second.
        hidden: recent ticks by symbol, for symbols without a row.
        changes: how often a row was added or removed.
    """

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self.rows: dict[str, Row] = {}
        self.hidden: dict[str, int] = {}
        self.ticks = self.changes = 0
        self.rate = 0.0
        self._rows_max = rows_max
        self._turned_at: float | None = None
        self._turns = 0
        self._counted: deque[int] = deque([0], maxlen=_RATE_TURNS + 1)

    def update(self, ticks: Iterable[Tick], now: float) -> None:
        """Update from ticks that arrived at `now`."""
        for tick in ticks:
            self.ticks += 1
            row = self.rows.get(tick.symbol)
            if row is None:
                if len(self.rows) >= self._rows_max:
                    self._count_hidden(tick.symbol)
                    continue
                row = self.rows[tick.symbol] = Row(tick.symbol)
                self.changes += 1
            row.update(tick, now)

    def _count_hidden(self, symbol: str) -> None:
        if symbol in self.hidden:
            self.hidden[symbol] += 1
        elif len(self.hidden) < HIDDEN_MAX:
            self.hidden[symbol] = 1

    def turn(self, now: float) -> bool:
        """Update rates and sparklines if a turn is over; return whether it was."""
        if self._turned_at is None:
            self._turned_at = now
        elapsed_s = now - self._turned_at
        if elapsed_s < TURN_S:
            return False
        self._turned_at = now
        for row in self.rows.values():
            row.turn(elapsed_s)
        self._counted.append(self.ticks)
        spans = len(self._counted) - 1
        self.rate = (self._counted[-1] - self._counted[0]) / spans / elapsed_s
        self._turns += 1
        if self.hidden and self._turns % _REVIEW_TURNS == 0:
            self._review()
        return True

    def _review(self) -> None:
        """Replace rows by hidden symbols that are clearly busier."""
        busiest = heapq.nlargest(self._rows_max, self.hidden.items(), key=lambda each: each[1])
        quietest = heapq.nsmallest(len(busiest), self.rows.values(), key=lambda row: row.recent)
        for (symbol, count), row in zip(busiest, quietest, strict=True):
            # The ticks of rows are counted over more turns than those of hidden symbols.
            if count * _RATE_TURNS <= row.recent * _REVIEW_TURNS * _CLEARLY_BUSIER:
                break
            del self.rows[row.symbol], self.hidden[symbol]
            self.rows[symbol] = Row(symbol)
            self.hidden[row.symbol] = 0
            self.changes += 1
        self.hidden = dict.fromkeys(self.hidden, 0)

    def copy(self) -> Self:
        """Return an independent copy."""
        other = type(self)(self._rows_max)
        other.rows = {symbol: row.copy() for symbol, row in self.rows.items()}
        other.hidden, other.rate = self.hidden.copy(), self.rate
        other.ticks, other.changes = self.ticks, self.changes
        return other
