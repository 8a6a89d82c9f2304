"""Ticks from recorded Parquet files, whatever their columns are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from feed.errors import InvalidRecording, InvalidTick
from feed.tapes.export import load_pyarrow
from feed.ticks import Tick
from feed.times import Time
from producers.recordings import Layout

_ROWS: Final = 16_384


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
        row = 0
        names = self._file.schema_arrow.names
        used = self._layout.used
        try:
            wanted = [names[index] for index in used]
            for batch in self._file.iter_batches(_ROWS, columns=wanted):
                texts = [
                    self._texts(batch.column(name))
                    if index in used and name in batch.schema.names
                    else [""] * batch.num_rows
                    for index, name in enumerate(names)
                ]
                for values in zip(*texts, strict=True):
                    row += 1
                    yield from self._read_row(list(values), row)
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
