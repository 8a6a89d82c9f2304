"""The report and the progress of a run on terminals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from clients.load.report import Bucket, Latency, LoadReport, SequenceFault
from clients.load.results import RunRecorder

_BARS: Final = " ▏▎▍▌▋▊▉█"
_BAR_WIDTH: Final = 44
_ROWS_MAX: Final = 16
_PROGRESS_WIDTH: Final = 20
_QUIET_S: Final = 2.0


def print_report(console: Console, report: LoadReport) -> None:
    """Print the report."""
    for part in _parts(report):
        console.print(part)


def _parts(report: LoadReport) -> Iterator[RenderableType]:
    yield ""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in key_figures(report):
        table.add_row(name, escape(value))
    yield table
    if report.latency.from_tick_time or report.slow_latency.from_tick_time:
        yield ""
        yield _latency_table(report)
    if report.latency_histogram:
        yield ""
        yield Text("latency from tick time, reading clients", style="dim")
        yield _histogram(report.latency_histogram)
    yield ""
    verdict = report.verdict
    for note in verdict.notes:
        yield remark("note", note, "dim")
    for warning in verdict.warnings:
        yield remark("warning", warning, "yellow")
    for problem in verdict.problems:
        yield remark("problem", problem, "red")
    for fault in report.accounts.faults[:5]:
        yield Text(f"         {fault_text(fault)}")
    yield Text(headline(report), style="bold green" if verdict.passed else "bold red")


def key_figures(report: LoadReport) -> Iterator[tuple[str, str]]:
    """Yield the key figures as names and values."""
    connections, through, accounts = report.connections, report.throughput, report.accounts
    lost = (
        (connections.refused, "refused"), (connections.dropped, "dropped"),
        (connections.left_by_churn, "left by churn"),
        (connections.slow_closed, "slow ones closed"),
    )  # fmt: skip
    counts = [f"{connections.asked:,} requested", f"{connections.opened:,} opened"]
    yield "connections", ", ".join(counts + [f"{n:,} {outcome}" for n, outcome in lost if n])
    greeted, subscribed = connections.handshake, connections.subscribed
    if greeted and subscribed:
        yield (
            "connecting",
            f"greeted after p50 {ms(greeted.p50_ms)}, p99 {ms(greeted.p99_ms)};"
            f" subscribed after p99 {ms(subscribed.p99_ms)}",
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
    for clients, latencies in (("", report.latency), ("slow clients, ", report.slow_latency)):
        for name in latencies.__struct_fields__:
            if (latency := getattr(latencies, name)) is not None:
                yield clients + name.replace("_", " "), latency


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


def remark(kind: str, words: str, style: str) -> Table:
    """Lay out a label and a text, with all lines of the text to the right of the label."""
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(width=8)
    table.add_column(overflow="fold")
    table.add_row(Text(kind, style=style), Text(words, style=style))
    return table


def fault_text(fault: SequenceFault) -> str:
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


class ProgressLine:
    """Shows the progress of a run: one updated line on a terminal, a line per second elsewhere."""

    def __init__(self, console: Console, connections: int) -> None:
        self._console = console
        self._connections = connections
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._printed: tuple[str, int] | None = None

    def show(self, phase: str, recorder: RunRecorder, elapsed_s: float, duration_s: float) -> None:
        """Show the progress of a phase."""
        latest = recorder.latest.values()
        connected = sum(second.connected for second in latest)
        status = _status(recorder, connected)
        if self._console.is_terminal:
            share = min(1.0, elapsed_s / duration_s) if duration_s else 0.0
            if phase == "connecting":
                share = sum(second.attempted for second in latest) / self._connections
            progress = bar(share, _PROGRESS_WIDTH).ljust(_PROGRESS_WIDTH, "·")
            text = Text(no_wrap=True, overflow="ellipsis").append(f"{phase:<10} ", "bold")
            text.append(progress, "cyan").append(f" {elapsed_s:3.0f} s   {status}")
            self._live.start()
            self._live.update(text, refresh=True)
            return
        # Nothing at first, because the run may fail at once with a message of one line.
        is_news = self._printed != (phase, int(elapsed_s))
        if is_news and (elapsed_s >= _QUIET_S or connected):
            self._printed = (phase, int(elapsed_s))
            line = f"{phase:<10} {elapsed_s:3.0f} s  {status}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Remove the line from the terminal."""
        self._live.stop()


def _status(recorder: RunRecorder, connected: int) -> str:
    """Format the number of connections and the figures of the last full second."""
    parts = [f"{connected:,} connected"]
    second = recorder.last_second()
    if second is not None and second.mean_span_s > 0:
        parts.append(f"{second.ticks / second.mean_span_s:,.0f} ticks/s")
        latency = second.reading.tick
        if latency.count:
            p50, p99 = (ms(latency.quantile_us(share) / 1000) for share in (0.5, 0.99))
            parts.append(f"p50 {p50}, p99 {p99}")
    if recorder.total.problems:
        parts.append(f"{recorder.total.problems:,} errors")
    return ", ".join(parts)
