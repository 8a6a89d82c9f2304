"""Read ticks from Parquet files with any column names."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from producers.recordings.columns import NONE
from producers.recordings.layout import BadRow, Block, Layout, RowFormat, ignore_bad_row
from tickcast.tapes.export import load_pyarrow
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import Tick
from tickcast.wire.times import NS_PER_SECOND, Time

_ROWS: Final = 1_000
_INDEX: Final = re.compile(r"__index_level_\d+__|index")
"""The names that pandas gives to an index without a name."""
_NS: Final = {"s": NS_PER_SECOND, "ms": 1_000_000, "us": 1000, "ns": 1}
_NS_PER_DAY: Final = 86_400 * NS_PER_SECOND
_INT64: Final = range(-(2**63), 2**63)


class _Groups(NamedTuple):
    """The times of row groups.

    Attributes:
        first, last: the first and the greatest time of all rows.
        befores: for each group, the greatest time before it.
    """

    first: Time
    last: Time
    befores: list[int]

    def before(self, start: Time) -> int:
        """Return the last group before which no row has a time of `start` or later."""
        return max(0, bisect_left(self.befores, int(start)) - 1)


class _Leaf(NamedTuple):
    """A column, or a field of a struct, which counts as a column.

    Attributes:
        name: the name for lookups and messages: the last part of the path if that is unique,
            otherwise the whole path.
        path: the names from the top-level column down.
        type: its Arrow type.
    """

    name: str
    path: tuple[str, ...]
    type: Any

    @property
    def full_name(self) -> str:
        """The path joined with dots: `trade.price`."""
        return ".".join(self.path)


class ParquetRecording:
    """A Parquet file of trades, of quotes, or of both, read row by row. Requires pyarrow.

    Fields of structs count as columns. If no column name indicates the time, an unnamed pandas
    index is used. Dates without a time of day mean midnight.

    Args:
        path: the path of the file.
        symbol, columns, on_bad_row, form: as for `CsvRecording`; rows count from 1.

    Attributes:
        notes: remarks to show to users before the file is played.

    Raises:
        InvalidRecording: the file can't be read, or lacks columns.
        InvalidSettings: pyarrow is not installed.
    """

    def __init__(
        self,
        path: Path,
        symbol: str | None,
        columns: Mapping[str, str] | None = None,
        on_bad_row: BadRow = ignore_bad_row,
        form: RowFormat | None = None,
    ) -> None:
        self._form = form or RowFormat()
        self._pyarrow, parquet = load_pyarrow()
        self._types = self._pyarrow.types
        self._path = path
        self._on_bad_row = on_bad_row
        try:
            self._file = parquet.ParquetFile(path)
            self._leaves = self._find_leaves()
            self._layout = self._make_layout(columns or {}, symbol)
            self._clock = self._find_clock(columns or {})
            self._check_types()
            self.notes = list(self._layout.notes)
        except (OSError, self._pyarrow.ArrowException, InvalidRecording) as error:
            raise InvalidRecording(f"{path}: {error}") from None

    def __iter__(self) -> Iterator[Tick]:
        return self.read()

    # -- the columns

    def _find_leaves(self) -> list[_Leaf]:
        paths = list(self._paths(self._file.schema_arrow, ()))
        times = Counter(path[-1] for path, _ in paths)
        top = Counter(path[0] for path, _ in paths if len(path) == 1)
        return [
            _Leaf(
                path[-1] if times[path[-1]] == 1 and path[-1] not in top else ".".join(path),
                path,
                kind,
            )
            for path, kind in paths
        ]

    def _paths(self, fields: Any, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for field in fields:
            path = (*above, field.name)
            if self._types.is_struct(field.type):
                yield from self._paths(field.type, path)
            else:
                yield path, field.type

    def _make_layout(self, columns: Mapping[str, str], symbol: str | None) -> Layout:
        names = [leaf.name for leaf in self._leaves]
        by_full_name = {leaf.full_name: leaf.name for leaf in self._leaves}
        mapping = {what: by_full_name.get(name, name) for what, name in columns.items()}
        indexes = [name for name in self._stamps_named() if _INDEX.fullmatch(name)]
        with_index = {**mapping, "time": indexes[0]} if len(indexes) == 1 else None
        try:
            layout = Layout(names, mapping, symbol, self._form)
        except InvalidRecording:
            if "time" in mapping or with_index is None:
                raise
            return Layout(names, with_index, symbol, self._form)
        if "time" not in mapping and with_index and self._has_dates_alone(layout):
            return Layout(names, with_index, symbol, self._form)
        if "time" not in mapping and (stamp := self._stamp_beside_date(layout)) is not None:
            mapping |= {"time": names[stamp], "clock": NONE}
            return Layout(names, mapping, symbol, self._form)
        return layout

    def _stamp_beside_date(self, layout: Layout) -> int | None:
        """Return the column that was taken for the time of day but holds whole timestamps."""
        kinds = {index: self._leaves[index].type for index in layout.timing}
        stamps = [index for index, kind in kinds.items() if self._types.is_timestamp(kind)]
        dates = [index for index, kind in kinds.items() if self._types.is_date(kind)]
        return stamps[0] if len(stamps) == len(dates) == 1 else None

    def _has_dates_alone(self, layout: Layout) -> bool:
        """Return whether times are dates, without a column for the time of day."""
        if len(layout.timing) > 1:
            return False
        (index,) = layout.timing
        return bool(self._types.is_date(self._leaves[index].type))

    def _stamps_named(self) -> list[str]:
        """Return the names of the columns with timestamps."""
        return [leaf.name for leaf in self._leaves if self._types.is_timestamp(leaf.type)]

    def _find_clock(self, columns: Mapping[str, str]) -> int | None:
        """Return the column with the time of day for dates, found by type and not by name."""
        if "clock" in columns or not self._has_dates_alone(self._layout):
            return None
        clocks = [
            index for index, leaf in enumerate(self._leaves) if self._types.is_time(leaf.type)
        ]
        stamps = [] if "time" in columns else self._stamps_named()
        if len(clocks) > 1 or stamps:
            (index,) = self._layout.timing
            date = self._leaves[index].name
            others = ", ".join([*(self._leaves[each].name for each in clocks), *stamps])
            raise InvalidRecording(
                f"the column {date} holds dates alone, and the time may be in another: {others};"
                f" name it with --columns time=NAME, or say time={date},clock={NONE}"
            )
        return clocks[0] if clocks else None

    def _check_types(self) -> None:
        times = Counter(leaf.path for leaf in self._leaves)
        for index in self._used:
            leaf = self._leaves[index]
            kind = leaf.type.value_type if self._types.is_dictionary(leaf.type) else leaf.type
            if times[leaf.path] > 1:
                raise InvalidRecording(f"two columns are called {leaf.full_name!a}")
            if self._types.is_nested(kind):
                raise InvalidRecording(f"column {leaf.full_name!a} holds {kind}, not single values")

    @property
    def _used(self) -> set[int]:
        return self._layout.used if self._clock is None else {*self._layout.used, self._clock}

    @property
    def _timing(self) -> set[int]:
        return self._layout.timing if self._clock is None else {*self._layout.timing, self._clock}

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
        """Yield the ticks in the file's order, starting with a row group at or before `start`.

        Raises:
            InvalidRecording: the file turns out to be damaged.
        """
        group = 0 if start is None else self._groups.before(start)
        for block in self._blocks(self._used, group):
            yield from self._layout.read(block, self._on_bad_row)

    @cached_property
    def _groups(self) -> _Groups:
        """The times of the row groups. Reads the times of all rows."""
        first: Time | None = None
        greatest = 0
        error = ""
        befores: list[int] = []
        for group in range(self._file.num_row_groups):
            befores.append(greatest)
            for block in self._blocks(self._timing, group, group + 1):
                if times := self._layout.times_of(block.rows):
                    if first is None:
                        first = greatest = times[0]
                        befores = [first - 1] * len(befores)
                    greatest = max(greatest, *times)
                elif first is None and block.rows and not error:
                    error = f"; row 1: {self._layout.time_error(block.rows[0])}"
        if first is None:
            raise InvalidRecording(f"{self._path}: no row has a time{error}")
        return _Groups(first, Time(greatest), befores)

    def _blocks(self, used: set[int], group: int, end: int | None = None) -> Iterator[Block]:
        """Yield the rows of some row groups. Unused columns are empty."""
        metadata = self._file.metadata
        row = sum(metadata.row_group(each).num_rows for each in range(group))
        groups = list(range(group, self._file.num_row_groups if end is None else end))
        wanted = list(dict.fromkeys(self._leaves[index].path[0] for index in sorted(used)))
        try:
            for batch in self._file.iter_batches(_ROWS, row_groups=groups, columns=wanted):
                yield Block(self._rows(batch, used), list(range(row + 1, row + batch.num_rows + 1)))
                row += batch.num_rows
        except (OSError, self._pyarrow.ArrowException) as error:
            raise InvalidRecording(f"{self._path}: damaged after row {row:,}: {error}") from None

    def _rows(self, batch: Any, used: set[int]) -> list[Any]:
        nothing = [""] * batch.num_rows
        columns = [
            self._cells(index, _values(batch, leaf.path)) if index in used else nothing
            for index, leaf in enumerate(self._leaves)
        ]
        if self._clock is not None:
            (index,) = self._layout.timing
            columns[index] = [
                f"{date} {clock}" if date and clock else ""
                for date, clock in zip(columns[index], columns[self._clock], strict=True)
            ]
        return list(zip(*columns, strict=True))

    # -- the values

    def _cells(self, index: int, column: Any) -> list[Any]:
        """Convert a column to the form that `Layout` reads, without losing digits."""
        types, kind = self._types, column.type
        if types.is_dictionary(kind):
            return self._cells(index, column.dictionary_decode())
        if types.is_timestamp(kind):
            return self._stamps(index, column)
        if types.is_date(kind):
            return [self._date(day, index) for day in _days(column)]
        if types.is_time(kind) or (types.is_duration(kind) and index in self._timing):
            scale = _NS[kind.unit]
            return ["" if value is None else _clock(value * scale) for value in _numbers(column)]
        if types.is_floating(kind):
            return self._floats(index, column)
        return ["" if value is None else _text(value) for value in column.to_pylist()]

    def _date(self, day: int | None, index: int) -> Time | str:
        """Convert a date. It means midnight if no other column holds the time of day."""
        if day is None:
            return ""
        if self._timing != {index}:
            return _date(day)
        if self._form.times.zone is not None:
            return f"{_date(day)} 00:00:00"
        return _midnight(day)

    def _stamps(self, index: int, column: Any) -> list[Any]:
        """Convert timestamps of any unit. One out of range is a bad row, not a damaged file."""
        scale = _NS[column.type.unit]
        numbers = _numbers(column)
        if self._form.times.zone is not None and column.type.tz is None:
            texts = ["" if ns is None else _far(ns * scale)[:-1] for ns in numbers]
            if self._timing == {index}:
                return texts
        if self._timing == {index} and scale == 1:
            return ["" if ns is None else Time(ns) for ns in numbers]
        numbers = [None if value is None else value * scale for value in numbers]
        if self._timing == {index}:
            return ["" if ns is None else Time(ns) if ns in _INT64 else _far(ns) for ns in numbers]
        if index in self._timing:
            # The time of day is in another column.
            return ["" if ns is None else _far(ns).removesuffix("T00:00:00Z") for ns in numbers]
        return ["" if ns is None else _far(ns) for ns in numbers]

    def _floats(self, index: int, column: Any) -> list[Any]:
        if index in self._layout.amounts:
            if not self._types.is_float64(column.type):
                # 187.15 rather than 187.14999389648438.
                texts = column.cast(self._pyarrow.string()).to_pylist()
                return ["" if text is None else float(text) for text in texts]
            return ["" if value is None else value for value in column.to_pylist()]
        return [
            "" if value is None or math.isnan(value)
            else str(int(value)) if value.is_integer() else repr(value)
            for value in column.to_pylist()
        ]  # fmt: skip


def _values(batch: Any, path: tuple[str, ...]) -> Any:
    """Return the values of a column, or of a struct's field: null where the struct is null."""
    column = batch.column(path[0])
    for name in path[1:]:
        column = column.flatten()[column.type.get_field_index(name)]
    return column


def _numbers(column: Any) -> list[int | None]:
    """Return the raw numbers of a column of times. Without a unit conversion, none can overflow."""
    size = "int32" if column.type.bit_width == 32 else "int64"
    numbers: list[int | None] = column.view(size).to_pylist()
    return numbers


def _days(column: Any) -> list[int | None]:
    """Return a column of dates as days since the Unix epoch."""
    scale = 1 if column.type.bit_width == 32 else 86_400_000
    return [None if value is None else value // scale for value in _numbers(column)]


def _midnight(day: int) -> Time | str:
    ns = day * _NS_PER_DAY
    return Time(ns) if ns in _INT64 else _date(day)


def _date(day: int) -> str:
    return _far(day * _NS_PER_DAY).removesuffix("T00:00:00Z")


def _far(ns: int) -> str:
    """Format a time, even if it is out of range."""
    if ns in _INT64:
        return Time(ns).rfc3339()
    try:
        whole = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=ns // NS_PER_SECOND)
    except OverflowError:
        return f"{ns} ns"
    return f"{whole:%Y-%m-%dT%H:%M:%S}Z"


def _clock(ns: int) -> str:
    """Format a time of day."""
    seconds, fraction = divmod(ns, NS_PER_SECOND)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:09}"


def _text(value: Any) -> str:
    """Convert a value to text. Bytes are decoded as UTF-8.

    Bytes that aren't UTF-8 become characters that no symbol or name may contain, so the row is bad.
    """
    if isinstance(value, bytes):
        return value.rstrip(b"\0").decode("utf-8", "surrogateescape")
    return str(value)
