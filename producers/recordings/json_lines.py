"""Read ticks from JSON lines, in the form in which clients receive them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from producers.recordings.files import (
    READ_ERRORS,
    BadRow,
    Recording,
    describe_error,
    open_bytes,
    peek,
)
from producers.recordings.timestamps import parse_time
from tickcast.wire import tick_input
from tickcast.wire.errors import InvalidRecording, InvalidTick
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

LINE_BYTES_MAX: Final = 64 * 1024


def parse_line(line: bytes, now: Time | None, left_out: set[str] | None = None) -> list[Tick]:
    """Call `tick_input.parse_line`, and accept times in all forms of recordings."""
    return tick_input.parse_line(line, now, left_out, parse_time)


class LineSplitter:
    """Splits a stream of bytes into lines, buffering at most one line.

    Args:
        bytes_max: the maximum length of a line. For a longer line, `split` yields None.
    """

    def __init__(self, bytes_max: int = LINE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._rest = b""
        self._skipping = False

    def split(self, data: bytes) -> Iterator[bytes | None]:
        """Yield the lines that this data completes. An empty `data` means the end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines, self._rest = [self._rest], b""
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif len(line) > self._bytes_max:
                yield None
            else:
                yield line
        if len(self._rest) > self._bytes_max:
            if not self._skipping:
                yield None
            self._skipping, self._rest = True, b""


class JsonLinesRecording(Recording):
    """A file of ticks in JSON lines, such as `tickcast watch` writes. Keeps the order of lines.

    Args:
        path: a plain or compressed file. The content determines which.
        on_bad_row: called with the line number and the error of each line that isn't a tick. Such
            lines are skipped.

    Raises:
        InvalidRecording: the file can't be read, or doesn't begin like ticks.
    """

    def __init__(self, path: Path, on_bad_row: BadRow) -> None:
        super().__init__(path, on_bad_row)
        try:
            with open_bytes(path) as (content, _):
                first = next((line for line in _lines(content) if line and line.strip()), b"")
            begin = tick_input.decode_line(first) if first else None
        except (InvalidRecording, InvalidTick, *READ_ERRORS) as error:
            raise InvalidRecording(f"{path}: {describe_error(error)}") from None
        tick = begin[0] if isinstance(begin, list) and begin else begin
        if not (isinstance(tick, dict) and "T" in tick):
            raise InvalidRecording(
                f'{path}: JSON, but not a tick a line such as {{"T":"t","S":"AAPL","p":187.1,…}}'
            )

    def read(self, start: Time | None = None) -> Iterator[Tick]:
        number = 0
        try:
            with open_bytes(self._path) as (content, _):
                for number, line in enumerate(_lines(content), 1):
                    try:
                        if line is None:
                            raise InvalidTick(f"longer than {LINE_BYTES_MAX} bytes")
                        if line.strip():
                            yield from parse_line(line, None)
                    except InvalidTick as error:
                        self._on_bad_row(number, str(error))
        except READ_ERRORS as error:
            raise InvalidRecording(
                f"{self._path}: damaged after line {number}: {describe_error(error)}"
            ) from None


def _lines(content: BinaryIO) -> Iterator[bytes | None]:
    splitter = LineSplitter()
    while data := content.read(LINE_BYTES_MAX):
        yield from splitter.split(data)
    yield from splitter.split(b"")


def is_json_lines(path: Path) -> bool:
    """Return whether a file, plain or compressed, begins like JSON."""
    begin = peek(path, lambda content: content.read(64)).removeprefix(codecs.BOM_UTF8).lstrip()
    return begin.startswith((b"{", b"["))
