"""Read ticks from JSON lines, in the form in which clients receive them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from msgspec.structs import replace

from producers.recordings.files import DAMAGE, opened_bytes, utf16_of
from producers.recordings.layout import BadRow
from producers.recordings.timestamps import read_time
from tickcast.wire.encoding import field_names, tick_from_message
from tickcast.wire.errors import InvalidRecording, InvalidTick
from tickcast.wire.ticks import Bar, Quote, Tick, Trade, validate
from tickcast.wire.times import Time

LINE_MAX: Final = 64 * 1024
"""The longest line, in bytes."""
_KINDS: Final[dict[str, type[Tick]]] = {"t": Trade, "q": Quote, "b": Bar}
_NAMES: Final = {tag: field_names(kind) for tag, kind in _KINDS.items()}
_STAMPS: Final = frozenset(("tr", "tw", "rp"))
"""Fields that a server adds to the fields of ticks."""
_ALPACA: Final = frozenset(("c", "z", "u"))
"""Alpaca's fields for conditions, tapes and corrections of a trade, which ticks don't have yet."""
_NOTICES: Final = frozenset(
    "success subscription configured heartbeat gap skipped replay pong shutdown".split()
)
"""Types of the messages that a server sends in addition to ticks."""
_DIGITS: Final = frozenset("0123456789.eE+-")
_ANY: Final = msgspec.json.Decoder()
_EXACT: Final = msgspec.json.Decoder(float_hook=str)


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
    found = _decode_line(line)
    if not isinstance(found, list):
        return _parse(found, line, None, now, left_out)
    ticks: list[Tick] = []
    for number, each in enumerate(found):
        try:
            ticks += _parse(each, line, number, now, left_out)
        except InvalidTick as error:
            raise InvalidTick(f"number {number + 1} of {len(found)}: {error}") from None
    return ticks


def _decode_line(line: bytes) -> Any:
    if line.strip() in (b"[", b"]"):
        raise InvalidTick("not JSON lines: an array over several lines; `jq -c .[]` makes them")
    return _decode(line.removeprefix(codecs.BOM_UTF8), _ANY)


def _decode(line: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(line)
    except RecursionError:
        raise InvalidTick("not JSON: nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidTick(f"not a JSON object: {error}") from None


def _parse(
    fields: Any, line: bytes, number: int | None, now: Time | None, left_out: set[str] | None
) -> list[Tick]:
    """Convert a decoded object to a tick. `number` is its index in the line's array."""
    if not isinstance(fields, dict):
        raise InvalidTick("not a JSON object, or an array of objects")
    tag = fields.get("T")
    known = _NAMES.get(str(tag))
    if known is None:
        if isinstance(tag, str) and tag in _NOTICES:
            return []
        raise InvalidTick('T must be "t" (trade), "q" (quote) or "b" (bar)')
    unknown = fields.keys() - known
    if unknown:
        if strange := sorted(unknown - _ALPACA - _STAMPS):
            raise InvalidTick(
                f"unknown field {strange[0][:40]!a}; known are {', '.join(sorted(known))}"
            )
        if left_out is not None:
            left_out |= unknown & _ALPACA
    if "t" not in fields:
        if now is None:
            raise InvalidTick("no time t")
        time = now
    else:
        time = fields["t"]
        if isinstance(time, float):
            # Decode the number's text again: a float may have lost digits.
            exact = _decode(line.removeprefix(codecs.BOM_UTF8), _EXACT)
            time = (exact if number is None else exact[number])["t"]
        time = _read_time(time)
    tick = tick_from_message({**fields, "t": time})
    validate(tick)
    return [replace(tick, seq=None, snap=False, conflated=0)]


def _read_time(value: Any) -> Any:
    """Read a time, given as text or as a number since 1970. Raises InvalidTick if it is invalid."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return value  # `tick_from_message` reports the wrong type.
    try:
        if isinstance(value, int) or (value[:1].isdecimal() and set(value) <= _DIGITS):
            return Time.from_number(str(value))
        return read_time(value)
    except ValueError as error:
        message = str(error)
    if isinstance(value, str) and not set(value) <= _DIGITS:
        message = f"{value[:40]!a} is not an RFC 3339 time"  # Nor a form that recordings use.
    raise InvalidTick(f"t: {message}")


class Utf8:
    """Converts a stream of bytes to UTF-8 if it is UTF-16, which PowerShell writes to pipes."""

    def __init__(self) -> None:
        self._begin: bytes | None = b""
        self._decoder: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes) -> bytes:
        """Return the data as UTF-8. An empty `data` means the end.

        Raises:
            InvalidTick: the stream begins like UTF-16 but isn't.
        """
        if self._begin is not None:
            self._begin += data
            if data and len(self._begin) < 4:
                return b""
            data, self._begin = self._begin, None
            if (encoding := utf16_of(data)) is not None:
                self._decoder = codecs.getincrementaldecoder(encoding)()
        if self._decoder is None:
            return data
        try:
            return self._decoder.decode(data, final=not data).encode()
        except UnicodeError as error:
            raise InvalidTick(f"not UTF-16, although it begins so: {error}") from None


class JsonLinesRecording:
    """A file of ticks in JSON lines, such as `tickcast watch` writes. Keeps the order of lines.

    Args:
        path: a plain or compressed file. The content determines which.
        on_bad_row: called with the line number and the error of each line that isn't a tick. Such
            lines are skipped.

    Raises:
        InvalidRecording: the file can't be read, or doesn't begin like ticks.
    """

    def __init__(self, path: Path, on_bad_row: BadRow) -> None:
        self._path = path
        self._on_bad_row = on_bad_row
        try:
            with opened_bytes(path) as (content, _):
                first = next((line for line in _lines(content) if line and line.strip()), b"")
        except OSError as error:
            raise InvalidRecording(f"{path}: {error.strerror or error}") from None
        except (InvalidRecording, UnicodeError, *DAMAGE) as error:
            raise InvalidRecording(f"{path}: {error}") from None
        try:
            found = _decode_line(first) if first else None
        except InvalidTick as error:
            raise InvalidRecording(f"{path}: {error}") from None
        each = found[0] if isinstance(found, list) and found else found
        if not (isinstance(each, dict) and "T" in each):
            raise InvalidRecording(
                f'{path}: JSON, but not a tick a line such as {{"T":"t","S":"AAPL","p":187.1,…}}'
            )

    def __iter__(self) -> Iterator[Tick]:
        number = 0
        try:
            with opened_bytes(self._path) as (content, _):
                for number, line in enumerate(_lines(content), 1):
                    try:
                        if line is None:
                            raise InvalidTick(f"longer than {LINE_MAX} bytes")
                        if line.strip():
                            yield from parse_line(line, None)
                    except InvalidTick as error:
                        self._on_bad_row(number, str(error))
        except (OSError, UnicodeError, *DAMAGE) as error:
            raise InvalidRecording(f"{self._path}: damaged after line {number}: {error}") from None


def is_json_lines(path: Path) -> bool:
    """Return whether a file, plain or compressed, begins like JSON."""
    try:
        with opened_bytes(path) as (content, _):
            begin = content.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
    except (OSError, InvalidRecording, UnicodeError, *DAMAGE):
        return False
    return begin.startswith((b"{", b"["))


def _lines(content: BinaryIO) -> Iterator[bytes | None]:
    splitter = LineSplitter(LINE_MAX)
    while chunk := content.read(LINE_MAX):
        yield from splitter.feed(chunk)
    yield from splitter.feed(b"")


class LineSplitter:
    """Splits a stream of bytes into lines, buffering at most one line.

    Args:
        max_bytes: the maximum length of a line. For a longer line, `feed` yields None.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """Yield the lines that this data completes. An empty `data` means the end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines, self._rest = [self._rest], b""
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif len(line) > self._max_bytes:
                yield None
            else:
                yield line
        if len(self._rest) > self._max_bytes:
            if not self._skipping:
                yield None
            self._skipping, self._rest = True, b""
