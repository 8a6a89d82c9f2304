"""The report as one self-contained HTML page, without scripts, fonts or images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from importlib import resources
from typing import Final

from clients.load.charts import Chart, draw_charts
from clients.load.report import LoadReport
from clients.load.text import fault_text, headline, key_figures, latency_rows, ms, size

_STYLE: Final = resources.files("clients.load").joinpath("report.css").read_text("utf-8")
_FAULTS_SHOWN: Final = 10


def to_html(report: LoadReport) -> str:
    """Render the report as an HTML page."""
    work = report.workload
    state = "fail" if not report.verdict.passed else "warn" if report.verdict.warnings else "pass"
    span = f"{report.started_at[:19].replace('T', ' ')} to {report.ended_at[11:19]} UTC"
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>Load test of {escape(work.url)}</title><style>{_STYLE}</style></head>",
            f'<body><main><header><p class="over">Load test · {report.started_at[:10]}</p>',
            f"<h1>{escape(work.url)}</h1>",
            f'<p class="verdict {state}"><span class="mark" aria-hidden="true"></span>',
            f"{escape(headline(report))}</p><p class=sub>{escape(_load(report))}</p></header>",
            '<section class="tiles">', *_tiles(report), "</section>",
            '<section class="remarks">', *_remarks(report), "</section>",
            '<section class="plots">', *map(_figure, draw_charts(report)), "</section>",
            '<section class="tables">', *_tables(report), "</section>",
            f"<footer>Tickcast {escape(report.version)}, {span}</footer>",
            "</main></body></html>\n",
        )
    )  # fmt: skip


def _load(report: LoadReport) -> str:
    work = report.workload
    parts = [f"{work.connections:,} connections", work.encoding.value, ", ".join(work.channels)]
    if work.symbols_per_connection:
        parts.append(f"{work.symbols_per_connection:,} of {work.pool_size:,} symbols each")
    elif "*" in work.pool_symbols:
        parts.append("all symbols each")
    else:
        parts.append(f"the same {work.pool_size:,} symbols each")
    if work.publish_ticks_per_s:
        burst = f" in bursts of {work.burst_ticks:,}" if work.burst_ticks > 1 else ""
        parts.append(f"{work.publish_ticks_per_s:,.0f} ticks/s published{burst}")
    if work.slow_share:
        parts.append(f"{work.slow_share:.0%} slow")
    if work.churn_per_s:
        parts.append(f"churn {work.churn_per_s:g}/s")
    parts.append(f"{report.throughput.measured_s:.0f} s")
    return " · ".join(parts)


def _tiles(report: LoadReport) -> Iterator[str]:
    for name, value, more in _tile_figures(report):
        yield f'<div class="tile"><p class="name">{escape(name)}</p>'
        yield f'<p class="value">{escape(value)}</p><p class="more">{escape(more)}</p></div>'


def _tile_figures(report: LoadReport) -> Iterator[tuple[str, str, str]]:
    through, connections, accounts = report.throughput, report.connections, report.accounts
    yield "Throughput", f"{through.ticks_per_s:,.0f}", f"ticks/s · {size(through.bytes_per_s)}/s"
    latency = report.latency.from_tick_time
    if latency:
        yield "Latency p50", ms(latency.p50_ms), f"mean {ms(latency.mean_ms)}"
        yield "Latency p99", ms(latency.p99_ms), f"p99.9 {ms(latency.p999_ms)}"
    lost = connections.refused + connections.dropped
    held = connections.opened - connections.left_by_churn - connections.returned
    yield "Connections", f"{held:,}", f"at a time · {lost:,} refused or dropped"
    if accounts.checked:
        more = f"of {accounts.delivered:,} delivered"
        if accounts.ends_compared:
            more = f"of {accounts.expected_ticks:,} published to clients that stayed"
        yield "Unexplained ticks", f"{accounts.unexplained:,}", more
    server, fairness = report.server, report.fairness
    if server:
        per_tick = server.cpu_us_per_tick
        value = f"{per_tick:.2f} µs" if per_tick is not None else "–"
        yield "Server CPU", value, f"a delivered tick · {server.cpu_percent_mean:.0f}% of a core"
    elif fairness:
        yield "Fairness", f"× {fairness.slowest_to_fastest:.2f}", "slowest client to fastest, mean"


def _remarks(report: LoadReport) -> Iterator[str]:
    verdict = report.verdict
    for problem in verdict.problems:
        yield f'<p class="problem">{escape(problem)}</p>'
    if faults := report.accounts.faults[:_FAULTS_SHOWN]:
        yield "<ol>"
        yield from (f"<li>{escape(fault_text(fault))}</li>" for fault in faults)
        yield "</ol>"
    for warning in verdict.warnings:
        yield f'<p class="warning">{escape(warning)}</p>'
    for note in verdict.notes:
        yield f'<p class="note">{escape(note)}</p>'


def _figure(chart: Chart) -> str:
    legend = "".join(
        f'<span class="key {style}">{escape(name)}</span>' for name, style in chart.legend
    )
    return (
        f'<figure><figcaption><h2>{escape(chart.heading)}</h2><p class="legend">{legend}</p>'
        f"</figcaption>{chart.svg}<p class=hint>{escape(chart.hint)}</p></figure>"
    )


def _tables(report: LoadReport) -> Iterator[str]:
    rows = [
        (name, ms(each.p50_ms), ms(each.p90_ms), ms(each.p99_ms), ms(each.p999_ms), ms(each.max_ms))
        for name, each in latency_rows(report)
    ]
    if rows:
        yield _table("Latency", ("", "p50", "p90", "p99", "p99.9", "max"), rows, "numbers")
    yield _table("All figures", (), key_figures(report), "words")
    yield _table("Workload", (), _workload_rows(report), "words")


def _workload_rows(report: LoadReport) -> Iterator[tuple[str, str]]:
    work = report.workload
    yield "URL", work.url
    yield "load", _load(report)
    yield "opened", f"{work.ramp_per_s:g} connections/s, processes: {work.processes}"
    if work.slow_share:
        yield "slow clients", f"stop for {work.stall_s:g} s, then read for {work.read_s:g} s"
    if work.conflate_ms is not None or work.slow_policy:
        options = f"conflate_ms {work.conflate_ms}, slow {work.slow_policy}"
        yield "requested options", options.replace("None", "unset")
    yield "seed", str(work.seed)


def _table(heading: str, head: Iterable[str], rows: Iterable[Iterable[str]], style: str) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    top = f"<thead><tr>{top}</tr></thead>" if top else ""
    body = ""
    for name, *cells in rows:
        data = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body += f"<tr><th scope=row>{escape(name)}</th>{data}</tr>"
    return (
        f"<div><h2>{escape(heading)}</h2><div class=wide><table class={style}>{top}"
        f"<tbody>{body}</tbody></table></div></div>"
    )
