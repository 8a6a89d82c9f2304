"""Ticks from recorded Parquet files, whatever their columns are called."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from feed.errors import InvalidRecording, InvalidTick
from feed.tapes.export import load_pyarrow
from feed.ticks import Tick
from feed.times import Time
from producers.recordings import Layout

_ROWS: Final = 16_384


class _Groups(NamedTuple):
    """Row groups by time.

    Attributes:
        first, last: the first and the greatest time of all rows.
        befores: for each group the greatest time before it.
    """

    first: Time
    last: Time
    befores: list[int]

    def before(self, start: Time) -> int:
        """The last group with no row before it whose time is `start` or later."""
        return max(0, bisect_left(self.befores, int(start)) - 1)


class ParquetRecording:
    """A Parquet file of trades, of quotes, or of both, read row by row. It takes pyarrow.

    Args:
        path: of the file.
        symbol, columns, on_bad_row: as for `CsvRecording`; rows count from 1.

    Raises:
        InvalidRecording: the file can't be read, or lacks columns.
        InvalidSettings: pyarrow is not installed.
    """

    def __init__(
        self,
        path: Path,
        symbol: str | None,
        columns: Mapping[str, str] | None = None,
        on_bad_row: Callable[[int, str], None] = lambda row, error: None,
    ) -> None:
        self._pyarrow, parquet = load_pyarrow()
        self._path = path
        self._on_bad_row = on_bad_row
        try:
            self._file = parquet.ParquetFile(path)
            self._layout = Layout(self._file.schema_arrow.names, columns or {}, symbol)
        except (OSError, self._pyarrow.ArrowException, InvalidRecording) as error:
            raise InvalidRecording(f"{path}: {error}") from None

    def __iter__(self) -> Iterator[Tick]:
        return self.read()

    # -- as a source

    @property
    def first(self) -> Time:
        """The time of the first row that has one."""
        return self._groups.first

    @property
    def last(self) -> Time:
        """The greatest time of a row."""
        return self._groups.last

    def read(self, start: Time | None = None) -> Iterator[Tick]:
        """The ticks in the file's order, from some row group before those of `start` on.

        Raises:
            InvalidRecording: the file turns out to be damaged.
        """
        group = 0 if start is None else self._groups.before(start)
        for row, values in self._rows(self._layout.used, group):
            yield from self._read_row(values, row)

    @cached_property
    def _groups(self) -> _Groups:
        """Where row groups begin in time: it takes a look at the times of all rows."""
        first: Time | None = None
        greatest = 0
        befores: list[int] = []
        for group in range(self._file.num_row_groups):
            befores.append(greatest)
            for _, values in self._rows(self._layout.timing, group, group + 1):
                try:
                    time = self._layout.time_of(values)
                except ValueError:
                    continue
                if first is None:
                    first, greatest, befores = time, time, [time - 1] * len(befores)
                elif time > greatest:
                    greatest = time
        if first is None:
            raise InvalidRecording(f"{self._path}: no row has a time")
        return _Groups(first, Time(greatest), befores)

    def _rows(
        self, used: set[int], group: int, end: int | None = None
    ) -> Iterator[tuple[int, list[str]]]:
        """The rows of some row groups with their numbers; columns that are not used are empty."""
        metadata = self._file.metadata
        row = sum(metadata.row_group(each).num_rows for each in range(group))
        groups = list(range(group, self._file.num_row_groups if end is None else end))
        names = self._file.schema_arrow.names
        try:
            wanted = [names[index] for index in used]
            for batch in self._file.iter_batches(_ROWS, row_groups=groups, columns=wanted):
                texts = [
                    self._texts(batch.column(name))
                    if index in used and name in batch.schema.names
                    else [""] * batch.num_rows
                    for index, name in enumerate(names)
                ]
                for values in zip(*texts, strict=True):
                    row += 1
                    yield row, list(values)
        except (OSError, self._pyarrow.ArrowException) as error:
            raise InvalidRecording(f"{self._path}: damaged after row {row:,}: {error}") from None

    def _texts(self, column: Any) -> list[str]:
        """A column as texts, in which no digit is lost."""
        types = self._pyarrow.types
        if types.is_timestamp(column.type):
            exact = column.cast(self._pyarrow.timestamp("ns", tz=column.type.tz))
            numbers = exact.cast(self._pyarrow.int64()).to_pylist()
            return ["" if ns is None else Time(ns).rfc3339() for ns in numbers]
        return ["" if value is None else str(value) for value in column.to_pylist()]

    def _read_row(self, values: list[str], row: int) -> Iterator[Tick]:
        try:
            yield from self._layout.read(values)
        except (ValueError, InvalidTick) as error:
            self._on_bad_row(row, str(error))
