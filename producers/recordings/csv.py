"""Read ticks from CSV files, plain or compressed, with any column names."""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice, repeat
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, Protocol

from producers.recordings.columns import HEADER_LINES_MAX, Header, find_header
from producers.recordings.files import (
    LINE_BYTES_MAX,
    READ_ERRORS,
    BadRow,
    LineSplitter,
    Recording,
    describe_error,
    ignore_bad_row,
    open_bytes,
    open_text,
)
from producers.recordings.rows import Block, RowConverter, TableFormat
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import Tick
from tickcast.wire.times import NS_PER_SECOND, Time

# Rows per block: enough to amortize the cost of a block, and few enough not to delay a tick.
_BLOCK_ROWS: Final = 250
# Rows between two places from which reading can resume.
BOOKMARK_ROWS: Final = 2048
_BOOKMARKS_MAX: Final = 65_536
# Longer jumps between two rows are reported, because a replay would wait as long.
_JUMP_NS: Final = 7 * 86_400 * NS_PER_SECOND


class CsvRecording(Recording):
    """A CSV file of trades, of quotes, or of both, read row by row.

    A header names the columns; see `find_header`. `notes` are complete after `scan`.

    Args:
        path: a plain or compressed file. The content determines which.
        symbol: the symbol of rows that have none. If the first row has a symbol that no feed can
            have, this is the new name for it.
        columns: which column holds what, if its name doesn't show it: `{"time": "when"}`.
        on_bad_row: called with the line number and the error of each row that isn't a tick. Such
            rows are skipped.

    Raises:
        InvalidRecording: the file can't be read, or lacks columns.
    """

    def __init__(
        self,
        path: Path,
        symbol: str | None,
        columns: Mapping[str, str] | None = None,
        on_bad_row: BadRow = ignore_bad_row,
        table_format: TableFormat | None = None,
    ) -> None:
        super().__init__(path, on_bad_row)
        self._bookmarks = _Bookmarks()
        table_format = table_format or TableFormat()
        columns = columns or {}
        try:
            with open_text(path) as (lines, _):
                self._header = find_header(lines.readline, columns)
            first_row = None if symbol is None else self._first_row()
            self._converter = _make_converter(
                self._header, columns, symbol, table_format, first_row
            )
        except (InvalidRecording, ValueError, *READ_ERRORS) as error:
            raise InvalidRecording(f"{path}: {describe_error(error)}") from None
        self.notes = self._converter.notes

    def _first_row(self) -> Sequence[str] | None:
        with open_text(self._path) as (lines, _):
            rows = self._rows(islice(lines, self._header.lines, None))
            return next(filter(None, rows), None)

    def _rows(self, lines: Iterator[str]) -> _CsvRows:
        return csv.reader(lines, delimiter=self._header.delimiter)

    # -- the times of all rows

    @cached_property
    def span(self) -> tuple[Time, Time]:
        return self._scan(lambda position: None)

    def scan(self, on_progress: Callable[[int], None]) -> None:
        """Read the times of all rows, and mark places from which reading can resume.

        If the file is damaged, the scan ends there; `read` reports the damage.

        Args:
            on_progress: called now and then with the position in the stored file, in bytes.

        Raises:
            InvalidRecording: no row has a time.
        """
        self.span = self._scan(on_progress)

    def _scan(self, on_progress: Callable[[int], None]) -> tuple[Time, Time]:
        with open_bytes(self._path) as (content, stored):
            lines = _CountedLines(content)
            bookmarks, jumps = _Bookmarks(), _JumpFinder()
            span = self._scan_times(
                iter(lines),
                jumps,
                lambda: on_progress(stored.tell()),
                lambda greatest, line: bookmarks.record(greatest, lines.offset, line),
            )
        if span is None or not lines.countable:
            # Scan again in the way that `read` does, so that both see the same rows.
            bookmarks, jumps = _Bookmarks(), _JumpFinder()
            with open_text(self._path) as (text, stored):
                span = self._scan_times(
                    text, jumps, lambda: on_progress(stored.tell()), until_damage=True
                )
        if span is None:
            raise InvalidRecording(f"{self._path}: no row has a time{jumps.first_error}")
        self._bookmarks = bookmarks
        self.notes = [*self._converter.notes, *jumps.notes()]
        return span

    def _scan_times(
        self,
        lines: Iterator[str],
        jumps: _JumpFinder,
        on_progress: Callable[[], None],
        on_rows: Callable[[int, int], None] = lambda greatest, line: None,
        until_damage: bool = False,
    ) -> tuple[Time, Time] | None:
        """Return the first and the greatest time; None if there is no time, or on damage.

        Args:
            on_rows: called after every `BOOKMARK_ROWS` rows with the greatest time so far and the
                number of lines.
            until_damage: on damage, use the rows before it instead of returning None.
        """
        first: Time | None = None
        greatest = Time(0)
        lines_before = self._header.lines
        for _ in range(lines_before):
            next(lines, "")
        rows = self._rows(lines)
        try:
            for block in _blocks(rows, BOOKMARK_ROWS, lines_before):
                if times := self._converter.times(block.rows):
                    if first is None:
                        first = greatest = times[0]
                    jumps.check(times, block)
                    greatest = max(greatest, *times)
                    on_rows(greatest, rows.line_num + lines_before)
                elif first is None and block.rows and not jumps.first_error:
                    error = self._converter.time_error(block.rows[0])
                    jumps.first_error = f"; line {block.numbers[0]}: {error}"
                on_progress()
        except READ_ERRORS:
            if not until_damage:
                return None
        return None if first is None else (first, greatest)

    # -- ticks

    def _read(self, start: Time | None) -> Iterator[Tick]:
        bookmark = None if start is None else self._bookmarks.before(start)
        with open_text(self._path, bookmark.offset if bookmark else 0) as (lines, _):
            lines_before = bookmark.line if bookmark else self._header.lines
            if bookmark is None:
                for _ in range(lines_before):
                    lines.readline()
            rows = self._rows(lines)
            try:
                for block in _blocks(rows, _BLOCK_ROWS, lines_before):
                    yield from self._converter.convert(block, self._on_bad_row)
            except READ_ERRORS as error:
                raise InvalidRecording(
                    f"{self._path}: damaged after line {rows.line_num + lines_before}:"
                    f" {describe_error(error)}"
                ) from None


def _make_converter(
    header: Header,
    columns: Mapping[str, str],
    symbol: str | None,
    table_format: TableFormat,
    first_row: Sequence[str] | None,
) -> RowConverter:
    """Make a converter for these columns. Raises InvalidRecording."""
    converter = RowConverter(header.names, columns, symbol, table_format)
    name = converter.unusable_symbol(first_row) if symbol is not None and first_row else None
    if symbol is None or name is None or name in table_format.symbols:
        return converter
    # The symbol is a new name for the one in the file.
    table_format = replace(table_format, symbols={**table_format.symbols, name: symbol})
    return RowConverter(header.names, columns, symbol, table_format)


class CsvStream:
    """CSV that arrives piece by piece. Unlike in a file, a value can't contain a line end.

    Args:
        symbol, columns, on_bad_row, table_format: as for `CsvRecording`.
        on_note: called with each remark to show to users.
    """

    def __init__(
        self,
        symbol: str | None,
        columns: Mapping[str, str],
        on_bad_row: BadRow,
        on_note: Callable[[str], None],
        table_format: TableFormat,
    ) -> None:
        self._symbol = symbol
        self._columns = columns
        self._on_bad_row = on_bad_row
        self._on_note = on_note
        self._format = table_format
        self._splitter = LineSplitter()
        # The lines until the header and a row after it are found.
        self._begin: list[str] = []
        self._number = 0
        self._delimiter = ","
        self._converter: RowConverter | None = None

    def parse(self, data: bytes) -> Iterator[Tick]:
        """Yield the ticks of the lines that this data completes. An empty `data` means the end.

        Raises:
            InvalidRecording: there is no header, or it lacks columns.
        """
        lines: list[str] = []
        before = self._number
        for line in self._splitter.split(data):
            self._number += 1
            try:
                if line is None:
                    raise InvalidRecording(f"longer than {LINE_BYTES_MAX} bytes")
                text = line.decode("utf-8-sig").removesuffix("\r")
                lines.append(text.replace("\r", " ") + "\n")
            except (InvalidRecording, UnicodeDecodeError) as error:
                lines.append("\n")
                self._on_bad_row(self._number, describe_error(error))
        if self._converter is None:
            self._begin += lines
            header = self._find_columns(is_end=not data)
            if header is None:
                return
            lines, self._begin = self._begin[header.lines :], []
            before = header.lines
        assert self._converter is not None
        block = Block([], [])
        for number, row in enumerate(self._rows(lines), before + 1):
            if row:
                block.rows.append(row)
                block.numbers.append(number)
        yield from self._converter.convert(block, self._on_bad_row)

    def _find_columns(self, *, is_end: bool) -> Header | None:
        """Return the header as soon as there is one with a row after it, or at the end."""
        is_complete = is_end or len(self._begin) >= HEADER_LINES_MAX
        if is_end and not any(map(str.strip, self._begin)):
            return None
        lines = iter(self._begin)
        try:
            header = find_header(lambda _: next(lines, ""), self._columns)
            self._delimiter = header.delimiter
            first_row = next(filter(None, self._rows(self._begin[header.lines :])), None)
            if first_row is None and not is_complete:
                return None
            self._converter = _make_converter(
                header, self._columns, self._symbol, self._format, first_row
            )
        except InvalidRecording:
            if is_complete:
                raise
            return None  # This may have been a title or a comment.
        for note in self._converter.notes:
            self._on_note(note)
        return header

    def _rows(self, lines: Sequence[str]) -> list[list[str]]:
        rows = list(csv.reader(lines, delimiter=self._delimiter))
        if len(rows) == len(lines):
            return rows
        # A quote without its end has swallowed the lines that follow it.
        return [next(csv.reader([line], delimiter=self._delimiter), []) for line in lines]


class _CsvRows(Protocol):
    """What `csv.reader` returns."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...


def _blocks(rows: _CsvRows, size: int, lines_before: int) -> Iterator[Block]:
    """Group rows into blocks, without empty rows. A row's number is the line where it ends.

    On damage, yield the rows before it, then raise the error.
    """
    block = Block([], [])
    try:
        for row in rows:
            if row:
                block.rows.append(row)
                block.numbers.append(rows.line_num + lines_before)
                if len(block.rows) == size:
                    yield block
                    block = Block([], [])
    except READ_ERRORS:
        yield block
        raise
    yield block


class _Bookmark(NamedTuple):
    """A place between two rows from which reading can resume."""

    # The greatest time before this place.
    greatest: int
    # Its offset in the uncompressed content, in bytes.
    offset: int
    # The number of lines before it.
    line: int


class _Bookmarks:
    """A bookmark every `BOOKMARK_ROWS` rows, or less often in a long file."""

    def __init__(self) -> None:
        self._bookmarks: list[_Bookmark] = []
        self._every = 1
        self._skipped = 0

    def record(self, greatest: int, offset: int, line: int) -> None:
        self._skipped += 1
        if self._skipped < self._every:
            return
        self._skipped = 0
        self._bookmarks.append(_Bookmark(greatest, offset, line))
        if len(self._bookmarks) > _BOOKMARKS_MAX:
            del self._bookmarks[::2]
            self._every *= 2

    def before(self, start: Time) -> _Bookmark | None:
        """Return the last bookmark before which no row has a time of `start` or later."""
        count = bisect_left(self._bookmarks, int(start), key=lambda mark: mark.greatest)
        return self._bookmarks[count - 1] if count else None


class _CountedLines:
    """The lines of some content as text, with their offsets.

    Iterating raises UnicodeDecodeError if a line isn't UTF-8.
    """

    def __init__(self, content: BinaryIO) -> None:
        self._content = content
        # The offset of the byte after the last line.
        self.offset = 0
        # False if some lines end with a CR alone. Text readers end a line there, and this iterator
        # doesn't, so the line numbers differ.
        self.countable = True

    def __iter__(self) -> Iterator[str]:
        encoding = "utf-8-sig"
        for line in self._content:
            self.offset += len(line)
            if b"\r" in line and line.find(b"\r", 0, -2) >= 0:
                self.countable = False
            yield line.decode(encoding)
            encoding = "utf-8"


class _JumpFinder:
    """Finds times that jump forward or back during a scan of a file."""

    def __init__(self) -> None:
        # The error in the first row, if no row so far has a time.
        self.first_error = ""
        self._forward = self._back = ""
        self._last: int | None = None

    def check(self, times: Sequence[Time], block: Block) -> None:
        """Check the next times, which come from the rows of `block`."""
        last = times[0] if self._last is None else self._last
        self._last = times[-1]
        low, high = min(times), max(times)
        if high - min(low, last) <= _JUMP_NS >= last - low or (self._forward and self._back):
            return
        # If some rows have no time, it is unknown which rows these times belong to.
        numbers = block.numbers if len(times) == len(block.rows) else repeat(block.numbers[0])
        for time, number in zip(times, numbers, strict=False):
            days = abs(time - last) // (86_400 * NS_PER_SECOND)
            if time - last > _JUMP_NS and not self._forward:
                self._forward = f"times jump by {days:,} days, line {number:,}"
            elif last - time > _JUMP_NS and not self._back:
                self._back = f"times go back by {days:,} days, line {number:,}"
            last = time

    def notes(self) -> Iterator[str]:
        """Yield remarks to show to users."""
        if self._forward:
            yield f"{self._forward}: a replay waits as long; --from, --to and --speed max avoid it"
        if self._back:
            yield f"{self._back}: rows keep the file's order; sort them by time first"
