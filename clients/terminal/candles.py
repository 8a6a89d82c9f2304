"""Candles built from trades, in bounded memory. No I/O."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

from tickcast.wire.ticks import Tick, Trade
from tickcast.wire.times import NS_PER_SECOND, Time

CANDLES_MAX: Final = 300
TIMEFRAMES: Final = {"1s": 1, "5s": 5, "1m": 60, "5m": 300}
"""Length of each timeframe, in seconds."""


class Candle:
    """The trades of one interval."""

    __slots__ = ("close", "high", "low", "open", "volume")

    def __init__(self, price: float) -> None:
        self.open = self.high = self.low = self.close = price
        self.volume = 0.0

    def add(self, price: float, size: float) -> None:
        """Add a trade."""
        self.high = max(self.high, price)
        self.low = min(self.low, price)
        self.close = price
        self.volume += size

    def copy(self) -> Candle:
        """Return an independent copy."""
        other = Candle(self.open)
        other.high, other.low, other.close = self.high, self.low, self.close
        other.volume = self.volume
        return other


class Candles:
    """The candles of one symbol.

    Attributes:
        last: the number of the latest candle, counted in timeframes since the Unix epoch.
        trades: how many trades were added.
    """

    def __init__(self, symbol: str, timeframe: str) -> None:
        self.symbol = symbol
        self.timeframe = timeframe
        self.last = 0
        self.trades = 0
        self._length_ns = TIMEFRAMES[timeframe] * NS_PER_SECOND
        self._candles: dict[int, Candle] = {}

    def add(self, ticks: Iterable[Tick]) -> None:
        """Add trades in stream order; other ticks are ignored."""
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
            candle.add(tick.price, tick.size)

    def _trim(self) -> None:
        if len(self._candles) > CANDLES_MAX:
            kept = self.last - CANDLES_MAX
            self._candles = {key: each for key, each in self._candles.items() if key > kept}

    def latest(self, count: int) -> list[Candle | None]:
        """Return the last `count` intervals, the latest at the end; None if without trades."""
        return [self._candles.get(self.last - back) for back in range(count - 1, -1, -1)]

    def begin(self, number: int) -> Time:
        """Return the start of the interval with this number."""
        return Time(number * self._length_ns)

    def history_from(self, latest: Time) -> Time:
        """Return the time from which trades are needed, given the time of the latest tick."""
        first = int(latest) // self._length_ns - CANDLES_MAX + 1
        return Time(max(1, first * self._length_ns))

    def copy(self) -> Candles:
        """Return an independent copy."""
        other = Candles(self.symbol, self.timeframe)
        other.last, other.trades = self.last, self.trades
        other._candles = {number: each.copy() for number, each in self._candles.items()}
        return other
