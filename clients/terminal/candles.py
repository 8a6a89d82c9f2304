"""Candles built from trades, in bounded memory, and their chart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Final, Self

from clients.terminal.tables import SPARKS, format_amount, format_price
from tickcast.commands.terminal import Line, Segment
from tickcast.wire.ticks import Tick, Trade
from tickcast.wire.times import NS_PER_SECOND, Time

CANDLES_MAX: Final = 300
TIMEFRAMES: Final = {"1s": 1, "5s": 5, "1m": 60, "5m": 300}
"""Length of each timeframe, in seconds."""

# A character of the chart shows two price steps. These are the characters by the contents of their
# upper and lower half.
_NOTHING, _WICK, _BODY = 0, 1, 2
_GLYPHS: Final = {
    (0, 0): " ", (1, 1): "│", (2, 2): "┃", (1, 2): "╽", (2, 1): "╿",
    (0, 1): "╷", (1, 0): "╵", (0, 2): "╻", (2, 0): "╹",
}  # fmt: skip
_LINES_PER_PRICE: Final = 4
_COLUMNS_PER_TIME: Final = 15


class Candle:
    """The trades of one interval."""

    def __init__(self, price: float) -> None:
        self.open = self.high = self.low = self.close = price
        self.volume = 0.0

    def add_trade(self, price: float, size: float) -> None:
        """Add a trade."""
        self.high = max(self.high, price)
        self.low = min(self.low, price)
        self.close = price
        self.volume += size

    @property
    def style(self) -> str:
        """The name of the style to draw it in."""
        return "up" if self.close >= self.open else "down"


class Candles:
    """The candles of one symbol."""

    def __init__(self, symbol: str, timeframe: str) -> None:
        self.symbol = symbol
        self.timeframe = timeframe
        # The number of the latest candle, counted in timeframes since the Unix epoch.
        self.newest = 0
        self._length_ns = TIMEFRAMES[timeframe] * NS_PER_SECOND
        self._candles: dict[int, Candle] = {}

    def add_trades(self, ticks: Iterable[Tick]) -> None:
        """Add trades in stream order; other ticks are ignored."""
        for tick in ticks:
            if not isinstance(tick, Trade) or tick.symbol != self.symbol:
                continue
            number = int(tick.time) // self._length_ns
            if not math.isfinite(tick.price) or number <= self.newest - CANDLES_MAX:
                continue
            candle = self._candles.get(number)
            if candle is None:
                self.newest = max(self.newest, number)
                candle = self._candles[number] = Candle(tick.price)
                if len(self._candles) > CANDLES_MAX:
                    oldest = self.newest - CANDLES_MAX
                    self._candles = {n: c for n, c in self._candles.items() if n > oldest}
            candle.add_trade(tick.price, tick.size)

    def latest(self, count: int) -> list[Candle | None]:
        """Return the last `count` intervals, the latest at the end; None if without trades."""
        return [self._candles.get(self.newest - back) for back in range(count - 1, -1, -1)]

    def start_of(self, number: int) -> Time:
        """Return the start of the interval with this number."""
        return Time(number * self._length_ns)

    def history_from(self, latest: Time) -> Time:
        """Return the time from which trades are needed, given the time of the latest tick."""
        first = int(latest) // self._length_ns - CANDLES_MAX + 1
        return Time(max(1, first * self._length_ns))

    def snapshot(self) -> Self:
        """Return a copy to show; further trades do not change it."""
        frozen = copy(self)
        frozen._candles = {number: copy(candle) for number, candle in self._candles.items()}
        return frozen


def draw_chart(candles: Candles, decimals: int, width: int, height: int) -> list[Line]:
    """Draw `height` lines: candles with prices on the right, volumes, and a time axis below."""
    volume_lines = max(1, height // 6) if height >= 8 else 0
    price_lines = height - volume_lines - 1
    if price_lines < 2:
        return []
    # The width of the prices decides how many candles fit.
    highest = _price_range(candles.latest(max(1, width)))[1]
    axis_width = 3 + len(format_price(highest, decimals))
    shown = candles.latest(max(1, width - axis_width))
    low, high = _price_range(shown)
    if not any(shown) or not math.isfinite(high - low):
        return [[("no trades yet", "dim")], *([] for _ in range(height - 1))]
    scale = _Scale(low, high, price_lines)
    columns = [scale.column(candle) for candle in shown]
    styles = [candle.style if candle else "" for candle in shown]
    labels = scale.labels(next(candle for candle in reversed(shown) if candle), decimals)
    lines = [
        [*_join([column[number] for column in columns], styles), label]
        for number, label in enumerate(labels)
    ]
    return [*lines, *_draw_volumes(shown, volume_lines), _draw_times(candles, len(shown))]


def _price_range(candles: Sequence[Candle | None]) -> tuple[float, float]:
    low = min((candle.low for candle in candles if candle), default=0.0)
    high = max((candle.high for candle in candles if candle), default=0.0)
    if high == low:
        return low - 1e-4 * abs(low) - 1e-9, high + 1e-4 * abs(high) + 1e-9
    return low, high


class _Scale:
    """Maps prices to half lines, counted from the top."""

    def __init__(self, low: float, high: float, lines: int) -> None:
        self._low, self._high, self._lines = low, high, lines
        self._halves_per_price = (2 * lines - 1) / (high - low)

    def _half(self, price: float) -> int:
        return round((self._high - price) * self._halves_per_price)

    def column(self, candle: Candle | None) -> list[str]:
        """Return the characters of a candle, from the top."""
        halves = [_NOTHING] * (2 * self._lines)
        if candle is not None:
            for kind, top, bottom in (
                (_WICK, candle.high, candle.low),
                (_BODY, max(candle.open, candle.close), min(candle.open, candle.close)),
            ):
                first, last = self._half(top), self._half(bottom)
                halves[first : last + 1] = [kind] * (last - first + 1)
        return [_GLYPHS[pair] for pair in zip(halves[::2], halves[1::2], strict=True)]

    def labels(self, latest: Candle, decimals: int) -> list[Segment]:
        """Return the axis: round prices, and the current one."""
        labels: list[Segment] = [(" ", "")] * self._lines
        step = _round_up((self._high - self._low) * _LINES_PER_PRICE / self._lines)
        step = max(step, 10.0**-decimals)
        for number in range(math.ceil(self._low / step), math.floor(self._high / step) + 1):
            price = number * step
            labels[self._half(price) // 2] = (f"  {format_price(price, decimals)}", "dim")
        label = f" ◂{format_price(latest.close, decimals)}"
        labels[self._half(latest.close) // 2] = (label, f"{latest.style} flash")
        return labels


def _round_up(least: float) -> float:
    """Return the smallest 1, 2 or 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def _join(texts: Sequence[str], styles: Sequence[str]) -> Line:
    """Join styled characters into as few segments as possible."""
    line: Line = []
    begun, style = 0, ""
    for number, text in enumerate(texts):
        if text != " " and styles[number] != style:
            if number > begun:
                line.append(("".join(texts[begun:number]), style))
            begun, style = number, styles[number]
    line.append(("".join(texts[begun:]), style))
    return line


def _draw_volumes(shown: Sequence[Candle | None], lines: int) -> list[Line]:
    highest = max((candle.volume for candle in shown if candle), default=0.0) or 1.0
    eighths = [math.ceil(each.volume / highest * lines * 8) if each else 0 for each in shown]
    styles = [f"{candle.style} dim" if candle else "" for candle in shown]
    drawn = []
    for above in reversed(range(lines)):
        texts = [(" " + SPARKS)[min(8, max(0, count - 8 * above))] for count in eighths]
        drawn.append(_join(texts, styles))
    if drawn:
        drawn[0].append((f"  {format_amount(highest)}", "dim"))
    return drawn


def _draw_times(candles: Candles, count: int) -> Line:
    """Draw the time axis, with UTC labels at regular intervals of columns."""
    end = 19 if TIMEFRAMES[candles.timeframe] < 60 else 16
    text = [" "] * count
    for column in reversed(range(count)):
        number = candles.newest - count + 1 + column
        if number % _COLUMNS_PER_TIME == 0 and number > 0:
            label = "╵" + candles.start_of(number).rfc3339()[11:end]
            if column + len(label) <= count:
                text[column : column + len(label)] = label
    return [("".join(text), "dim"), (" UTC", "dim")]
