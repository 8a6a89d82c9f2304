"""The report for terminals: a table, a histogram and the verdict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from clients.load.messages import FaultLine
from clients.load.report import Bucket, Latencies, Latency, LoadReport

_BARS: Final = " ▏▎▍▌▋▊▉█"
_BAR_WIDTH: Final = 44
_ROWS_MAX: Final = 16


def print_report(console: Console, report: LoadReport) -> None:
    """Print the report."""
    console.print(Group(*_parts(report)))


def _parts(report: LoadReport) -> Iterator[RenderableType]:
    yield ""
    yield _figures(report)
    if report.latency.from_tick_time or report.slow_latency.from_tick_time:
        yield ""
        yield _latency_table(report)
    if report.latency_histogram:
        yield ""
        yield Text("latency from tick time, reading clients", style="dim")
        yield _histogram(report.latency_histogram)
    yield ""
    yield from _verdict(report)


def _figures(report: LoadReport) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in figures(report):
        table.add_row(name, escape(value))
    return table


def figures(report: LoadReport) -> Iterator[tuple[str, str]]:
    """Yield the key figures as names and values."""
    made, through, accounts = report.connections, report.throughput, report.accounts
    lost = f", {made.refused:,} refused" if made.refused else ""
    lost += f", {made.dropped:,} dropped" if made.dropped else ""
    lost += f", {made.left_by_churn:,} left by churn" if made.left_by_churn else ""
    lost += f", {made.slow_closed:,} slow ones closed" if made.slow_closed else ""
    yield "connections", f"{made.asked:,} asked for, {made.opened:,} opened{lost}"
    if made.handshake and made.subscribed:
        yield (
            "connecting",
            f"greeted after p50 {ms(made.handshake.p50_ms)}, p99 {ms(made.handshake.p99_ms)};"
            f" subscribed after p99 {ms(made.subscribed.p99_ms)}",
        )
    yield (
        "throughput",
        f"{through.ticks_per_s:,.0f} ticks/s, {through.frames_per_s:,.0f} frames/s,"
        f" {size(through.bytes_per_s)}/s, {through.ticks_per_frame:.1f} ticks a frame",
    )
    yield (
        "ticks",
        f"{accounts.delivered:,} delivered, {accounts.merged:,} merged,"
        f" {accounts.skipped:,} skipped, {accounts.gap:,} in gaps",
    )
    if accounts.ends_compared:
        yield (
            "accounts",
            f"{accounts.accounted_ticks:,} of {accounts.expected_ticks:,} published ticks,"
            f" by {accounts.whole_run_clients:,} clients that stayed",
        )
    if report.fairness:
        fair = report.fairness
        yield (
            "fairness",
            f"mean latency {ms(fair.fastest_mean_ms)} (fastest client) to"
            f" {ms(fair.slowest_mean_ms)} (slowest): × {fair.slowest_to_fastest:.2f}",
        )
    yield from _machine_figures(report)


def _machine_figures(report: LoadReport) -> Iterator[tuple[str, str]]:
    publishing, server, tester = report.publishing, report.server, report.tester
    if publishing:
        late = publishing.lateness
        lateness = f"; late by p50 {ms(late.p50_ms)}, p99 {ms(late.p99_ms)}" if late else ""
        yield (
            "published",
            f"{publishing.published_ticks:,} of {publishing.scheduled_ticks:,} scheduled{lateness}",
        )
    if server:
        per_tick = server.cpu_us_per_tick
        yield (
            "server",
            f"{server.cpu_percent_mean:.0f}% of a core"
            + (f", {per_tick:.2f} µs a delivered tick" if per_tick is not None else "")
            + f", {size(server.rss_max_bytes)} of memory",
        )
    yield (
        "load tester",
        f"{tester.worker_cpu_percent_mean:.0f}% of a core in its busiest process,"
        f" {ms(tester.loop_lateness_max_ms)} late at worst",
    )


def _latency_table(report: LoadReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("latency", no_wrap=True)
    for name in ("p50", "p90", "p99", "p99.9", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, latency in latency_rows(report):
        values = (latency.p50_ms, latency.p90_ms, latency.p99_ms, latency.p999_ms, latency.max_ms)
        table.add_row(name, *map(ms, values))
    return table


def latency_rows(report: LoadReport) -> Iterator[tuple[str, Latency]]:
    """Yield the name of each measured latency distribution, and its figures."""
    for who, latencies in (("", report.latency), ("slow clients, ", report.slow_latency)):
        for name, latency in _by_source(latencies):
            if latency is not None:
                yield who + name, latency


def _by_source(latencies: Latencies) -> tuple[tuple[str, Latency | None], ...]:
    return (
        ("from tick time", latencies.from_tick_time),
        ("from publish", latencies.from_publish),
        ("from server write", latencies.from_server_write),
    )


def _histogram(buckets: Sequence[Bucket]) -> Table:
    rows = coarse(buckets, _ROWS_MAX)
    most = max(count for _, _, count in rows)
    total = sum(count for _, _, count in rows)
    table = Table.grid(padding=(0, 1))
    for _ in range(2):
        table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    for low, high, count in rows:
        share = f"{count / total:.1%}" if count / total >= 0.0005 else f"{count:,}"
        label = f"{ms(low)} – {ms(high)}"
        table.add_row(label, Text(share if count else "", style="dim"), bar(count / most))
    return table


def coarse(buckets: Sequence[Bucket], rows_max: int) -> list[tuple[float, float, int]]:
    """Reduce a distribution to a few rows of lower and upper bound in ms, and count.

    Bounds grow from row to row by a constant factor, a power or a root of two.
    """
    low = max(buckets[0].from_ms, 0.01)
    high = max(buckets[-1].from_ms, low)
    # Each row covers a number of doublings, or a fraction of one if the distribution is narrow.
    doublings = math.log2(high / low) + 1
    step = next((each for each in (0.25, 0.5, 1, 2, 4, 8) if doublings / each <= rows_max), 16)
    first = math.floor(math.log2(low) / step)
    counts: dict[int, int] = {}
    for bucket in buckets:
        row = max(first, math.floor(math.log2(max(bucket.from_ms, low)) / step))
        counts[row] = counts.get(row, 0) + bucket.count
    return [
        (2 ** (row * step), 2 ** ((row + 1) * step), counts.get(row, 0))
        for row in range(first, max(counts) + 1)
    ]


def bar(share: float, width: int = _BAR_WIDTH) -> str:
    """Draw a bar, exact to an eighth of a character; any share above 0 is visible."""
    eighths = max(round(share * width * 8), 1 if share else 0)
    return "█" * (eighths // 8) + (_BARS[eighths % 8] if eighths % 8 else "")


def _verdict(report: LoadReport) -> Iterator[RenderableType]:
    verdict = report.verdict
    for note in verdict.notes:
        yield remark("note", note, "dim")
    for warning in verdict.warnings:
        yield remark("warning", warning, "yellow")
    for problem in verdict.problems:
        yield remark("problem", problem, "red")
    for fault in report.accounts.faults[:5]:
        yield Text(f"         {fault_text(fault)}")
    if verdict.passed:
        yield Text(headline(report), style="bold green")
    else:
        yield Text(headline(report), style="bold red")


def remark(kind: str, words: str, style: str) -> Table:
    """Lay out a label and a text, with all lines of the text to the right of the label."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=8)
    table.add_column(overflow="fold")
    table.add_row(Text(kind, style=style), Text(words, style=style))
    return table


def fault_text(fault: FaultLine) -> str:
    """Describe one unexplained tick or range of ticks."""
    first, last = fault.first_seq, fault.last_seq
    seqs = f"seq {first:,}" if first == last else f"seq {first:,} to {last:,}"
    detail = f" ({fault.detail})" if fault.detail else ""
    return f"{fault.client}, {fault.stream}: {fault.kind} {seqs}{detail}"


def headline(report: LoadReport) -> str:
    """Return the verdict in one line."""
    if not report.verdict.passed:
        return f"FAILED: {report.verdict.problems[0]}"
    if not report.accounts.delivered:
        return "PASSED, but no tick arrived"
    if not report.accounts.checked:
        return "PASSED, order unchecked"
    explained = "every tick accounted for" if report.accounts.ends_compared else "no tick lost"
    return f"PASSED: {explained}" + (", with warnings" if report.verdict.warnings else "")


def ms(value: float) -> str:
    """Format a duration with a unit and three digits: 850 µs, 12.3 ms, 1.25 s."""
    for limit, scale, unit in ((1, 1000, "µs"), (1000, 1, "ms")):
        if value < limit:
            scaled = value * scale
            return f"{scaled:.3g} {unit}" if scaled < 999.5 else f"{scaled:.0f} {unit}"
    return f"{value / 1000:.3g} s" if value < 999_500 else f"{value / 1000:,.0f} s"


def size(value: float) -> str:
    """Format a number of bytes: 850 B, 12.3 kB, 1.25 MB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.3g} {unit}" if scaled < 999.5 else f"{scaled:,.0f} {unit}"
    return f"{value:.0f} B"
