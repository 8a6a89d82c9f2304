"""The page that shows whether every tick of every stream is accounted for."""

from __future__ import annotations

from typing import Final

from tickcast.client.accounts import COUNTS, Report, StreamReport, by_severity, summarize
from tickcast.commands.lines import Line, Segment, count_fitting

_HEADS: Final = ("symbol", "channel", "seq", *COUNTS)
_LEFT: Final = 2
_TROUBLE: Final = frozenset(("missing", "repeated"))


class AuditTable:
    """Draws a report as a table; drops columns from the right if they do not fit."""

    def __init__(self) -> None:
        self._width = 0
        self._widths = [0] * len(_HEADS)

    def draw(self, report: Report, width: int, height: int) -> list[Line]:
        """Draw the totals and as many streams as fit, those with the most problems first."""
        streams = sorted(report.streams, key=by_severity)
        verdict, *sums = summarize(report)
        room = max(0, height - len(sums) - 2)
        if len(streams) > room:
            verdict += f", {len(streams) - room:,} more below"
        lines: list[Line] = [[(verdict, "good" if report.balanced else "bad")]]
        lines += [[(line, "dim")] for line in sums]
        return (lines + self._table(streams[:room], width))[:height]

    def _table(self, streams: list[StreamReport], width: int) -> list[Line]:
        if width != self._width:
            self._width, self._widths = width, [len(name) for name in _HEADS]
        rows = [[(name, "dim") for name in _HEADS], *(_cells(stream) for stream in streams)]
        for row in rows:
            self._widths = [
                max(before, len(text)) for before, (text, _) in zip(self._widths, row, strict=True)
            ]
        shown = count_fitting(self._widths, width)
        return [self._line(row[:shown]) for row in rows]

    def _line(self, cells: list[Segment]) -> Line:
        line: Line = []
        for number, (text, style) in enumerate(cells):
            room = self._widths[number]
            line.append((text.ljust(room) if number < _LEFT else text.rjust(room), style))
            line.append(("  ", ""))
        return line[:-1]


def _cells(stream: StreamReport) -> list[Segment]:
    cells = [
        (stream.symbol, "bold"),
        (stream.channel, ""),
        ("–" if stream.seq is None else f"{stream.seq:,}", ""),
    ]
    for name in COUNTS:
        count = getattr(stream, name)
        style = "bad" if name in _TROUBLE and count else "" if count else "dim"
        cells.append((f"{count:,}", style))
    return cells
