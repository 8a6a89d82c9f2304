"""What `tickcast watch --audit` shows: whether every tick of every stream is accounted for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clients.books import Gap
from clients.columns import column_ends, count_fitting
from clients.report import Report, StreamReport

_COUNTS: Final = (
    "delivered", "merged", "skipped", "gapped", "missing", "repeated", "restarts", "snapshots",
)  # fmt: skip
_HEADS: Final = ("symbol", "channel", "seq", *_COUNTS)
_TROUBLE: Final = frozenset(("missing", "repeated"))
_LINES_AROUND: Final = 4


def render_audit(report: Report, width: int, height: int, connected: bool) -> RenderableType:
    """The books as a table for a terminal of this size: the most troubled streams first.

    Columns that do not fit are left out from the right.
    """
    streams = sorted(report.streams, key=_by_trouble)
    room = max(1, height - _LINES_AROUND)
    verdict, *sums = sum_up(report)
    if len(streams) > room:
        verdict += f", {len(streams) - room:,} more below"
    if not connected:
        verdict = f"DISCONNECTED, coming back …  {verdict}"
    style = "bold green" if report.balanced and connected else "bold red"
    return Group(
        Text(verdict, style=style, no_wrap=True, overflow="ellipsis"),
        *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in sums),
        _table(streams[:room], width),
    )


def sum_up(report: Report) -> list[str]:
    """The books in three lines of text."""
    verdict = "balanced" if report.balanced else "NOT BALANCED"
    sums = ", ".join(f"{report.total(name):,} {name}" for name in _COUNTS[:4])
    rest = ", ".join(f"{report.total(name):,} {name}" for name in _COUNTS[4:])
    return [
        f"{verdict}, {len(report.streams):,} streams, {report.reconnects} reconnects",
        f"{report.total('published'):,} published: {sums}",
        rest,
    ]


def describe_gap(gap: Gap) -> str:
    """A gap as a line of text."""
    name = f"{gap.channel} {gap.symbol}"
    if gap.reason == "epoch":
        return f"{name}: the numbering restarts"
    first = "…" if gap.first_seq is None else f"{gap.first_seq:,}"
    last = "…" if gap.last_seq is None else f"{gap.last_seq:,}"
    return f"{name}: {first} to {last} will not come ({gap.reason})"


def _by_trouble(stream: StreamReport) -> tuple[int, int, str, str]:
    return (
        -(stream.missing + stream.repeated),
        -(stream.gapped + stream.skipped + stream.restarts),
        stream.symbol,
        stream.channel,
    )


def _table(streams: Iterable[StreamReport], width: int) -> Table:
    rows = [_cells(stream) for stream in streams]
    shown = count_fitting(column_ends(_HEADS, rows), width)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, name in enumerate(_HEADS[:shown]):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row[:shown])
    return table


def _cells(stream: StreamReport) -> list[Text]:
    counts = {name: getattr(stream, name) for name in _COUNTS}
    return [
        Text(stream.symbol, style="bold"),
        Text(stream.channel),
        Text("–" if stream.seq is None else f"{stream.seq:,}"),
        *(
            Text(
                f"{count:,}",
                style="bold red" if name in _TROUBLE and count else "" if count else "dim",
            )
            for name, count in counts.items()
        ),
    ]
