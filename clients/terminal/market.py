"""The symbols of a market, updated from ticks, in bounded memory."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable
from copy import copy
from typing import Final, Self

from tickcast.wire.ticks import Quote, Tick, Trade
from tickcast.wire.times import Time

# The table has rows for this many symbols, the busiest ones. Ticks of others are only counted.
ROWS_MAX: Final = 1_000
HIDDEN_MAX: Final = 100_000
SPARK_POINTS: Final = 60
# From this price on, floats have no decimals worth showing, and formatting them takes long.
HUGE: Final = 1e9

# Rates and sparklines advance once per interval. A rate covers the last five of them.
_INTERVAL_S: Final = 1.0
_RATE_INTERVALS: Final = 5
# A hidden symbol gets a row if it is at least twice as busy as the symbol that has it. Otherwise
# two symbols of similar activity would take turns.
_REVIEW_INTERVALS: Final = 2
_CLEARLY_BUSIER: Final = 2


class Row:
    """One symbol."""

    def __init__(self, symbol: str) -> None:
        self.symbol = symbol
        # The first price seen here and the current price; 0 while unknown.
        self.first_price = self.price = 0.0
        # 1 after the price rose, -1 after it fell, and when that was.
        self.direction = 0
        self.moved_at = self.updated_at = -1e9
        # The volume traded since the symbol was first seen, without snapshots.
        self.volume = 0.0
        # Ticks per second.
        self.rate = 0.0
        # The largest number of decimals of any price so far, so that columns do not jump.
        self.decimals = 2
        # The venue's time of the latest tick.
        self.time = Time(0)
        self.quote: Quote | None = None
        # The price at the end of each interval, for a sparkline.
        self.history: deque[float] = deque(maxlen=SPARK_POINTS)
        self._count = 0
        self._counts: deque[int] = deque(maxlen=_RATE_INTERVALS)
        # Volumes come from trades, or from the bars of one timeframe.
        self._volume_source: str | None = None

    @property
    def change(self) -> float:
        """The change in price since the symbol was first seen, in percent."""
        return (self.price / self.first_price - 1) * 100 if self.first_price else 0.0

    @property
    def recent_ticks(self) -> int:
        """The number of ticks in the intervals that the rate covers, and since."""
        return sum(self._counts) + self._count

    def add_tick(self, tick: Tick, now: float) -> None:
        """Update from a tick that arrived at `now`."""
        self.updated_at = now
        self.time = tick.time
        self._count += 1
        if isinstance(tick, Quote):
            self.quote = tick
            self._widen(tick.bid_price)
            self._widen(tick.ask_price)
        elif isinstance(tick, Trade):
            self._volume_source = "trades"
            self._move(tick.price, 0.0 if tick.snap else tick.size, now)
        else:
            # Bars of a second timeframe, and bars of a symbol with trades, would count twice.
            self._volume_source = self._volume_source or tick.timeframe
            counts = tick.timeframe == self._volume_source and not tick.snap
            self._move(tick.close, tick.volume if counts else 0.0, now)

    def _move(self, price: float, size: float, now: float) -> None:
        if not math.isfinite(price):
            return  # MessagePack allows infinity and NaN, which can't be drawn.
        self.volume += size
        if not self.first_price:
            self.first_price = price
        elif price != self.price:
            self.direction, self.moved_at = (1 if price > self.price else -1), now
        self.price = price
        self._widen(price)

    def _widen(self, price: float) -> None:
        self.decimals = max(self.decimals, count_decimals(price))

    def end_interval(self, elapsed_s: float) -> None:
        """Update the rate and the sparkline, `elapsed_s` after the last call."""
        self._counts.append(self._count)
        self._count = 0
        self.rate = sum(self._counts) / len(self._counts) / elapsed_s
        if self.first_price:
            self.history.append(self.price)


class Market:
    """The busiest symbols, and counts of the others."""

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self.rows: dict[str, Row] = {}
        # Recent ticks of each symbol without a row.
        self.hidden: dict[str, int] = {}
        self.ticks = 0
        # Ticks per second, recently.
        self.rate = 0.0
        # How often a row was added or removed.
        self.changes = 0
        self._rows_max = rows_max
        self._interval_began_at: float | None = None
        self._intervals = 0
        self._totals: deque[int] = deque([0], maxlen=_RATE_INTERVALS + 1)

    def add_ticks(self, ticks: Iterable[Tick], now: float) -> None:
        """Update from ticks that arrived at `now`."""
        for tick in ticks:
            self.ticks += 1
            row = self.rows.get(tick.symbol)
            if row is None:
                if len(self.rows) >= self._rows_max:
                    if tick.symbol in self.hidden or len(self.hidden) < HIDDEN_MAX:
                        self.hidden[tick.symbol] = self.hidden.get(tick.symbol, 0) + 1
                    continue
                row = self.rows[tick.symbol] = Row(tick.symbol)
                self.changes += 1
            row.add_tick(tick, now)

    def update_rates(self, now: float) -> bool:
        """Update rates and sparklines if an interval is over; return whether it was."""
        if self._interval_began_at is None:
            self._interval_began_at = now
        elapsed_s = now - self._interval_began_at
        if elapsed_s < _INTERVAL_S:
            return False
        self._interval_began_at = now
        for row in self.rows.values():
            row.end_interval(elapsed_s)
        self._totals.append(self.ticks)
        self.rate = (self._totals[-1] - self._totals[0]) / (len(self._totals) - 1) / elapsed_s
        self._intervals += 1
        if self.hidden and self._intervals % _REVIEW_INTERVALS == 0:
            self._replace_quiet_rows()
        return True

    def _replace_quiet_rows(self) -> None:
        busiest = heapq.nlargest(self._rows_max, self.hidden.items(), key=lambda item: item[1])
        quietest = heapq.nsmallest(len(busiest), self.rows.values(), key=lambda r: r.recent_ticks)
        for (symbol, count), row in zip(busiest, quietest, strict=True):
            # The ticks of rows are counted over more intervals than those of hidden symbols.
            if count * _RATE_INTERVALS <= row.recent_ticks * _REVIEW_INTERVALS * _CLEARLY_BUSIER:
                break
            del self.rows[row.symbol], self.hidden[symbol]
            self.rows[symbol] = Row(symbol)
            self.hidden[row.symbol] = 0
            self.changes += 1
        self.hidden = dict.fromkeys(self.hidden, 0)

    def snapshot(self) -> Self:
        """Return a copy to show; further ticks do not change it."""
        # Not deepcopy, which takes 0.4 s for a thousand rows.
        frozen = copy(self)
        frozen.hidden = self.hidden.copy()
        frozen.rows = {symbol: copy(row) for symbol, row in self.rows.items()}
        for row in frozen.rows.values():
            row.history = row.history.copy()
        return frozen


def count_decimals(price: float) -> int:
    """Count the decimals of a price, from two to eight."""
    if abs(price) >= HUGE:
        return 2
    return max(2, len(f"{price:.8f}".rstrip("0").partition(".")[2]))
