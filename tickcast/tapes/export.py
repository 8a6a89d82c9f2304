"""Exports a tape to Parquet or CSV tables, one for each channel."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from tickcast.tapes.format import Mark
from tickcast.tapes.tape import Tape
from tickcast.wire.errors import InvalidSettings, RecordingFailed
from tickcast.wire.subscriptions import Coverage
from tickcast.wire.ticks import Bar, Quote, Tick, Trade, channel_of
from tickcast.wire.times import Time

# The rows of a row group, which are held in memory for each channel.
ROWS: Final = 65_536

Kind = Literal["time", "text", "number", "count"]


class ExportColumn(NamedTuple):
    """A column, named after the tick attribute that it contains."""

    name: str
    kind: Kind


def _columns(text: str) -> tuple[ExportColumn, ...]:
    """Parse columns from `name:kind name:kind`, and add those that all ticks have."""
    text = f"time:time symbol:text {text} seq:count conflated:count received:time"
    return tuple(ExportColumn(*part.split(":")) for part in text.split())  # type: ignore[arg-type]


COLUMNS: Final[dict[type[Tick], tuple[ExportColumn, ...]]] = {
    Trade: _columns("price:number size:number side:text id:text venue:text"),
    Quote: _columns(
        "bid_price:number bid_size:number ask_price:number ask_size:number"
        " bid_venue:text ask_venue:text"
    ),
    Bar: _columns(
        "open:number high:number low:number close:number volume:number"
        " trade_count:count vwap:number"
    ),
}
Rows = dict[str, list[Any]]


class CsvTable:
    """A CSV file, with times in RFC 3339 format and unknown values empty."""

    def __init__(self, path: Path, columns: Sequence[ExportColumn]) -> None:
        self._columns = columns
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow([column.name for column in columns])

    def write(self, rows: Rows) -> None:
        """Add rows, given by column; times are in nanoseconds."""
        values = [
            [None if value is None else Time(value).rfc3339() for value in rows[name]]
            if kind == "time"
            else rows[name]
            for name, kind in self._columns
        ]
        self._writer.writerows(zip(*values, strict=True))

    def finish(self) -> None:
        """Complete the file."""
        self._file.close()


class ParquetTable:
    """A Parquet file, compressed with zstd."""

    def __init__(self, path: Path, columns: Sequence[ExportColumn]) -> None:
        pyarrow, parquet = load_pyarrow()
        self._pyarrow = pyarrow
        types = {
            "time": pyarrow.timestamp("ns", tz="UTC"),
            "text": pyarrow.string(),
            "number": pyarrow.float64(),
            "count": pyarrow.int64(),
        }
        # Columns that hold a value in every row.
        needed = {"time", "symbol"} | {name for name, kind in columns if kind == "number"}
        self._schema = pyarrow.schema(
            [pyarrow.field(name, types[kind], name not in needed) for name, kind in columns]
        )
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, rows: Rows) -> None:
        """Add rows, given by column; times are in nanoseconds."""
        self._writer.write_table(self._pyarrow.table(rows, schema=self._schema))

    def finish(self) -> None:
        """Complete the file."""
        self._writer.close()


_FORMATS: Final[dict[str, type[CsvTable | ParquetTable]]] = {
    "csv": CsvTable,
    "parquet": ParquetTable,
}


def load_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet module. Raises InvalidSettings."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - only this needs it
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise InvalidSettings("Parquet takes pyarrow: pip install 'tickcast[parquet]'") from None
    return pa, pq


def export(
    tape: Tape, folder: Path, format_: str, coverage: Coverage | None = None
) -> list[tuple[Path, int]]:
    """Write the ticks of a tape into `folder`, as `ID-trades.parquet` and so on.

    `ROWS` limits the rows in memory for each channel. Files appear when they are complete, and
    existing files are not touched.

    Returns the files, each with its number of rows.

    Raises InvalidTape, or RecordingFailed if a file exists or can't be written.
    """
    tables: dict[str, _Channel] = {}
    try:
        for item, rx in tape.records(coverage):
            if isinstance(item, Mark):
                continue
            channel = channel_of(item)
            table = tables.get(channel)
            if table is None:
                path = folder / f"{tape.id}-{channel.replace(':', '_')}.{format_}"
                table = tables[channel] = _Channel(path, format_, COLUMNS[type(item)])
            table.append(item, rx)
        return [table.finish() for table in tables.values()]
    except OSError as error:
        raise RecordingFailed(f"{folder}: {error.strerror or error}") from None
    finally:
        for table in tables.values():
            table.remove_unfinished()


class _Channel:
    """Writes the table of one channel."""

    def __init__(self, path: Path, format_: str, columns: Sequence[ExportColumn]) -> None:
        if path.exists():
            raise RecordingFailed(f"{path}: File exists")
        self._path = path
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._columns = columns
        self._attributes = [name for name, _ in columns if name != "received"]
        self._rows: Rows = {name: [] for name, _ in columns}
        self._file = _FORMATS[format_](self._temporary, columns)
        self._count = 0

    def append(self, tick: Tick, rx: int | None) -> None:
        rows = self._rows
        for name in self._attributes:
            rows[name].append(getattr(tick, name))
        rows["received"].append(rx)
        if isinstance(tick, Trade) and tick.id is not None:
            # A column has one type, and venues use both numbers and names.
            rows["id"][-1] = str(tick.id)
        self._count += 1
        if self._count % ROWS == 0:
            self._write()

    def _write(self) -> None:
        self._rows["time"] = [int(time) for time in self._rows["time"]]
        self._file.write(self._rows)
        for values in self._rows.values():
            values.clear()

    def finish(self) -> tuple[Path, int]:
        self._write()
        self._file.finish()
        self._temporary.rename(self._path)
        return self._path, self._count

    def remove_unfinished(self) -> None:
        """Remove the file if it has not been completed."""
        with suppress(Exception):
            self._file.finish()
        with suppress(OSError):
            self._temporary.unlink()
