"""The table of symbols: market rows as terminal lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from clients.terminal.formats import format_age, format_amount, format_price, sparkline
from clients.terminal.market import SPARK_POINTS, Row
from tickcast.commands.lines import Line, Segment

FLASH_S: Final = 0.6
_GAP: Final = "  "
_SPARK_MIN: Final = 10
_NONE: Final[Segment] = ("–", "dim")


def _symbol(row: Row, now: float) -> Segment:
    return row.symbol, "bold"


def last_price(row: Row, now: float) -> Segment:
    """Format the last price with a mark for its direction; it flashes when the price moves."""
    if not row.first:
        return _NONE
    text = format_price(row.last, row.decimals) + " ▲▼"[row.moved]
    if now - row.moved_at < FLASH_S:
        return text, "up flash" if row.moved > 0 else "down flash"
    return text, ""


def change(row: Row, now: float) -> Segment:
    """Format the change in percent."""
    if not row.first:
        return _NONE
    rounded = round(row.change, 2)
    return f"{rounded:+.2f}%", "up" if rounded > 0 else "down" if rounded < 0 else ""


def _price(price: float | None, row: Row) -> Segment:
    return _NONE if price is None else (format_price(price, row.decimals), "")


def _bid(row: Row) -> float | None:
    return row.quote.bid_price if row.quote else None


def _ask(row: Row) -> float | None:
    return row.quote.ask_price if row.quote else None


class TableColumn(NamedTuple):
    """One column; `rank` decides which columns are dropped first if space runs out."""

    name: str
    rank: int
    cell: Callable[[Row, float], Segment]


COLUMNS: Final = (
    TableColumn("symbol", 0, _symbol),
    TableColumn("last", 1, last_price),
    TableColumn("change", 2, change),
    TableColumn("bid", 4, lambda row, now: _price(_bid(row), row)),
    TableColumn("ask", 5, lambda row, now: _price(_ask(row), row)),
    TableColumn("spread", 8, lambda row, now: _price(row.spread, row)),
    TableColumn("volume", 6, lambda row, now: (format_amount(row.volume), "")),
    TableColumn("ticks/s", 7, lambda row, now: (f"{row.rate:,.1f}", "")),
    TableColumn("age", 9, lambda row, now: (format_age(now - row.updated_at), "dim")),
)
_SPARK_RANK: Final = 3


class SymbolTable:
    """Draws rows in stable columns: at the same total width, columns only get wider."""

    def __init__(self) -> None:
        self._width = 0
        self._widths = [0] * len(COLUMNS)

    def draw(
        self, rows: Sequence[Row], selected: str | None, sort: str, now: float, width: int
    ) -> list[Line]:
        """Draw a header line and one line for each row."""
        if width != self._width:
            self._width, self._widths = width, [len(each.name) + 1 for each in COLUMNS]
        cells = [[column.cell(row, now) for column in COLUMNS] for row in rows]
        for number in range(len(COLUMNS)):
            longest = max((len(line[number][0]) for line in cells), default=0)
            self._widths[number] = max(self._widths[number], longest)
        shown, spark = self._fit(width)
        lines = [self._head(shown, sort)]
        for row, line in zip(rows, cells, strict=True):
            lines.append(self._line(row, line, shown, spark, row.symbol == selected, width))
        return lines

    def _fit(self, width: int) -> tuple[list[int], int]:
        """Return the columns that fit, and the width of the sparkline."""
        ranked = sorted(range(len(COLUMNS)), key=lambda number: COLUMNS[number].rank)
        shown: list[int] = []
        room, reserved = width + len(_GAP), 0
        for number in ranked:
            if COLUMNS[number].rank == _SPARK_RANK + 1 and room >= _SPARK_MIN + len(_GAP):
                reserved = _SPARK_MIN + len(_GAP)
            needed = self._widths[number] + len(_GAP)
            if shown and needed > room - reserved:
                break
            shown.append(number)
            room -= needed
        spark = max(0, min(SPARK_POINTS, room - len(_GAP)))
        return sorted(shown), spark if spark >= _SPARK_MIN else 0

    def _head(self, shown: list[int], sort: str) -> Line:
        head: Line = []
        for number in shown:
            name, width = COLUMNS[number].name, self._widths[number]
            style = "dim"
            if name == sort:
                name, style = (f"{name}▴" if name == "symbol" else f"▾{name}"), "head"
            padded = name.ljust(width) if number == 0 else name.rjust(width)
            head += [(padded, style), (_GAP, "")]
        return head

    def _line(
        self, row: Row, cells: list[Segment], shown: list[int], spark: int, selected: bool,
        width: int,
    ) -> Line:  # fmt: skip
        line: Line = []
        for number in shown:
            text, style = cells[number]
            room = self._widths[number]
            line += [(text.ljust(room) if number == 0 else text.rjust(room), style), (_GAP, "")]
        if spark:
            points = [*row.course, row.last] if row.first else []
            line.append((sparkline(points[-spark:]).rjust(spark), f"{cells[2][1]} dim".strip()))
        if not selected:
            return line
        # Use one colour: green and red would be hard to read on the bright background.
        text = "".join(text for text, _ in line).ljust(width)[:width]
        return [(text, "selected")]
