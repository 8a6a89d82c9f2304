"""The plots of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from clients.load.charts import ChartScale, ChartSeries, bar_chart, line_chart, linear, logarithmic
from clients.load.report import Bucket, LoadReport, Point
from clients.load.text import coarse, ms, size

_BARS_MAX: Final = 28
_SHARES: Final = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)


class Figure(NamedTuple):
    """A plot, with its heading, its legend (name and class) and a hint on how to read it."""

    heading: str
    svg: str
    legend: Sequence[tuple[str, str]]
    hint: str


def figures_of(report: LoadReport) -> Iterator[Figure]:
    """Yield all plots that have data."""
    if report.latency_histogram or report.slow_latency_histogram:
        yield _percentiles(report)
    if report.latency_histogram:
        yield _histogram(report)
    timeline = report.timeline
    if len(timeline) < 2:
        return
    yield _throughput(timeline)
    if any(point.p50_ms is not None for point in timeline):
        yield _latency_over_time(timeline)
    if any(point.queue_max_bytes for point in timeline):
        yield _queues(timeline)
    yield _cpu(timeline)
    yield _lateness(timeline)


def _percentiles(report: LoadReport) -> Figure:
    series = [
        ChartSeries(name, style, curve)
        for name, style, buckets in (
            ("reading clients", "a", report.latency_histogram),
            ("slow clients", "b", report.slow_latency_histogram),
        )
        if (curve := _curve(buckets))
    ]
    heights = [height for each in series for _, height in each.points if height]
    farthest = max(place for each in series for place, _ in each.points)
    marks = [_nines(share) for share in _SHARES if _nines(share) <= farthest]
    svg = line_chart(
        series, ChartScale(0.0, max(farthest, 0.5), marks), logarithmic(heights),
        _percent_of_nines, ms, "Latency by percentile",
    )  # fmt: skip
    return Figure(
        "Latency by percentile", svg, [(each.name, each.style) for each in series],
        "From tick time to arrival. Each step to the right is ten times rarer.",
    )  # fmt: skip


def _curve(buckets: Sequence[Bucket]) -> list[tuple[float, float | None]]:
    """Return the points of the percentile plot: the percentile in nines, and the latency."""
    total = sum(bucket.count for bucket in buckets)
    curve: list[tuple[float, float | None]] = []
    seen = 0
    for bucket in buckets:
        share = min(seen / total, _SHARES[-1])
        if not curve or _nines(share) - curve[-1][0] > 0.01:
            curve.append((_nines(share), max(bucket.from_ms, 0.001)))
        seen += bucket.count
    return curve


def _nines(share: float) -> float:
    return -math.log10(1 - share)


def _percent_of_nines(nines: float) -> str:
    share = 100 * (1 - 10**-nines)
    return f"{share:.5g}%"


def _histogram(report: LoadReport) -> Figure:
    rows = coarse(report.latency_histogram, _BARS_MAX)
    total = sum(count for _, _, count in rows)
    bars = [
        (
            low,
            high,
            count / total * 100,
            f"{ms(low)} to {ms(high)}: {count:,} ({count / total:.2%})",
        )
        for low, high, count in rows
    ]
    low, high = rows[0][0], rows[-1][1]
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    marks = [10.0**power for power in powers]
    if len(marks) < 3:
        marks = [row[0] for row in rows[:: max(1, -(-len(rows) // 5))]]
    svg = bar_chart(
        bars, ChartScale(low, high, marks, True), linear(bar[2] for bar in bars), ms,
        lambda value: f"{value:g}%", "Latency histogram",
    )  # fmt: skip
    return Figure("Latency histogram", svg, (), "Share of ticks, reading clients, from tick time.")


def _throughput(timeline: Sequence[Point]) -> Figure:
    return _over_time(
        timeline, "Throughput", "Ticks a second, all clients together.",
        [("ticks/s", "a", lambda point: point.ticks_per_s)], _short, linear,
    )  # fmt: skip


def _latency_over_time(timeline: Sequence[Point]) -> Figure:
    lines: list[tuple[str, str, Callable[[Point], float | None]]] = [
        ("p50", "a", lambda point: point.p50_ms),
        ("p99", "b", lambda point: point.p99_ms),
    ]
    if any(point.slow_p99_ms is not None for point in timeline):
        lines.append(("slow clients p99", "c", lambda point: point.slow_p99_ms))
    else:
        lines.append(("max", "c", lambda point: point.max_ms))
    hint = "From tick time, of what arrived in each second."
    return _over_time(timeline, "Latency over time", hint, lines, ms, logarithmic)


def _queues(timeline: Sequence[Point]) -> Figure:
    return _over_time(
        timeline, "Server queues", "Bytes that wait for a client, by its heartbeats.",
        [("longest", "b", lambda point: point.queue_max_bytes),
         ("mean", "a", lambda point: point.queue_mean_bytes)], size, linear,
    )  # fmt: skip


def _cpu(timeline: Sequence[Point]) -> Figure:
    lines: list[tuple[str, str, Callable[[Point], float | None]]] = []
    if any(point.server_cpu_percent is not None for point in timeline):
        lines.append(("server", "a", lambda point: point.server_cpu_percent))
    lines.append(("load tester, busiest process", "b", lambda point: point.worker_cpu_percent))
    lines.append(("publisher", "c", lambda point: point.parent_cpu_percent))
    return _over_time(
        timeline, "CPU", "100% is one core.", lines, lambda value: f"{value:g}%", linear
    )


def _lateness(timeline: Sequence[Point]) -> Figure:
    return _over_time(
        timeline, "Lag of the load tester", "How late its event loop ran at worst: its own share"
        " in latencies.", [("lateness", "c", lambda point: point.loop_lateness_ms)], ms, linear,
    )  # fmt: skip


def _over_time(
    timeline: Sequence[Point],
    heading: str,
    hint: str,
    lines: Sequence[tuple[str, str, Callable[[Point], float | None]]],
    y_format: Callable[[float], str],
    y_scale: Callable[[list[float]], ChartScale],
) -> Figure:
    series = [
        ChartSeries(name, style, [(point.second + 1, value(point)) for point in timeline])
        for name, style, value in lines
    ]
    heights = [height for each in series for _, height in each.points if height is not None]
    end = timeline[-1].second + 1
    step = next(each for each in _TIME_STEPS if end / each <= 6)
    x = ChartScale(1, end, [mark for mark in range(0, end + 1, step) if mark >= 1])
    svg = line_chart(series, x, y_scale(heights), _seconds, y_format, heading)
    legend = [(name, style) for name, style, _ in lines] if len(lines) > 1 else []
    return Figure(heading, svg, legend, hint)


_TIME_STEPS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 86_400, 864_000)


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 600 else f"{value / 60:.0f} min"


def _short(value: float) -> str:
    """Format a count compactly: 950, 12k, 1.5M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:g}"
