"""The charts of a report as SVG text. The page's style sheet sets colors and fonts by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from typing import Final, NamedTuple

from clients.load.report import Bucket, LoadReport
from clients.load.text import coarse, ms, size

_WIDTH, _HEIGHT = 480, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, _WIDTH - 32, 12, _HEIGHT - 34
_DOTS_MAX: Final = 60
_BARS_MAX: Final = 28
_SHARES: Final = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
_TIME_STEPS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 86_400, 864_000)

Format = Callable[[float], str]
_percent: Final[Format] = "{:g}%".format


class Chart(NamedTuple):
    """A chart, with its heading, its legend (name and class) and a hint on how to read it."""

    heading: str
    svg: str
    legend: Sequence[tuple[str, str]]
    hint: str


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

    def x(self, value: float) -> float:
        """Return the horizontal position of a value, for a scale from left to right."""
        return _LEFT + self.share(value) * (_RIGHT - _LEFT)

    def y(self, value: float) -> float:
        """Return the vertical position of a value, for a scale from the bottom up."""
        return _TOP + (1 - self.share(value)) * (_BOTTOM - _TOP)


class ChartSeries(NamedTuple):
    """A line: its name, its class (`a`, `b` or `c`) and its points; None breaks the line."""

    name: str
    style: str
    points: Sequence[tuple[float, float | None]]


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


# -- drawing


def _line_chart(
    series: Sequence[ChartSeries], x: ChartScale, y: ChartScale, x_format: Format,
    y_format: Format, title: str,
) -> str:  # fmt: skip
    parts = [*_grid(x, y, x_format, y_format)]
    for each in series:
        for run in _unbroken(each.points):
            places = [(x.x(value), y.y(height)) for value, height in run]
            path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
            parts.append(f'<polyline class="line {each.style}" points="{path}"/>')
            if len(places) <= _DOTS_MAX:
                parts += (
                    f'<circle class="dot {each.style}" cx="{left:.1f}" cy="{top:.1f}" r="2.6">'
                    f"<title>{escape(f'{x_format(value)}, {each.name}: {y_format(height)}')}"
                    "</title></circle>"
                    for (left, top), (value, height) in zip(places, run, strict=True)
                )
    return _svg(parts, title)


def _unbroken(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for value, height in points:
        if height is None:
            runs.append([])
        else:
            runs[-1].append((value, height))
    return [run for run in runs if run]


def _grid(x: ChartScale, y: ChartScale, x_format: Format, y_format: Format) -> Iterator[str]:
    for mark in y.marks:
        top = y.y(mark)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_RIGHT}" y1="{top:.1f}" y2="{top:.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 7}" y="{top + 4:.1f}" text-anchor="end">'
        yield f"{escape(y_format(mark))}</text>"
    for mark in x.marks:
        left = x.x(mark)
        yield f'<line class="axis" x1="{left:.1f}" x2="{left:.1f}" y1="{_BOTTOM}"'
        yield f' y2="{_BOTTOM + 5}"/><text class="tick" x="{left:.1f}" y="{_BOTTOM + 20}"'
        yield f' text-anchor="middle">{escape(x_format(mark))}</text>'
    yield f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>'


def _svg(parts: Iterable[str], title: str) -> str:
    label = escape(title)  # For screen readers.
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
    return f"{svg}{''.join(parts)}</svg>"


# -- the charts of a report


def draw_charts(report: LoadReport) -> Iterator[Chart]:
    """Yield all charts that have data."""
    if report.latency_histogram or report.slow_latency_histogram:
        yield _percentiles(report)
    if report.latency_histogram:
        yield _histogram(report.latency_histogram)
    timeline = report.timeline
    if len(timeline) < 2:
        return
    yield _over_time(
        report, "Throughput", "Ticks a second, all clients together.",
        {"ticks_per_s": ("ticks/s", "a")}, _short, linear,
    )  # fmt: skip
    if any(point.p50_ms is not None for point in timeline):
        lines = {"p50_ms": ("p50", "a"), "p99_ms": ("p99", "b"), "max_ms": ("max", "c")}
        if any(point.slow_p99_ms is not None for point in timeline):
            del lines["max_ms"]
            lines["slow_p99_ms"] = ("slow clients p99", "c")
        hint = "From tick time, of what arrived in each second."
        yield _over_time(report, "Latency over time", hint, lines, ms, logarithmic)
    if any(point.queue_max_bytes for point in timeline):
        yield _over_time(
            report, "Server queues", "Bytes that wait for a client, by its heartbeats.",
            {"queue_max_bytes": ("longest", "b"), "queue_mean_bytes": ("mean", "a")}, size, linear,
        )  # fmt: skip
    lines = {
        "server_cpu_percent": ("server", "a"),
        "worker_cpu_percent": ("load tester, busiest process", "b"),
        "parent_cpu_percent": ("publisher", "c"),
    }
    if all(point.server_cpu_percent is None for point in timeline):
        del lines["server_cpu_percent"]
    yield _over_time(report, "CPU", "100% is one core.", lines, _percent, linear)
    yield _over_time(
        report, "Lag of the load tester",
        "How late its event loop ran at worst: its own share in latencies.",
        {"loop_lateness_ms": ("lateness", "c")}, ms, linear,
    )  # fmt: skip


def _percentiles(report: LoadReport) -> Chart:
    buckets = {
        ("reading clients", "a"): report.latency_histogram,
        ("slow clients", "b"): report.slow_latency_histogram,
    }
    series = [ChartSeries(*key, _curve(found)) for key, found in buckets.items() if found]
    heights = [height for each in series for _, height in each.points if height]
    farthest = max(place for each in series for place, _ in each.points)
    marks = [_nines(share) for share in _SHARES if _nines(share) <= farthest]
    x = ChartScale(0.0, max(farthest, 0.5), marks)
    heading = "Latency by percentile"
    svg = _line_chart(series, x, logarithmic(heights), _percent_of_nines, ms, heading)
    hint = "From tick time to arrival. Each step to the right is ten times rarer."
    return Chart(heading, svg, [(each.name, each.style) for each in series], hint)


def _curve(buckets: Sequence[Bucket]) -> list[tuple[float, float | None]]:
    """Return the points of the percentile chart: the percentile in nines, and the latency."""
    total = sum(bucket.count for bucket in buckets)
    curve: list[tuple[float, float | None]] = []
    seen = 0
    for bucket in buckets:
        nines = _nines(min(seen / total, _SHARES[-1]))
        if not curve or nines - curve[-1][0] > 0.01:
            curve.append((nines, max(bucket.from_ms, 0.001)))
        seen += bucket.count
    return curve


def _nines(share: float) -> float:
    return -math.log10(1 - share)


def _percent_of_nines(nines: float) -> str:
    return f"{100 * (1 - 10**-nines):.5g}%"


def _histogram(buckets: Sequence[Bucket]) -> Chart:
    rows = coarse(buckets, _BARS_MAX)
    total = sum(count for _, _, count in rows)
    low, high = rows[0][0], rows[-1][1]
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    marks = [10.0**power for power in powers]
    if len(marks) < 3:
        marks = [row[0] for row in rows[:: max(1, -(-len(rows) // 5))]]
    x = ChartScale(low, high, marks, True)
    y = linear(count / total * 100 for _, _, count in rows)
    parts = [*_grid(x, y, ms, _percent)]
    for low, high, count in rows:
        left, width = x.x(low), max(1.0, x.x(high) - x.x(low) - 1.5)
        top = min(y.y(count / total * 100), _BOTTOM - 1.0) if count else _BOTTOM
        text = f"{ms(low)} to {ms(high)}: {count:,} ({count / total:.2%})"
        parts.append(
            f'<rect class="bar" x="{left + 0.75:.1f}" y="{top:.1f}" width="{width:.1f}"'
            f' height="{_BOTTOM - top:.1f}" rx="1.5"><title>{escape(text)}</title></rect>'
        )
    heading, hint = "Latency histogram", "Share of ticks, reading clients, from tick time."
    return Chart(heading, _svg(parts, heading), (), hint)


def _over_time(
    report: LoadReport, heading: str, hint: str, lines: dict[str, tuple[str, str]],
    y_format: Format, y_scale: Callable[[list[float]], ChartScale],
) -> Chart:  # fmt: skip
    """Draw fields of the timeline, each given by its name and class."""
    timeline = report.timeline
    series = [
        ChartSeries(name, style, [(point.second + 1, getattr(point, field)) for point in timeline])
        for field, (name, style) in lines.items()
    ]
    heights = [height for each in series for _, height in each.points if height is not None]
    end = timeline[-1].second + 1
    step = next(each for each in _TIME_STEPS if end / each <= 6)
    x = ChartScale(1, end, [mark for mark in range(0, end + 1, step) if mark >= 1])
    svg = _line_chart(series, x, y_scale(heights), _seconds, y_format, heading)
    return Chart(heading, svg, list(lines.values()) if len(lines) > 1 else [], hint)


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"


def _short(value: float) -> str:
    """Format a count compactly: 950, 12k, 1.5M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"
