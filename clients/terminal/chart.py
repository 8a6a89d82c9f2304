"""Candles and volumes drawn with characters, at two price steps per line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from clients.terminal.candles import TIMEFRAMES, Candle, Candles
from clients.terminal.formats import SPARKS, format_amount, format_price
from tickcast.commands.lines import Line, Segment

_NOTHING, _WICK, _BODY = 0, 1, 2
_GLYPHS: Final = {
    (0, 0): " ", (1, 1): "│", (2, 2): "┃", (1, 2): "╽", (2, 1): "╿",
    (0, 1): "╷", (1, 0): "╵", (0, 2): "╻", (2, 0): "╹",
}  # fmt: skip
"""Characters by the contents of their upper and lower half."""
_LINES_PER_LABEL: Final = 4
_LABEL_GAP: Final = 15


def draw_chart(candles: Candles, decimals: int, width: int, height: int) -> list[Line]:
    """Draw `height` lines: candles with prices on the right, volumes, and a time axis below."""
    volume_lines = max(1, height // 6) if height >= 8 else 0
    price_lines = height - volume_lines - 1
    if price_lines < 2:
        return []
    # The width of the prices decides how many candles fit.
    highest = _span(candles.latest(max(1, width)))[1]
    axis_width = 3 + len(format_price(highest, decimals))
    shown = candles.latest(max(1, width - axis_width))
    low, high = _span(shown)
    if not any(shown) or not math.isfinite(high - low):
        return [[("no trades yet", "dim")], *([] for _ in range(height - 1))]
    scale = _Scale(low, high, price_lines)
    closing = next(each for each in reversed(shown) if each)
    lines = _prices(shown, scale)
    for line, label in zip(lines, _labels(scale, closing, decimals), strict=True):
        line.append(label)
    lines += _volumes(shown, volume_lines)
    lines.append(_times(candles, len(shown)))
    return lines


def _span(candles: Sequence[Candle | None]) -> tuple[float, float]:
    low = min((each.low for each in candles if each), default=0.0)
    high = max((each.high for each in candles if each), default=0.0)
    if high == low:
        return low - 1e-4 * abs(low) - 1e-9, high + 1e-4 * abs(high) + 1e-9
    return low, high


class _Scale:
    """Maps prices to half lines, counted from the top."""

    def __init__(self, low: float, high: float, lines: int) -> None:
        self.low, self.high, self.lines = low, high, lines
        self._per_price = (2 * lines - 1) / (high - low)

    def half(self, price: float) -> int:
        return round((self.high - price) * self._per_price)

    def line(self, price: float) -> int:
        return self.half(price) // 2


def _prices(shown: Sequence[Candle | None], scale: _Scale) -> list[Line]:
    columns = [_column(each, scale) for each in shown]
    styles = [_style_of(each) for each in shown]
    lines = []
    for number in range(scale.lines):
        texts = [column[number] for column in columns]
        lines.append(join(texts, styles))
    return lines


def _column(candle: Candle | None, scale: _Scale) -> list[str]:
    if candle is None:
        return [" "] * scale.lines
    halves = [_NOTHING] * (2 * scale.lines)
    for kind, top, bottom in (
        (_WICK, candle.high, candle.low),
        (_BODY, max(candle.open, candle.close), min(candle.open, candle.close)),
    ):
        first, last = scale.half(top), scale.half(bottom)
        halves[first : last + 1] = [kind] * (last - first + 1)
    return [_GLYPHS[pair] for pair in zip(halves[::2], halves[1::2], strict=True)]


def _style_of(candle: Candle | None) -> str:
    if candle is None:
        return ""
    return "up" if candle.close >= candle.open else "down"


def join(texts: Sequence[str], styles: Sequence[str]) -> Line:
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


def _labels(scale: _Scale, closing: Candle, decimals: int) -> list[Segment]:
    labels: list[Segment] = [("", "")] * scale.lines
    step = _round_step((scale.high - scale.low) * _LINES_PER_LABEL / scale.lines)
    step = max(step, 10.0**-decimals)
    number = math.ceil(scale.low / step)
    while number * step <= scale.high:
        labels[scale.line(number * step)] = (f" {format_price(number * step, decimals)}", "dim")
        number += 1
    style = "up flash" if closing.close >= closing.open else "down flash"
    labels[scale.line(closing.close)] = (f"◂{format_price(closing.close, decimals)}", style)
    return [(f" {text}", style) for text, style in labels]


def _round_step(least: float) -> float:
    """Return the smallest 1, 2 or 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def _volumes(shown: Sequence[Candle | None], lines: int) -> list[Line]:
    most = max((each.volume for each in shown if each), default=0.0) or 1.0
    eighths = [math.ceil(each.volume / most * lines * 8) if each else 0 for each in shown]
    styles = [f"{_style_of(each)} dim".strip() for each in shown]
    drawn = []
    for above in range(lines - 1, -1, -1):
        texts = [(" " + SPARKS)[min(8, max(0, height - 8 * above))] for height in eighths]
        line = join(texts, styles)
        if above == lines - 1:
            line.append((f"  {format_amount(most)}", "dim"))
        drawn.append(line)
    return drawn


def _times(candles: Candles, count: int) -> Line:
    """Draw the time axis, with UTC labels at regular intervals of columns."""
    seconds = TIMEFRAMES[candles.timeframe] < 60
    text = [" "] * count
    for column in range(count - 1, -1, -1):
        number = candles.last - count + 1 + column
        if number % _LABEL_GAP == 0 and number > 0:
            moment = candles.begin(number).rfc3339()
            label = "╵" + (moment[11:19] if seconds else moment[11:16])
            if column + len(label) <= count:
                text[column : column + len(label)] = label
    return [("".join(text), "dim"), (" UTC", "dim")]
