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

from producers.recordings.columns import NO_COLUMN
from producers.recordings.files import BadRow, Recording, ignore_bad_row
from producers.recordings.rows import Block, RowConverter, TableFormat
from tickcast.tapes.export import load_pyarrow
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import Tick
from tickcast.wire.times import NS_PER_SECOND, Time

_BLOCK_ROWS: Final = 1_000
# The names that pandas gives to an index without a name.
_INDEX: Final = re.compile(r"__index_level_\d+__|index")
_UNIT_NS: Final = {"s": NS_PER_SECOND, "ms": 1_000_000, "us": 1000, "ns": 1}
_DAY_NS: Final = 86_400 * NS_PER_SECOND
_INT64: Final = range(-(2**63), 2**63)


class _Column(NamedTuple):
    """A column, or a field of a struct, which counts as a column."""

    # The name for lookups and messages: the last part of the path if that is unique, otherwise
    # the whole path.
    name: str
    # The names from the top-level column down.
    path: tuple[str, ...]
    # Its Arrow type.
    type: Any

    @property
    def full_name(self) -> str:
        return ".".join(self.path)


class ParquetRecording(Recording):
    """A Parquet file of trades, of quotes, or of both, read row by row. Requires pyarrow.

    Fields of structs count as columns. If no column name indicates the time, an unnamed pandas
    index is used. Dates without a time of day mean midnight.

    Args:
        symbol, columns, on_bad_row, table_format: as for `CsvRecording`; rows count from 1.

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
        table_format: TableFormat | None = None,
    ) -> None:
        super().__init__(path, on_bad_row)
        self._format = table_format or TableFormat()
        self._pyarrow, parquet = load_pyarrow()
        self._types = self._pyarrow.types
        try:
            self._file = parquet.ParquetFile(path)
            self._columns = self._find_columns()
            self._converter = self._make_converter(columns or {}, symbol)
            self._check_types()
        except (OSError, self._pyarrow.ArrowException, InvalidRecording) as error:
            raise InvalidRecording(f"{path}: {error}") from None
        self.notes = self._converter.notes

    # -- the columns

    def _find_columns(self) -> list[_Column]:
        fields = list(self._flatten(self._file.schema_arrow, ()))
        counts = Counter(path[-1] for path, _ in fields)
        top_names = {path[0] for path, _ in fields if len(path) == 1}
        return [
            _Column(
                path[-1] if counts[path[-1]] == 1 and path[-1] not in top_names
                else ".".join(path),
                path,
                type_,
            )
            for path, type_ in fields
        ]  # fmt: skip

    def _flatten(
        self, fields: Any, parents: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], Any]]:
        for field in fields:
            path = (*parents, field.name)
            if self._types.is_struct(field.type):
                yield from self._flatten(field.type, path)
            else:
                yield path, field.type

    def _make_converter(self, columns: Mapping[str, str], symbol: str | None) -> RowConverter:
        names = [column.name for column in self._columns]
        short_names = {column.full_name: column.name for column in self._columns}
        columns = {what: short_names.get(name, name) for what, name in columns.items()}
        stamps = [column.name for column in self._columns if self._types.is_timestamp(column.type)]
        indexes = [name for name in stamps if _INDEX.fullmatch(name)]
        index = indexes[0] if len(indexes) == 1 and "time" not in columns else None

        def make(**time_columns: str) -> RowConverter:
            return RowConverter(names, {**columns, **time_columns}, symbol, self._format)

        try:
            converter = make()
        except InvalidRecording:
            if index is None:
                raise
            return make(time=index)
        times = [self._columns[n] for n in converter.time_columns]
        dates = [column.name for column in times if self._types.is_date(column.type)]
        if len(times) > 1:
            time = [column.name for column in times if column.name in stamps]
            if "time" not in columns and len(dates) == len(time) == 1:
                # A timestamp next to a date isn't a time of day, whatever its name.
                return make(time=time[0], clock=NO_COLUMN)
        elif dates and index is not None:
            return make(time=index)
        elif dates and "clock" not in columns:
            clock = self._find_clock(dates[0], [] if "time" in columns else stamps)
            if clock is not None:
                return make(time=dates[0], clock=clock)
        return converter

    def _find_clock(self, date: str, stamps: list[str]) -> str | None:
        """Return the column with the time of day for dates, found by type and not by name."""
        clocks = [column.name for column in self._columns if self._types.is_time(column.type)]
        if len(clocks) > 1 or stamps:
            raise InvalidRecording(
                f"the column {date} holds only dates, and the time may be in another:"
                f" {', '.join([*clocks, *stamps])}; name it with --columns time=NAME, or use"
                f" time={date},clock={NO_COLUMN}"
            )
        return clocks[0] if clocks else None

    def _check_types(self) -> None:
        counts = Counter(column.path for column in self._columns)
        for index in self._converter.used_columns:
            column = self._columns[index]
            type_ = column.type
            if self._types.is_dictionary(type_):
                type_ = type_.value_type
            if counts[column.path] > 1:
                raise InvalidRecording(f"two columns are called {column.full_name!a}")
            if self._types.is_nested(type_):
                raise InvalidRecording(
                    f"column {column.full_name!a} holds {type_}, not single values"
                )

    # -- reading

    @cached_property
    def span(self) -> tuple[Time, Time]:
        return self._scan[0]

    @cached_property
    def _scan(self) -> tuple[tuple[Time, Time], list[int]]:
        """The span of times, and for each row group the greatest time before it.

        Reads the times of all rows.
        """
        first: Time | None = None
        greatest = 0
        error = ""
        greatest_before: list[int] = []
        for group in range(self._file.num_row_groups):
            greatest_before.append(greatest)
            for block in self._blocks(self._converter.time_columns, group, group + 1):
                if times := self._converter.times(block.rows):
                    if first is None:
                        first = greatest = times[0]
                        greatest_before = [first - 1] * len(greatest_before)
                    greatest = max(greatest, *times)
                elif first is None and block.rows and not error:
                    error = f"; row 1: {self._converter.time_error(block.rows[0])}"
        if first is None:
            raise InvalidRecording(f"{self._path}: no row has a time{error}")
        return (first, Time(greatest)), greatest_before

    def _read(self, start: Time | None) -> Iterator[Tick]:
        group = 0
        if start is not None:
            _, greatest_before = self._scan
            group = max(0, bisect_left(greatest_before, int(start)) - 1)
        for block in self._blocks(self._converter.used_columns, group, self._file.num_row_groups):
            yield from self._converter.convert(block, self._on_bad_row)

    def _blocks(self, used: set[int], group: int, end: int) -> Iterator[Block]:
        """Yield the rows of some row groups. Unused columns are empty."""
        metadata = self._file.metadata
        row = sum(metadata.row_group(each).num_rows for each in range(group))
        groups = list(range(group, end))
        names = list(dict.fromkeys(self._columns[index].path[0] for index in sorted(used)))
        try:
            for batch in self._file.iter_batches(_BLOCK_ROWS, row_groups=groups, columns=names):
                numbers = list(range(row + 1, row + batch.num_rows + 1))
                yield Block(self._rows(batch, used), numbers)
                row += batch.num_rows
        except (OSError, self._pyarrow.ArrowException) as error:
            raise InvalidRecording(f"{self._path}: damaged after row {row:,}: {error}") from None

    def _rows(self, batch: Any, used: set[int]) -> list[Any]:
        nothing = [""] * batch.num_rows
        columns = [
            self._cells(index, _array(batch, column.path)) if index in used else nothing
            for index, column in enumerate(self._columns)
        ]
        return list(zip(*columns, strict=True))

    # -- cells, in the form that `RowConverter` expects, without losing digits

    def _cells(self, index: int, array: Any) -> list[Any]:
        types, type_ = self._types, array.type
        if types.is_dictionary(type_):
            return self._cells(index, array.dictionary_decode())
        if types.is_timestamp(type_):
            return self._timestamps(index, array)
        if types.is_date(type_):
            return [self._date(day, index) for day in _days(array)]
        if types.is_time(type_) or (
            types.is_duration(type_) and index in self._converter.time_columns
        ):
            scale = _UNIT_NS[type_.unit]
            return ["" if value is None else _clock(value * scale) for value in _integers(array)]
        if types.is_floating(type_):
            return self._floats(index, array)
        return ["" if value is None else _text(value) for value in array.to_pylist()]

    def _date(self, day: int | None, index: int) -> Time | str:
        """Convert a date. It means midnight if no other column holds the time of day."""
        if day is None:
            return ""
        ns = day * _DAY_NS
        date = _format_time(ns).removesuffix("T00:00:00Z")
        if self._converter.time_columns != {index}:
            return date
        if self._format.times.zone is not None:
            return f"{date} 00:00:00"
        return Time(ns) if ns in _INT64 else date

    def _timestamps(self, index: int, array: Any) -> list[Any]:
        """Convert timestamps of any unit. One out of range is a bad row, not a damaged file."""
        scale = _UNIT_NS[array.type.unit]
        is_time = self._converter.time_columns == {index}
        has_zone = self._format.times.zone is not None and array.type.tz is None
        numbers = _integers(array)
        if is_time and not has_zone and scale == 1:
            return ["" if ns is None else Time(ns) for ns in numbers]
        numbers = [None if value is None else value * scale for value in numbers]
        if is_time and not has_zone:
            return [
                "" if ns is None else Time(ns) if ns in _INT64 else _format_time(ns)
                for ns in numbers
            ]
        # The time of day is in another column, or the converter has to apply the zone.
        suffix = "T00:00:00Z" if index in self._converter.time_columns and not is_time else ""
        texts = ["" if ns is None else _format_time(ns).removesuffix(suffix) for ns in numbers]
        return [text[:-1] for text in texts] if is_time else texts

    def _floats(self, index: int, array: Any) -> list[Any]:
        if index in self._converter.number_columns:
            if not self._types.is_float64(array.type):
                # 187.15 rather than 187.14999389648438.
                texts = array.cast(self._pyarrow.string()).to_pylist()
                return ["" if text is None else float(text) for text in texts]
            return ["" if value is None else value for value in array.to_pylist()]
        return [
            "" if value is None or math.isnan(value)
            else str(int(value)) if value.is_integer() else repr(value)
            for value in array.to_pylist()
        ]  # fmt: skip


def _array(batch: Any, path: tuple[str, ...]) -> Any:
    """Return the values of a column, or of a struct's field: null where the struct is null."""
    array = batch.column(path[0])
    for name in path[1:]:
        array = array.flatten()[array.type.get_field_index(name)]
    return array


def _integers(array: Any) -> list[int | None]:
    """Return the stored integers of times. Without a unit conversion, none can overflow."""
    integers: list[int | None] = array.view(f"int{array.type.bit_width}").to_pylist()
    return integers


def _days(array: Any) -> list[int | None]:
    """Return dates as days since the Unix epoch."""
    scale = 1 if array.type.bit_width == 32 else 86_400_000
    return [None if value is None else value // scale for value in _integers(array)]


def _format_time(ns: int) -> str:
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
