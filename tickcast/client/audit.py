"""Text for the accounting that `tickcast watch --audit` and `tickcast record` print."""

from __future__ import annotations

from typing import Final

from tickcast.client.accounts import Gap
from tickcast.client.report import Report, StreamReport

COUNTS: Final = (
    "delivered", "merged", "skipped", "gapped", "missing", "repeated", "restarts", "snapshots",
)  # fmt: skip


def sum_up(report: Report) -> list[str]:
    """Summarize a report in three lines of text."""
    verdict = "balanced" if report.balanced else "NOT BALANCED"
    sums = ", ".join(f"{report.total(name):,} {name}" for name in COUNTS[:4])
    rest = ", ".join(f"{report.total(name):,} {name}" for name in COUNTS[4:])
    streams, reconnects = len(report.streams), report.reconnects
    return [
        f"{verdict}, {streams:,} stream{'s'[: streams != 1]},"
        f" {reconnects:,} reconnect{'s'[: reconnects != 1]}",
        f"{report.total('published'):,} published: {sums}",
        rest,
    ]


def describe_gap(gap: Gap) -> str:
    """Describe a gap in one line of text.

    >>> describe_gap(Gap("trades", "ES", 1041, 1100, "retention"))
    'trades ES: 1,041 to 1,100 will not come (retention)'
    """
    name = f"{gap.channel} {gap.symbol}"
    if gap.reason == "epoch":
        return f"{name}: the numbering restarts"
    first = "…" if gap.first_seq is None else f"{gap.first_seq:,}"
    last = "…" if gap.last_seq is None else f"{gap.last_seq:,}"
    return f"{name}: {first} to {last} will not come ({gap.reason})"


def by_trouble(stream: StreamReport) -> tuple[int, int, str, str]:
    """Sort key that puts the streams with the most problems first."""
    return (
        -(stream.missing + stream.repeated),
        -(stream.gapped + stream.skipped + stream.restarts),
        stream.symbol,
        stream.channel,
    )
