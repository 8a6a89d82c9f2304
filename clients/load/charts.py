"""Plots as SVG text. The page's style sheet sets colours and fonts by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 480
HEIGHT: Final = 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 32, 12, 34
_PLOT_WIDTH: Final = WIDTH - _LEFT - _RIGHT
_PLOT_HEIGHT: Final = HEIGHT - _TOP - _BOTTOM
_DOTS_UP_TO: Final = 60

Format = Callable[[float], str]


class ChartSeries(NamedTuple):
    """A line: its name, its class (`a`, `b` or `c`) and its points; None breaks the line."""

    name: str
    style: str
    points: Sequence[tuple[float, float | None]]


class ChartScale(NamedTuple):
    """An axis from `low` to `high`, and its tick marks."""

    low: float
    high: float
    marks: Sequence[float]
    is_log: bool = False

    def share(self, value: float) -> float:
        """Return the position of a value along the axis, 0 to 1."""
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = (math.log10(max(each, 1e-12)) for each in (value, low, high))
        return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0


def linear(values: Iterable[float]) -> ChartScale:
    """Create a scale from 0 to a round number above all values, with four to six marks."""
    top = max((value for value in values if value > 0), default=1.0)
    rough = top / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    count = math.ceil(top / step - 1e-9)
    return ChartScale(0.0, count * step, [number * step for number in range(count + 1)])


def logarithmic(values: Iterable[float]) -> ChartScale:
    """Create a scale between the powers of ten around all values, with a mark at each power."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    high = max(high, low + 1)
    return ChartScale(10.0**low, 10.0**high, [10.0**power for power in range(low, high + 1)], True)


def line_chart(
    series: Sequence[ChartSeries],
    x: ChartScale,
    y: ChartScale,
    x_format: Format,
    y_format: Format,
    title: str,
) -> str:
    """Draw lines over a grid; `title` is for screen readers."""
    parts = [*_grid(x, y, x_format, y_format)]
    for each in series:
        for run in _unbroken(each.points):
            places = [(_x(x, value), _y(y, height)) for value, height in run]
            path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
            parts.append(f'<polyline class="line {each.style}" points="{path}"/>')
            if len(places) <= _DOTS_UP_TO:
                parts += (
                    f'<circle class="dot {each.style}" cx="{left:.1f}" cy="{top:.1f}" r="2.6">'
                    f"<title>{escape(f'{x_format(value)}, {each.name}: {y_format(height)}')}"
                    "</title></circle>"
                    for (left, top), (value, height) in zip(places, run, strict=True)
                )
    return _svg(parts, title)


def bar_chart(
    bars: Sequence[tuple[float, float, float, str]], x: ChartScale, y: ChartScale, x_format: Format,
    y_format: Format, title: str,
) -> str:  # fmt: skip
    """Draw bars, each given by its start, end, height and tooltip."""
    parts = [*_grid(x, y, x_format, y_format)]
    floor = _TOP + _PLOT_HEIGHT
    for low, high, height, text in bars:
        left, right, top = _x(x, low), _x(x, high), _y(y, height)
        width = max(1.0, right - left - 1.5)
        top = min(top, floor - 1.0) if height > 0 else floor
        parts.append(
            f'<rect class="bar" x="{left + 0.75:.1f}" y="{top:.1f}" width="{width:.1f}"'
            f' height="{floor - top:.1f}" rx="1.5"><title>{escape(text)}</title></rect>'
        )
    return _svg(parts, title)


def _unbroken(
    points: Sequence[tuple[float, float | None]],
) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for value, height in points:
        if height is None:
            runs.append([])
        else:
            runs[-1].append((value, height))
    return [run for run in runs if run]


def _grid(x: ChartScale, y: ChartScale, x_format: Format, y_format: Format) -> Iterable[str]:
    right, floor = _LEFT + _PLOT_WIDTH, _TOP + _PLOT_HEIGHT
    for mark in y.marks:
        top = _y(y, mark)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{top:.1f}" y2="{top:.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 7}" y="{top + 4:.1f}" text-anchor="end">'
        yield f"{escape(y_format(mark))}</text>"
    for mark in x.marks:
        left = _x(x, mark)
        yield f'<line class="axis" x1="{left:.1f}" x2="{left:.1f}" y1="{floor}" y2="{floor + 5}"/>'
        yield f'<text class="tick" x="{left:.1f}" y="{floor + 20}" text-anchor="middle">'
        yield f"{escape(x_format(mark))}</text>"
    yield f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{floor}" y2="{floor}"/>'


def _x(scale: ChartScale, value: float) -> float:
    return _LEFT + scale.share(value) * _PLOT_WIDTH


def _y(scale: ChartScale, value: float) -> float:
    return _TOP + (1 - scale.share(value)) * _PLOT_HEIGHT


def _svg(parts: Iterable[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        + "".join(parts)
        + "</svg>"
    )
