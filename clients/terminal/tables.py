"""The table of symbols and the audit, and compact formats for numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from clients.terminal.market import HUGE, SPARK_POINTS, Row
from tickcast.client.accounts import COUNTS, Report, StreamReport, by_severity, summarize
from tickcast.commands.terminal import Line, Segment
from tickcast.wire.ticks import Quote

SPARKS: Final = "▁▂▃▄▅▆▇█"
_FLASH_S: Final = 0.6
_GAP: Final = 2
_NONE: Final[Segment] = ("–", "dim")


def format_price(price: float, decimals: int) -> str:
    """Format a price with a number of decimals."""
    return f"{price:.6g}" if abs(price) >= HUGE else f"{price:,.{decimals}f}"


def format_amount(amount: float) -> str:
    """Format a quantity compactly: 950, 12.34k, 4.56M."""
    if amount >= 1e12:
        return f"{amount:.3g}"
    for least, divisor, unit in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if amount >= least:
            return f"{amount / divisor:.2f}{unit}"
    return f"{amount:,.0f}" if amount == int(amount) else f"{amount:,.2f}"


def format_age(seconds: float) -> str:
    """Format an age: 0.3s, 12s, 3m, 2h."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    if seconds < 120:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 7200 else f"{seconds / 3600:.0f}h"


def sparkline(values: Sequence[float]) -> str:
    """Draw values as a sparkline, one character each."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high == low:
        return SPARKS[3] * len(values)
    scale = (len(SPARKS) - 1) / (high - low)
    return "".join(SPARKS[round((value - low) * scale)] for value in values)


def _align(cells: Sequence[Segment], widths: Sequence[int], left: int) -> Line:
    """Return a line of cells, of which the first `left` are aligned to the left."""
    line: Line = []
    for number, (text, style) in enumerate(cells):
        width = widths[number]
        line.append((text.ljust(width) if number < left else text.rjust(width), style))
        line.append((" " * _GAP, ""))
    return line[:-1]


class _SymbolColumn(NamedTuple):
    name: str
    # The columns with the highest ranks are left out first if the terminal is narrow.
    rank: int
    cell: Callable[[Row, float], Segment]


def last_price(row: Row, now: float) -> Segment:
    """Format the last price with a mark for its direction; it flashes when the price moves."""
    if not row.first_price:
        return _NONE
    text = format_price(row.price, row.decimals) + " ▲▼"[row.direction]
    if now - row.moved_at < _FLASH_S:
        return text, "up flash" if row.direction > 0 else "down flash"
    return text, ""


def change(row: Row, now: float) -> Segment:
    """Format the change in percent."""
    if not row.first_price:
        return _NONE
    rounded = round(row.change, 2)
    return f"{rounded:+.2f}%", "up" if rounded > 0 else "down" if rounded < 0 else ""


def _quoted(price: Callable[[Quote], float]) -> Callable[[Row, float], Segment]:
    def cell(row: Row, now: float) -> Segment:
        return (format_price(price(row.quote), row.decimals), "") if row.quote else _NONE

    return cell


_SYMBOL_COLUMNS: Final = (
    _SymbolColumn("symbol", 0, lambda row, now: (row.symbol, "bold")),
    _SymbolColumn("last", 1, last_price),
    _SymbolColumn("change", 2, change),
    _SymbolColumn("bid", 4, _quoted(lambda quote: quote.bid_price)),
    _SymbolColumn("ask", 5, _quoted(lambda quote: quote.ask_price)),
    _SymbolColumn("spread", 8, _quoted(lambda quote: quote.ask_price - quote.bid_price)),
    _SymbolColumn("volume", 6, lambda row, now: (format_amount(row.volume), "")),
    _SymbolColumn("ticks/s", 7, lambda row, now: (f"{row.rate:,.1f}", "")),
    _SymbolColumn("age", 9, lambda row, now: (format_age(now - row.updated_at), "dim")),
)
_BY_RANK: Final = sorted(range(len(_SYMBOL_COLUMNS)), key=lambda n: _SYMBOL_COLUMNS[n].rank)
# The sparkline comes last, and takes what is left.
_SPARK_RANK: Final = 3
_SPARK_MIN: Final = 10


class SymbolTable:
    """Draws rows of a market. At the same total width, columns only get wider."""

    def __init__(self) -> None:
        self._total = 0
        self._widths: list[int] = []

    def draw(
        self, rows: Sequence[Row], selected: str | None, sort: str, now: float, width: int
    ) -> list[Line]:
        """Draw a header line and one line for each row."""
        if width != self._total:
            # A column is wide enough for the mark that shows the sort order.
            self._total, self._widths = width, [len(each.name) + 1 for each in _SYMBOL_COLUMNS]
        cells = [[column.cell(row, now) for column in _SYMBOL_COLUMNS] for row in rows]
        self._widths = [
            max([before, *(len(line[number][0]) for line in cells)])
            for number, before in enumerate(self._widths)
        ]
        shown, spark = self._fit(width)
        widths = [self._widths[number] for number in shown]
        headings = [_heading(_SYMBOL_COLUMNS[number].name, sort) for number in shown]
        lines = [_align(headings, widths, left=1)]
        for row, row_cells in zip(rows, cells, strict=True):
            line = _align([row_cells[number] for number in shown], widths, left=1)
            if spark and row.first_price:
                trend = sparkline([*row.history, row.price][-spark:])
                style = f"{change(row, now)[1]} dim".strip()
                line += [(" " * _GAP, ""), (trend.rjust(spark), style)]
            if row.symbol == selected:
                # Use one colour: green and red would be hard to read on the bright background.
                text = "".join(text for text, _ in line).ljust(width)[:width]
                line = [(text, "selected")]
            lines.append(line)
        return lines

    def _fit(self, width: int) -> tuple[list[int], int]:
        """Return the columns that fit, and the width of the sparkline."""
        shown: list[int] = []
        room, reserved = width + _GAP, 0
        for number in _BY_RANK:
            if _SYMBOL_COLUMNS[number].rank == _SPARK_RANK + 1 and room >= _SPARK_MIN + _GAP:
                reserved = _SPARK_MIN + _GAP
            needed = self._widths[number] + _GAP
            if shown and needed > room - reserved:
                break
            shown.append(number)
            room -= needed
        spark = min(SPARK_POINTS, room - _GAP)
        return sorted(shown), spark if spark >= _SPARK_MIN else 0


def _heading(name: str, sort: str) -> Segment:
    if name != sort:
        return name, "dim"
    return (f"{name}▴" if name == "symbol" else f"▾{name}"), "head"


def draw_audit(report: Report, width: int, height: int) -> list[Line]:
    """Draw the totals and as many streams as fit, those with the most problems first.

    Columns that do not fit are left out, from the right.
    """
    streams = sorted(report.streams, key=by_severity)
    verdict, *sums = summarize(report)
    room = max(0, height - len(sums) - 2)
    if len(streams) > room:
        verdict += f", {len(streams) - room:,} more below"
    lines: list[Line] = [[(verdict, "good" if report.balanced else "bad")]]
    lines += [[(line, "dim")] for line in sums]
    names = [(name, "dim") for name in ("symbol", "channel", "seq", *COUNTS)]
    rows = [names, *map(_audit_cells, streams[:room])]
    widths = [max(len(text) for text, _ in column) for column in zip(*rows, strict=True)]
    ends = accumulate(_GAP + needed for needed in widths)
    shown = max(1, sum(end - _GAP <= width for end in ends))
    return [*lines, *(_align(row[:shown], widths, left=2) for row in rows)][:height]


def _audit_cells(stream: StreamReport) -> list[Segment]:
    seq = "–" if stream.seq is None else f"{stream.seq:,}"
    cells = [(stream.symbol, "bold"), (stream.channel, ""), (seq, "")]
    for name in COUNTS:
        count = getattr(stream, name)
        style = ("bad" if name in ("missing", "repeated") else "") if count else "dim"
        cells.append((f"{count:,}", style))
    return cells
