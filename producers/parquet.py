"""Ticks from recorded Parquet files, whatever their columns are called."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from feed.errors import InvalidRecording
from feed.tapes.export import load_pyarrow
from feed.ticks import Tick
from feed.times import Time
from producers.recordings import Block, Layout

_ROWS: Final = 1_000


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
        for block in self._blocks(self._layout.used, group):
            yield from self._layout.read(block, self._on_bad_row)

    @cached_property
    def _groups(self) -> _Groups:
        """Where row groups begin in time: it takes a look at the times of all rows."""
        first: Time | None = None
        greatest = 0
        befores: list[int] = []
        for group in range(self._file.num_row_groups):
            befores.append(greatest)
            for block in self._blocks(self._layout.timing, group, group + 1):
                if times := self._layout.times_of(block.rows):
                    if first is None:
                        first = greatest = times[0]
                        befores = [first - 1] * len(befores)
                    greatest = max(greatest, *times)
        if first is None:
            raise InvalidRecording(f"{self._path}: no row has a time")
        return _Groups(first, Time(greatest), befores)

    def _blocks(self, used: set[int], group: int, end: int | None = None) -> Iterator[Block]:
        """The rows of some row groups; columns that are not used are empty."""
        metadata = self._file.metadata
        row = sum(metadata.row_group(each).num_rows for each in range(group))
        groups = list(range(group, self._file.num_row_groups if end is None else end))
        names = self._file.schema_arrow.names
        try:
            wanted = [names[index] for index in used]
            for batch in self._file.iter_batches(_ROWS, row_groups=groups, columns=wanted):
                columns = [
                    self._cells(index, batch.column(name))
                    if index in used and name in batch.schema.names
                    else [""] * batch.num_rows
                    for index, name in enumerate(names)
                ]
                yield Block(
                    list(zip(*columns, strict=True)), list(range(row + 1, row + batch.num_rows + 1))
                )
                row += batch.num_rows
        except (OSError, self._pyarrow.ArrowException) as error:
            raise InvalidRecording(f"{self._path}: damaged after row {row:,}: {error}") from None

    def _cells(self, index: int, column: Any) -> list[Any]:
        """A column as `Layout` reads it, in which no digit is lost."""
        types = self._pyarrow.types
        if types.is_timestamp(column.type):
            exact = column.cast(self._pyarrow.timestamp("ns", tz=column.type.tz))
            numbers = exact.cast(self._pyarrow.int64()).to_pylist()
            if self._layout.timing == {index}:
                return ["" if ns is None else Time(ns) for ns in numbers]
            return ["" if ns is None else Time(ns).rfc3339() for ns in numbers]
        if index in self._layout.amounts and types.is_floating(column.type):
            return ["" if value is None else value for value in column.to_pylist()]
        return ["" if value is None else str(value) for value in column.to_pylist()]
