"""Read ticks from JSON: one a line, in arrays, or as Alpaca's services send them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

from producers.recordings import alpaca
from producers.recordings.files import (
    READ_ERRORS,
    BadRow,
    Recording,
    describe_error,
    open_bytes,
    peek,
)
from producers.recordings.json_splitter import JsonDocument, JsonSplitter
from producers.recordings.timestamps import parse_time
from tickcast.wire import tick_input
from tickcast.wire.errors import InvalidRecording, InvalidTick
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

_READ_BYTES: Final = 64 * 1024


def parse_json(text: bytes, now: Time | None, left_out: set[str] | None = None) -> list[Tick]:
    """Parse a tick, an array of ticks or an answer of Alpaca's, with times in all usual forms.

    The arguments and errors are those of `tick_input.parse_line`.
    """
    content = tick_input.decode_json(text)
    answer = alpaca.objects_of(content)
    if answer is None:
        return tick_input.parse_decoded(content, text, now, left_out, parse_time)
    ticks: list[Tick] = []
    for place, fields in answer:
        try:
            ticks += tick_input.parse_object(fields, now, left_out, parse_time)
        except InvalidTick as error:
            raise InvalidTick(f"{place}: {error}") from None
    return ticks


class JsonLinesRecording(Recording):
    """A file of ticks in JSON, such as `tickcast watch` writes. Keeps the order of the file.

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
                first = next((each.text for each in _documents(content)), b"")
            begin = tick_input.decode_json(first) if first else None
            is_answer = bool(alpaca.objects_of(begin))
        except (InvalidRecording, InvalidTick, *READ_ERRORS) as error:
            raise InvalidRecording(f"{path}: {describe_error(error)}") from None
        tick = begin[0] if isinstance(begin, list) and begin else begin
        if not (is_answer or (isinstance(tick, dict) and "T" in tick)):
            raise InvalidRecording(
                f'{path}: JSON, but not a tick a line such as {{"T":"t","S":"AAPL","p":187.1,…}}'
            )

    def _read(self, start: Time | None) -> Iterator[Tick]:
        number = 0
        try:
            with open_bytes(self._path) as (content, _):
                for document in _documents(content):
                    number = document.line
                    try:
                        if document.error is not None:
                            raise InvalidTick(document.error)
                        yield from parse_json(document.text, None)
                    except InvalidTick as error:
                        self._on_bad_row(number, str(error))
        except READ_ERRORS as error:
            raise InvalidRecording(
                f"{self._path}: damaged after line {number}: {describe_error(error)}"
            ) from None


def _documents(content: BinaryIO) -> Iterator[JsonDocument]:
    splitter = JsonSplitter()
    while data := content.read(_READ_BYTES):
        yield from splitter.split(data)
    yield from splitter.split(b"")


def is_json_lines(path: Path) -> bool:
    """Return whether a file, plain or compressed, begins like JSON."""
    begin = peek(path, lambda content: content.read(64)).removeprefix(codecs.BOM_UTF8).lstrip()
    return begin.startswith((b"{", b"["))
