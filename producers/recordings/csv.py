"""Read ticks from CSV files, plain or compressed, with any column names."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from producers.recordings.files import DAMAGE, not_utf8, opened, opened_bytes
from producers.recordings.headers import find_head
from producers.recordings.layout import BadRow, Block, Layout, RowFormat, ignore_bad_row
from producers.recordings.marks import ROWS, CountedLines, Marks
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import Tick
from tickcast.wire.times import NS_PER_SECOND, Time

_BLOCK: Final = 250
"""Rows per block: enough to amortize the cost of a block, and few enough not to delay a tick."""
_JUMP_NS: Final = 7 * 86_400 * NS_PER_SECOND
"""Longer jumps between two rows are reported, because a replay would wait as long."""


class CsvRecording:
    """A CSV file of trades, of quotes, or of both, read row by row.

    A header names the columns; see `find_head`. Rows keep the file's order.

    Args:
        path: a plain or compressed file. The content determines which.
        symbol: the symbol of rows that have none. If the first row has a symbol that no feed can
            have, this is the new name for it.
        columns: which column holds what, if its name doesn't show it: `{"time": "when"}`.
        on_bad_row: called with the line number and the error of each row that isn't a tick. Such
            rows are skipped.
        form: how times, numbers and symbols are written.

    Attributes:
        notes: remarks to show to users before the file is played; complete after `scan`.

    Raises:
        InvalidRecording: the file can't be read, or lacks columns.
    """

    def __init__(
        self,
        path: Path,
        symbol: str | None,
        columns: Mapping[str, str] | None = None,
        on_bad_row: BadRow = ignore_bad_row,
        form: RowFormat | None = None,
    ) -> None:
        self._path = path
        self._on_bad_row = on_bad_row
        self._file: BinaryIO | None = None
        self._span: tuple[Time, Time] | None = None
        self._marks = Marks()
        form = form or RowFormat()
        columns = columns or {}
        try:
            self.size_bytes = path.stat().st_size
            with opened(path) as (lines, _):
                self._head = find_head(lines.readline, columns)
            self._layout = Layout(self._head.names, columns, symbol, form)
            name = None if symbol is None else self._first_name()
            if symbol is not None and name is not None and name not in form.symbols:
                form = replace(form, symbols={**form.symbols, name: symbol})
                self._layout = Layout(self._head.names, columns, symbol, form)
        except OSError as error:
            raise InvalidRecording(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise InvalidRecording(f"{path}: {not_utf8(error)}") from None
        except (InvalidRecording, ValueError, *DAMAGE) as error:
            raise InvalidRecording(f"{path}: {error}") from None
        self.notes = list(self._layout.notes)

    def _first_name(self) -> str | None:
        """Return the symbol of the first row if it is one that no feed can have, else None."""
        with opened(self._path) as (lines, _):
            for row in csv.reader(
                islice(lines, self._head.lines, None), delimiter=self._head.delimiter
            ):
                if row:
                    return self._layout.unnamed(row)
        return None

    @property
    def position_bytes(self) -> int:
        """The current position in the stored file, in bytes."""
        return self._file.tell() if self._file else 0

    # -- as a source, after a `scan`

    @property
    def first(self) -> Time:
        """The time of the first row that has one."""
        return self._scanned()[0]

    @property
    def last(self) -> Time:
        """The greatest time of a row."""
        return self._scanned()[1]

    def _scanned(self) -> tuple[Time, Time]:
        if self._span is None:
            self.scan()
        assert self._span is not None
        return self._span

    def scan(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Read the times of all rows, and mark places from which reading can resume.

        If the file is damaged, the scan ends there; `read` reports the damage.

        Args:
            on_progress: called now and then. Meanwhile `position_bytes` advances.

        Raises:
            InvalidRecording: no row has a time.
        """
        with opened_bytes(self._path) as (content, stored):
            self._file = stored
            lines = CountedLines(content)
            marks = Marks()
            look = _Look()
            span = self._scan(
                iter(lines), look, on_progress,
                lambda greatest, line: marks.pass_rows(greatest, lines.offset, line),
            )  # fmt: skip
        if span is None or not lines.countable:
            # Scan again in the way that `read` does, so that both see the same rows.
            marks = Marks()
            look = _Look()
            with opened(self._path) as (text, stored):
                self._file = stored
                span = self._scan(
                    text, look, on_progress, lambda greatest, line: None, to_damage=True
                )
        self._file = None
        if span is None:
            raise InvalidRecording(f"{self._path}: no row has a time{look.first_error}")
        self._span, self._marks = span, marks
        self.notes = [*self._layout.notes, *look.notes()]

    def _scan(
        self,
        lines: Iterator[str],
        look: _Look,
        on_progress: Callable[[], None],
        on_rows: Callable[[int, int], None],
        to_damage: bool = False,
    ) -> tuple[Time, Time] | None:
        """Return the first and the greatest time; None if there is no time, or on damage.

        Args:
            look: notes irregular times.
            on_rows: called after every `ROWS` rows with the greatest time so far and the number of
                lines.
            to_damage: on damage, use the rows before it instead of returning None.
        """
        first: Time | None = None
        greatest = Time(0)
        before = self._head.lines
        for _ in range(before):
            next(lines, "")
        rows = csv.reader(lines, delimiter=self._head.delimiter)
        try:
            for block in _blocks(rows, ROWS, before):
                if times := self._layout.times_of(block.rows):
                    if first is None:
                        first = greatest = times[0]
                    look.at(times, block)
                    greatest = max(greatest, *times)
                    on_rows(greatest, rows.line_num + before)
                elif first is None and block.rows and not look.first_error:
                    error = self._layout.time_error(block.rows[0])
                    look.first_error = f"; line {block.numbers[0]}: {error}"
                on_progress()
        except (OSError, UnicodeDecodeError, *DAMAGE):
            if not to_damage:
                return None
        return None if first is None else (first, greatest)

    def read(self, start: Time | None = None) -> Iterator[Tick]:
        """Yield the ticks in the file's order, starting at some place before `start`.

        Raises:
            InvalidRecording: the file turns out to be damaged.
        """
        mark = None if start is None else self._marks.before(start)
        with opened(self._path, mark.offset if mark else 0) as (lines, stored):
            self._file = stored
            before = mark.line if mark else self._head.lines
            if mark is None:
                for _ in range(before):
                    lines.readline()
            rows = csv.reader(lines, delimiter=self._head.delimiter)
            try:
                for block in _blocks(rows, _BLOCK, before):
                    yield from self._layout.read(block, self._on_bad_row)
            except (OSError, UnicodeDecodeError, *DAMAGE) as error:
                what = not_utf8(error) if isinstance(error, UnicodeDecodeError) else error
                raise InvalidRecording(
                    f"{self._path}: damaged after line {rows.line_num + before}: {what}"
                ) from None
            finally:
                self._file = None

    def __iter__(self) -> Iterator[Tick]:
        return self.read()


class _Look:
    """Detects irregular times during a scan of a file.

    Attributes:
        first_error: the error in the first row, if no row so far has a time.
    """

    def __init__(self) -> None:
        self.first_error = ""
        self._forth = self._back = ""
        self._last: int | None = None

    def at(self, times: Sequence[Time], block: Block) -> None:
        """Check the next times, which come from the rows of `block`."""
        last = times[0] if self._last is None else self._last
        self._last = times[-1]
        low, high = min(times), max(times)
        if high - min(low, last) <= _JUMP_NS >= last - low or (self._forth and self._back):
            return
        # If some rows have no time, it is unknown which rows these times belong to.
        numbers = block.numbers if len(times) == len(block.rows) else repeat(block.numbers[0])
        for time, number in zip(times, numbers, strict=False):
            days = abs(time - last) // (86_400 * NS_PER_SECOND)
            if time - last > _JUMP_NS and not self._forth:
                self._forth = f"times jump by {days:,} days, line {number:,}"
            elif last - time > _JUMP_NS and not self._back:
                self._back = f"times go back by {days:,} days, line {number:,}"
            last = time

    def notes(self) -> Iterator[str]:
        """Yield remarks to show to users."""
        if self._forth:
            yield f"{self._forth}: a replay waits as long; --from, --to and --speed max spare it"
        if self._back:
            yield f"{self._back}: rows keep the file's order; sort them by time first"


class _Rows(Protocol):
    """What `csv.reader` returns."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...


def _blocks(rows: _Rows, size: int, lines_before: int = 0) -> Iterator[Block]:
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
    except (OSError, UnicodeDecodeError, *DAMAGE):
        yield block
        raise
    yield block
