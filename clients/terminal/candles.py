"""Candles out of trades, without I/O, and bounded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from feed.ticks import Tick, Trade
from feed.times import NS_PER_SECOND, Time

CANDLES_MAX: Final = 300
TIMEFRAMES: Final = {"1s": 1, "5s": 5, "1m": 60, "5m": 300}
"""Their lengths in seconds."""


class Candle:
    """What traded in one interval."""

    __slots__ = ("close", "high", "low", "open", "volume")

    def __init__(self, price: float) -> None:
        self.open = self.high = self.low = self.close = price
        self.volume = 0.0

    def take(self, price: float, size: float) -> None:
        """Enter a trade."""
        self.high = max(self.high, price)
        self.low = min(self.low, price)
        self.close = price
        self.volume += size

    def copy(self) -> Candle:
        """The same, to stay as it is."""
        other = Candle(self.open)
        other.high, other.low, other.close = self.high, self.low, self.close
        other.volume = self.volume
        return other


class Candles:
    """The candles of one symbol.

    Attributes:
        last: the number of the latest one, counted in timeframes since the Unix epoch.
        trades: all that were taken.
    """

    def __init__(self, symbol: str, timeframe: str) -> None:
        self.symbol = symbol
        self.timeframe = timeframe
        self.last = 0
        self.trades = 0
        self._length_ns = TIMEFRAMES[timeframe] * NS_PER_SECOND
        self._candles: dict[int, Candle] = {}

    def take(self, ticks: Iterable[Tick]) -> None:
        """Enter trades in the order of their stream; other ticks are left out."""
        for tick in ticks:
            if not isinstance(tick, Trade) or tick.symbol != self.symbol:
                continue
            if not math.isfinite(tick.price):
                continue
            self.trades += 1
            number = int(tick.time) // self._length_ns
            if number <= self.last - CANDLES_MAX:
                continue
            candle = self._candles.get(number)
            if candle is None:
                self.last = max(self.last, number)
                candle = self._candles[number] = Candle(tick.price)
                self._trim()
            candle.take(tick.price, tick.size)

    def _trim(self) -> None:
        if len(self._candles) > CANDLES_MAX:
            kept = self.last - CANDLES_MAX
            self._candles = {key: each for key, each in self._candles.items() if key > kept}

    def latest(self, count: int) -> list[Candle | None]:
        """The last so many intervals, the latest at the end; None where nothing traded."""
        return [self._candles.get(self.last - back) for back in range(count - 1, -1, -1)]

    def begin(self, number: int) -> Time:
        """When the interval with this number begins."""
        return Time(number * self._length_ns)

    def history_from(self, latest: Time) -> Time:
        """From where on trades are needed, for a symbol whose latest tick is of this time."""
        first = int(latest) // self._length_ns - CANDLES_MAX + 1
        return Time(max(1, first * self._length_ns))

    def copy(self) -> Candles:
        """The same, to stay as it is."""
        other = Candles(self.symbol, self.timeframe)
        other.last, other.trades = self.last, self.trades
        other._candles = {number: each.copy() for number, each in self._candles.items()}
        return other
