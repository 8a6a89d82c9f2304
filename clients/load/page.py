"""The report as one self-contained HTML page, without scripts, fonts or images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from importlib import resources
from typing import Final

from clients.load.figures import Figure, figures_of
from clients.load.report import LoadReport
from clients.load.text import fault_text, figures, headline, latency_rows, ms, size

_STYLE: Final = resources.files("clients.load").joinpath("page.css").read_text("utf-8")
_FAULTS_SHOWN: Final = 10


def to_html(report: LoadReport) -> str:
    """Render the report as an HTML page."""
    title = f"Load test of {report.workload.url}"
    return "".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>",
            *_head(report),
            *_tiles(report),
            *_remarks(report),
            '<section class="plots">',
            *map(_plot, figures_of(report)),
            "</section>",
            *_tables(report),
            f"<footer>Tickcast {escape(report.version)}, {escape(_span(report))}</footer>",
            "</main></body></html>\n",
        )
    )


def _span(report: LoadReport) -> str:
    return f"{report.started_at[:19].replace('T', ' ')} to {report.ended_at[11:19]} UTC"


def _head(report: LoadReport) -> Iterator[str]:
    work = report.workload
    state = "fail" if not report.verdict.passed else "warn" if report.verdict.warnings else "pass"
    yield f'<header><p class="over">Load test · {escape(report.started_at[:10])}</p>'
    yield f"<h1>{escape(work.url)}</h1>"
    yield f'<p class="verdict {state}"><span class="mark" aria-hidden="true"></span>'
    yield f"{escape(headline(report))}</p><p class=sub>{escape(_summary(report))}</p></header>"


def _summary(report: LoadReport) -> str:
    work = report.workload
    parts = [f"{work.connections:,} connections", work.encoding, ", ".join(work.channels)]
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
    yield '<section class="tiles">'
    for name, value, more in _key_figures(report):
        yield f'<div class="tile"><p class="name">{escape(name)}</p>'
        yield f'<p class="value">{escape(value)}</p><p class="more">{escape(more)}</p></div>'
    yield "</section>"


def _key_figures(report: LoadReport) -> Iterator[tuple[str, str, str]]:
    through, made, accounts = report.throughput, report.connections, report.accounts
    yield "Throughput", f"{through.ticks_per_s:,.0f}", f"ticks/s · {size(through.bytes_per_s)}/s"
    latency = report.latency.from_tick_time
    if latency:
        yield "Latency p50", ms(latency.p50_ms), f"mean {ms(latency.mean_ms)}"
        yield "Latency p99", ms(latency.p99_ms), f"p99.9 {ms(latency.p999_ms)}"
    lost = made.refused + made.dropped
    held = made.opened - made.left_by_churn - made.returned
    yield "Connections", f"{held:,}", f"at a time · {lost:,} refused or dropped"
    if accounts.checked:
        more = f"of {accounts.delivered:,} delivered"
        if accounts.ends_compared:
            more = f"of {accounts.expected_ticks:,} published to clients that stayed"
        yield "Unexplained ticks", f"{accounts.unexplained:,}", more
    server = report.server
    if server:
        per_tick = server.cpu_us_per_tick
        value = f"{per_tick:.2f} µs" if per_tick is not None else "–"
        yield "Server CPU", value, f"a delivered tick · {server.cpu_percent_mean:.0f}% of a core"
    elif report.fairness:
        fair = report.fairness
        yield "Fairness", f"× {fair.slowest_to_fastest:.2f}", "slowest client to fastest, mean"


def _remarks(report: LoadReport) -> Iterator[str]:
    verdict = report.verdict
    faults = [fault_text(fault) for fault in report.accounts.faults[:_FAULTS_SHOWN]]
    yield '<section class="remarks">'
    for style, lines in (("problem", verdict.problems), ("warning", verdict.warnings)):
        for line in lines:
            yield f'<p class="{style}">{escape(line)}</p>'
        if style == "problem" and faults:
            items = "".join(f"<li>{escape(line)}</li>" for line in faults)
            yield f"<ol>{items}</ol>"
    for line in verdict.notes:
        yield f'<p class="note">{escape(line)}</p>'
    yield "</section>"


def _plot(figure: Figure) -> str:
    legend = "".join(
        f'<span class="key {style}">{escape(name)}</span>' for name, style in figure.legend
    )
    return (
        f'<figure><figcaption><h2>{escape(figure.heading)}</h2><p class="legend">{legend}</p>'
        f"</figcaption>{figure.svg}<p class=hint>{escape(figure.hint)}</p></figure>"
    )


def _tables(report: LoadReport) -> Iterator[str]:
    rows = [
        (name, ms(each.p50_ms), ms(each.p90_ms), ms(each.p99_ms), ms(each.p999_ms), ms(each.max_ms))
        for name, each in latency_rows(report)
    ]
    yield '<section class="tables">'
    if rows:
        yield _table("Latency", ("", "p50", "p90", "p99", "p99.9", "max"), rows, "numbers")
    yield _table("All figures", (), figures(report), "words")
    yield _table("Workload", (), _workload_rows(report), "words")
    yield "</section>"


def _workload_rows(report: LoadReport) -> Iterator[tuple[str, str]]:
    work = report.workload
    yield "URL", work.url
    yield "load", _summary(report)
    yield "opened", f"{work.ramp_per_s:g} connections/s, processes: {work.processes}"
    if work.slow_share:
        yield "slow clients", f"stop for {work.stall_s:g} s, then read for {work.read_s:g} s"
    if work.conflate_ms is not None or work.slow_policy:
        policy = f"conflate_ms {work.conflate_ms}, slow {work.slow_policy}"
        yield "asked of the server", policy.replace("None", "as it likes")
    yield "seed", str(work.seed)


def _table(
    heading: str, head: Iterable[str], rows: Iterable[Iterable[str]], style: str
) -> str:  # fmt: skip
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>"
        + "".join(
            f"<th scope=row>{escape(cell)}</th>" if place == 0 else f"<td>{escape(cell)}</td>"
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{top}</tr></thead>" if top else ""
    return (
        f"<div><h2>{escape(heading)}</h2><div class=wide><table class={style}>{top}"
        f"<tbody>{body}</tbody></table></div></div>"
    )
