"""Open recordings and streams of any format. The content determines the format."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

from producers.recordings.captures import CaptureRecording, is_capture
from producers.recordings.csv import CsvRecording, CsvStream
from producers.recordings.databento import DatabentoRecording
from producers.recordings.files import (
    LINE_BYTES_MAX,
    BadRow,
    Recording,
    Utf8Converter,
    peek,
    unpack_hint,
)
from producers.recordings.json_lines import JsonLinesRecording, is_json_lines, parse_json
from producers.recordings.json_splitter import JsonSplitter
from producers.recordings.parquet import ParquetRecording
from producers.recordings.rows import TableFormat
from tickcast.tapes.format import TapeHeader, decode_line
from tickcast.tapes.tape import Tape
from tickcast.wire.errors import InvalidRecording, InvalidTape, InvalidTick
from tickcast.wire.tick_input import parse_valid
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

_HEADER_BYTES_MAX: Final = 64 * 1024
_PARQUET_MAGIC: Final = b"PAR1"
_DBN_MAGIC: Final = b"DBN"
# What shows that a line is part of a CSV file.
_COMMENTS: Final = (b"#", b"//", b"%")
_DELIMITERS: Final = (b",", b";", b"\t", b"|")


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


class StreamParser:
    """Parses ticks from a stream of bytes: JSON if it begins like JSON, or CSV.

    With `columns`, it is CSV however it begins.

    Args:
        symbol, columns, on_bad_row, table_format: as for `CsvRecording`.
        on_note: called with each remark to show to users.
        left_out: receives the names of Alpaca's fields and messages that ticks don't have.
    """

    def __init__(
        self,
        symbol: str | None,
        columns: Mapping[str, str],
        on_bad_row: BadRow,
        on_note: Callable[[str], None],
        left_out: set[str],
        table_format: TableFormat,
    ) -> None:
        self._csv = CsvStream(symbol, columns, on_bad_row, on_note, table_format)
        self._json = JsonSplitter()
        self._has_columns = bool(columns)
        self._on_bad_row = on_bad_row
        self._left_out = left_out
        self._utf8 = Utf8Converter()
        self._is_csv: bool | None = None
        # The data until it shows the format.
        self._begin = b""

    def parse(self, data: bytes) -> Iterator[Tick]:
        """Yield the ticks that this data completes. An empty `data` means the end.

        Raises:
            InvalidRecording: the stream can't be read; the message says what to do.
        """
        if self._is_csv is None and not self._begin:
            _refuse_binary(data)
        converted = self._utf8.convert(data)
        if self._is_csv is None:
            self._begin += converted
            self._is_csv = self._has_columns or _is_csv(self._begin, is_end=not data)
            if self._is_csv is None:
                return
            converted, self._begin = self._begin, b""
        parse = self._csv.parse if self._is_csv else self._parse_json
        if converted:
            yield from parse(converted)
        if not data:
            yield from parse(b"")

    def _parse_json(self, data: bytes) -> Iterator[Tick]:
        for document in self._json.split(data):
            try:
                if document.error is not None:
                    raise InvalidTick(document.error)
                now = Time.now()
                ticks = parse_valid(document.text, now)
                if ticks is None:
                    ticks = parse_json(document.text, now, self._left_out)
                yield from ticks
            except InvalidTick as error:
                self._on_bad_row(document.line, str(error))


def _refuse_binary(begin: bytes) -> None:
    if begin.startswith((_PARQUET_MAGIC, _DBN_MAGIC)):
        raise InvalidRecording("a recording: use tickcast replay --speed max")
    if (hint := unpack_hint(begin)) is not None:
        raise InvalidRecording(hint)


def _is_csv(begin: bytes, *, is_end: bool) -> bool | None:
    """Return whether a stream that begins like this is CSV; None if more is needed."""
    text = begin.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.startswith((b"{", b"[")):
        return False
    line, newline, _ = text.partition(b"\n")
    if not (newline or is_end or len(begin) > LINE_BYTES_MAX):
        return None
    return line.startswith(_COMMENTS) or any(each in line for each in _DELIMITERS)


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

    def _read(self, start: Time | None) -> Iterator[Tick]:
        """Yield the ticks of each stream, starting with its first tick at or after `start`."""
        for tick in self._tape.read(start):
            tick.seq = None
            yield tick
