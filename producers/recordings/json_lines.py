"""Read ticks from JSON lines, in the form in which clients receive them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from msgspec.structs import replace

from producers.recordings.files import (
    READ_ERRORS,
    BadRow,
    Recording,
    describe_error,
    open_bytes,
    peek,
)
from producers.recordings.timestamps import parse_time
from tickcast.wire.encoding import field_names, tick_from_message
from tickcast.wire.errors import InvalidRecording, InvalidTick
from tickcast.wire.ticks import Bar, Quote, Tick, Trade, validate
from tickcast.wire.times import Time

LINE_BYTES_MAX: Final = 64 * 1024

_TICK_TYPES: Final[dict[str, type[Tick]]] = {"t": Trade, "q": Quote, "b": Bar}
_FIELDS: Final = {tag: field_names(type_) for tag, type_ in _TICK_TYPES.items()}
# Fields that a server adds to the fields of ticks.
_STAMPS: Final = frozenset(("tr", "tw", "rp"))
# Alpaca's fields for conditions, tapes and corrections of a trade, which ticks don't have yet.
_ALPACA_FIELDS: Final = frozenset(("c", "z", "u"))
# Types of the messages that a server sends in addition to ticks.
_NOTICES: Final = frozenset(
    "success subscription configured heartbeat gap skipped replay pong shutdown".split()
)
_NUMBER_CHARACTERS: Final = frozenset("0123456789.eE+-")
_DECODER: Final = msgspec.json.Decoder()
_EXACT_DECODER: Final = msgspec.json.Decoder(float_hook=str)


def parse_line(line: bytes, now: Time | None, left_out: set[str] | None = None) -> list[Tick]:
    """Parse one line: a tick, or an array of ticks as a server sends it.

    Fields that a server adds, such as `seq`, are removed. Other messages of a server are skipped
    without an error.

    Args:
        now: the time of ticks without `t`; if None, a missing `t` is an error.
        left_out: receives the names of Alpaca's fields that are dropped.

    Raises:
        InvalidTick: the line is invalid. None of its ticks may be published.
    """
    content = _decode_line(line)
    if not isinstance(content, list):
        return _parse(content, line, None, now, left_out)
    ticks: list[Tick] = []
    for index, each in enumerate(content):
        try:
            ticks += _parse(each, line, index, now, left_out)
        except InvalidTick as error:
            raise InvalidTick(f"number {index + 1} of {len(content)}: {error}") from None
    return ticks


def _decode_line(line: bytes) -> Any:
    if line.strip() in (b"[", b"]"):
        raise InvalidTick("not JSON lines: an array over several lines; `jq -c .[]` makes them")
    return _decode(line, _DECODER)


def _decode(line: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(line.removeprefix(codecs.BOM_UTF8))
    except RecursionError:
        raise InvalidTick("not JSON: nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidTick(f"not a JSON object: {error}") from None


def _parse(
    fields: Any, line: bytes, index: int | None, now: Time | None, left_out: set[str] | None
) -> list[Tick]:
    """Convert a decoded object to a tick. `index` is its place in the line's array."""
    if not isinstance(fields, dict):
        raise InvalidTick("not a JSON object, or an array of objects")
    tag = fields.get("T")
    known = _FIELDS.get(str(tag))
    if known is None:
        if isinstance(tag, str) and tag in _NOTICES:
            return []
        raise InvalidTick('T must be "t" (trade), "q" (quote) or "b" (bar)')
    unknown = fields.keys() - known
    if unknown:
        if unsupported := sorted(unknown - _ALPACA_FIELDS - _STAMPS):
            raise InvalidTick(
                f"unknown field {unsupported[0][:40]!a}; known are {', '.join(sorted(known))}"
            )
        if left_out is not None:
            left_out |= unknown & _ALPACA_FIELDS
    if "t" not in fields:
        if now is None:
            raise InvalidTick("no time t")
        time = now
    else:
        time = fields["t"]
        if isinstance(time, float):
            # Decode the number's text again: a float may have lost digits.
            exact = _decode(line, _EXACT_DECODER)
            time = (exact if index is None else exact[index])["t"]
        time = _parse_time(time)
    tick = tick_from_message({**fields, "t": time})
    validate(tick)
    return [replace(tick, seq=None, snap=False, conflated=0)]


def _parse_time(value: Any) -> Any:
    """Parse a time, given as text or as a number since 1970. Raises InvalidTick."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return value  # `tick_from_message` reports the wrong type.
    text = str(value)
    is_number = set(text) <= _NUMBER_CHARACTERS
    try:
        if isinstance(value, int) or (is_number and text[:1].isdecimal()):
            return Time.from_number(text)
        return parse_time(text)
    except ValueError as error:
        if is_number:
            raise InvalidTick(f"t: {error}") from None
        # `parse_time` would suggest options for tables.
        raise InvalidTick(f"t: {text[:40]!a} is not an RFC 3339 time") from None


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
            begin = _decode_line(first) if first else None
        except (InvalidRecording, InvalidTick, *READ_ERRORS) as error:
            raise InvalidRecording(f"{path}: {describe_error(error)}") from None
        tick = begin[0] if isinstance(begin, list) and begin else begin
        if not (isinstance(tick, dict) and "T" in tick):
            raise InvalidRecording(
                f'{path}: JSON, but not a tick a line such as {{"T":"t","S":"AAPL","p":187.1,…}}'
            )

    def __iter__(self) -> Iterator[Tick]:
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
