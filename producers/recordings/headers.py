"""Find the header of a CSV file. It may follow comments or a title, or be absent."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from producers.recordings.columns import knows
from tickcast.wire.errors import InvalidRecording

_LINES_MAX: Final = 50
"""The number of lines that are searched for a header."""
_LINE_MAX: Final = 1 << 20
_SHOWN: Final = 80
_COMMENTS: Final = ("#", "//", "%")
_SEPARATOR: Final = re.compile(r"\ufeff?\"?sep=(.)\"?\s*", re.IGNORECASE)
"""The line that Excel writes first."""
_VALUE: Final = re.compile(r"[+-]?[\d.,:/ TZ_-]*\d[\d.,:/ TZ_+-]*(?:[eE][+-]?\d+)?|true|false",
                           re.IGNORECASE | re.ASCII)  # fmt: skip


class FileHeader(NamedTuple):
    """How a file is divided into a header and rows.

    Attributes:
        names: the names of the columns, or numbers from 1 if the file has no names.
        delimiter: the character between two values.
        lines: the number of lines before the first row.
    """

    names: list[str]
    delimiter: str
    lines: int


class _Line(NamedTuple):
    cells: list[str]
    delimiter: str
    number: int

    @classmethod
    def read(cls, line: str, delimiter: str | None, number: int) -> _Line:
        delimiter = delimiter or _delimiter_of(line)
        return cls(_split(line, delimiter), delimiter, number)

    def fits_below(self, first: _Line) -> bool:
        """Return whether `first`, an earlier line, can't be a row if this line is the header."""
        if not any(map(_is_value, first.cells)):
            return True
        return sum(map(bool, first.cells)) < len(self.cells)


def find_head(readline: Callable[[int], str], columns: Mapping[str, str]) -> FileHeader:
    """Search the first lines of a file for the header.

    A line before the header is skipped if it can't be a row: if it is empty, a comment or Excel's
    `sep=;`, or has no number or date, or has fewer values than the header.

    Args:
        readline: returns the next line, up to a length, and an empty string at the end.
        columns: the columns that the user gave by name or number.

    Raises:
        InvalidRecording: the file is empty, or has no header and no columns were given by number.
        csv.Error: a value is too long.
    """
    delimiter: str | None = None
    first: _Line | None = None
    comment: list[str] = []
    for number in range(1, _LINES_MAX + 1):
        line = readline(_LINE_MAX)
        if not line:
            break
        text = line.strip()
        if (separator := _SEPARATOR.fullmatch(line)) is not None and first is None:
            delimiter = separator[1]
        elif text.startswith(_COMMENTS) and first is None:
            comment = _split(text.lstrip("#/% "), delimiter or _delimiter_of(text))
        elif text:
            found = _Line.read(line, delimiter, number)
            if _is_header(found.cells, columns) and (first is None or found.fits_below(first)):
                return FileHeader(found.cells, found.delimiter, number)
            first = first or found
    if first is None:
        raise InvalidRecording("empty")
    if len(comment) == len(first.cells) and _is_header(comment, columns):
        return FileHeader(comment, first.delimiter, first.number - 1)
    if not any(map(_is_value, first.cells)):
        return FileHeader(first.cells, first.delimiter, first.number)
    if any(name.isdecimal() for name in columns.values()):
        names = [str(n) for n in range(1, len(first.cells) + 1)]
        return FileHeader(names, first.delimiter, first.number - 1)
    raise InvalidRecording(
        f"no header: line {first.number} holds values ({', '.join(first.cells)[:_SHOWN]}); say by"
        " number which column is what, such as --columns time=1,price=2,size=3"
    )


def _is_header(cells: Sequence[str], columns: Mapping[str, str]) -> bool:
    named = {name for name in columns.values() if not name.isdecimal()}
    if not named.isdisjoint(cells):
        return True
    # A row may contain a `T` or a `P`, but next to numbers.
    return knows(cells) > (2 if any(map(_is_value, cells)) else 0)


def _is_value(cell: str) -> bool:
    return _VALUE.fullmatch(cell) is not None


def _split(line: str, delimiter: str) -> list[str]:
    values = next(csv.reader([line], delimiter=delimiter), [])
    return [value.strip() for value in values]


def _delimiter_of(line: str) -> str:
    return max(",;\t|", key=line.count)
