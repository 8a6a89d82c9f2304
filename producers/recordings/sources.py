"""Open recordings to replay. The content of a file determines its format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Final

from producers.recordings.captures import CaptureRecording, is_capture
from producers.recordings.csv import CsvRecording
from producers.recordings.databento import DatabentoRecording
from producers.recordings.files import DAMAGE, opened_bytes
from producers.recordings.json_lines import JsonLinesRecording, is_json_lines
from producers.recordings.layout import BadRow, RowFormat
from producers.recordings.parquet import ParquetRecording
from tickcast.tapes.format import TapeHeader, decode_line
from tickcast.tapes.tape import Tape
from tickcast.wire.errors import InvalidRecording, InvalidTape
from tickcast.wire.playback import TickSource
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

_HEAD_MAX: Final = 64 * 1024
_PARQUET_MAGIC: Final = b"PAR1"
_DBN_MAGIC: Final = b"DBN"


def open_recording(
    path: Path,
    symbol: str | None,
    columns: Mapping[str, str],
    on_bad_row: BadRow,
    form: RowFormat | None = None,
) -> TickSource[Tick]:
    """Detect the format of a file from its content, and open it.

    Args:
        symbol, columns, on_bad_row, form: as for `CsvRecording`.

    Raises:
        InvalidRecording: the file can't be read.
    """
    on_bad_row = _once(on_bad_row)
    magic = _begin_of(path)
    if magic == _PARQUET_MAGIC:
        return ParquetRecording(path, symbol, columns, on_bad_row, form)
    if magic.startswith(_DBN_MAGIC):
        renamed = form.symbols if form else None
        return Reread(path, DatabentoRecording(path, symbol, on_bad_row, renamed))
    if is_tape(path):
        return TapeRecording(path)
    if is_capture(path):
        return Reread(path, CaptureRecording(path, on_bad_row))
    if is_json_lines(path):
        return Reread(path, JsonLinesRecording(path, on_bad_row))
    return CsvRecording(path, symbol, columns, on_bad_row, form)


def _once(on_bad_row: BadRow) -> BadRow:
    """Wrap a callback so that it gets each bad row once, not again after a seek."""
    told = 0

    def tell(line: int, error: str) -> None:
        nonlocal told
        if line > told:
            told = line
            on_bad_row(line, error)

    return tell


class Reread:
    """A recording that can only be read from its beginning. Every seek reads it again.

    Raises:
        InvalidRecording: it contains no ticks, or is damaged.
    """

    def __init__(self, path: Path, ticks: Iterable[Tick]) -> None:
        self._path = path
        self._ticks = ticks

    @cached_property
    def _span(self) -> tuple[Time, Time]:
        first = last = None
        for tick in self._ticks:
            if first is None or last is None:
                first = last = tick.time
            elif tick.time > last:
                last = tick.time
        if first is None or last is None:
            raise InvalidRecording(f"{self._path}: holds no tick")
        return first, last

    @property
    def first(self) -> Time:
        """The time of the first tick."""
        return self._span[0]

    @property
    def last(self) -> Time:
        """The greatest time of the ticks."""
        return self._span[1]

    def read(self, start: Time | None) -> Iterator[Tick]:
        """Yield all ticks, whatever `start` is."""
        return iter(self._ticks)


class TapeRecording:
    """A tape, whose ticks are numbered anew when they are published.

    Raises:
        InvalidRecording, InvalidTape: it contains no ticks, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._tape = Tape.open(path)
        if self._tape.manifest.first is None:
            raise InvalidRecording(f"{path}: holds no tick")

    @property
    def first(self) -> Time:
        """The earliest time of the ticks."""
        return self._tape.first

    @property
    def last(self) -> Time:
        """The greatest time of the ticks."""
        return self._tape.last

    def read(self, start: Time | None) -> Iterator[Tick]:
        """Yield the ticks of each stream, starting with its first tick at or after `start`."""
        for tick in self._tape.read(start):
            tick.seq = None
            yield tick


def _begin_of(path: Path) -> bytes:
    """Return the first bytes of a file's content."""
    try:
        with opened_bytes(path) as (content, _):
            return content.read(4)
    except (OSError, InvalidRecording, *DAMAGE):
        return b""


def is_tape(path: Path) -> bool:
    """Return whether a file begins like a tape."""
    try:
        with opened_bytes(path) as (content, _):
            return isinstance(decode_line(content.readline(_HEAD_MAX)), TapeHeader)
    except (OSError, InvalidRecording, InvalidTape, *DAMAGE):
        return False
