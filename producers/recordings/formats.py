"""Open recordings of any format. The content of a file determines its format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

from producers.recordings.captures import CaptureRecording, is_capture
from producers.recordings.csv import CsvRecording
from producers.recordings.databento import DatabentoRecording
from producers.recordings.files import BadRow, Recording, peek
from producers.recordings.json_lines import JsonLinesRecording, is_json_lines
from producers.recordings.parquet import ParquetRecording
from producers.recordings.rows import TableFormat
from tickcast.tapes.format import TapeHeader, decode_line
from tickcast.tapes.tape import Tape
from tickcast.wire.errors import InvalidRecording, InvalidTape
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

_HEADER_BYTES_MAX: Final = 64 * 1024
_PARQUET_MAGIC: Final = b"PAR1"
_DBN_MAGIC: Final = b"DBN"


def open_recording(
    path: Path,
    symbol: str | None,
    columns: Mapping[str, str],
    on_bad_row: BadRow,
    table_format: TableFormat | None = None,
) -> Recording:
    """Detect the format of a file from its content, and open it.

    Args:
        symbol, columns, on_bad_row, table_format: as for `CsvRecording`.

    Raises:
        InvalidRecording: the file can't be read.
    """
    on_bad_row = _report_once(on_bad_row)
    magic = peek(path, lambda content: content.read(4))
    if magic == _PARQUET_MAGIC:
        return ParquetRecording(path, symbol, columns, on_bad_row, table_format)
    if magic.startswith(_DBN_MAGIC):
        return DatabentoRecording(
            path, symbol, on_bad_row, table_format.symbols if table_format else None
        )
    if _is_tape(path):
        return TapeRecording(path)
    if is_capture(path):
        return CaptureRecording(path, on_bad_row)
    if is_json_lines(path):
        return JsonLinesRecording(path, on_bad_row)
    return CsvRecording(path, symbol, columns, on_bad_row, table_format)


def _report_once(on_bad_row: BadRow) -> BadRow:
    """Wrap a callback so that it gets each bad row once, not again after a seek."""
    last = 0

    def report(number: int, error: str) -> None:
        nonlocal last
        if number > last:
            last = number
            on_bad_row(number, error)

    return report


def _is_tape(path: Path) -> bool:
    line = peek(path, lambda content: content.readline(_HEADER_BYTES_MAX))
    try:
        return isinstance(decode_line(line), TapeHeader)
    except InvalidTape:
        return False


class TapeRecording(Recording):
    """A tape, whose ticks are numbered anew when they are published.

    Raises InvalidRecording if it contains no ticks, or InvalidTape.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._tape = Tape.open(path)
        if self._tape.manifest.first is None:
            raise InvalidRecording(f"{path}: contains no ticks")

    @cached_property
    def span(self) -> tuple[Time, Time]:
        return self._tape.first, self._tape.last

    def read(self, start: Time | None = None) -> Iterator[Tick]:
        """Yield the ticks of each stream, starting with its first tick at or after `start`."""
        for tick in self._tape.read(start):
            tick.seq = None
            yield tick
