"""Ticks from JSON lines, in the form in which clients receive them."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec
from msgspec.structs import replace

from feed.encoding import from_wire, wire_names
from feed.errors import InvalidRecording, InvalidTick
from feed.ticks import Bar, Quote, Tick, Trade, validate
from feed.times import Time
from producers.compressed import DAMAGE, opened_bytes, utf16_of
from producers.layout import BadRow
from producers.timestamps import read_time

LINE_MAX: Final = 64 * 1024
"""The longest line, in bytes."""
_KINDS: Final[dict[str, type[Tick]]] = {"t": Trade, "q": Quote, "b": Bar}
_NAMES: Final = {tag: wire_names(kind) for tag, kind in _KINDS.items()}
_STAMPS: Final = frozenset(("tr", "tw", "rp"))
"""What a server adds to ticks besides the fields that ticks have."""
_ALPACA: Final = frozenset(("c", "z", "u"))
"""Alpaca's fields for conditions, tapes and corrections of a trade, which ticks do not have yet."""
_NOTICES: Final = frozenset(
    "success subscription configured heartbeat gap skipped replay pong shutdown".split()
)
"""What a server sends besides ticks."""
_DIGITS: Final = frozenset("0123456789.eE+-")
_ANY: Final = msgspec.json.Decoder()
_EXACT: Final = msgspec.json.Decoder(float_hook=str)


def parse_line(line: bytes, now: Time | None, left_out: set[str] | None = None) -> list[Tick]:
    """The ticks that one line holds: one, or an array of them as a server sends it.

    Fields that a server adds, such as `seq`, are removed. Its other messages are passed over
    without an error.

    Args:
        now: what a missing `t` means; None where that is an error.
        left_out: gets the names of fields of Alpaca's that are left out.

    Raises:
        InvalidTick: with what is wrong in this line, of which nothing is to be published.
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
    """The tick that a decoded object stands for; `number` is its place in the line's array."""
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
            # What its text says, of which a float may have lost digits.
            exact = _decode(line.removeprefix(codecs.BOM_UTF8), _EXACT)
            time = (exact if number is None else exact[number])["t"]
        time = _read_time(time)
    tick = from_wire({**fields, "t": time})
    validate(tick)
    return [replace(tick, seq=None, snap=False, conflated=0)]


def _read_time(value: Any) -> Any:
    """A time as text, or as a number since 1970; raises InvalidTick where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return value  # `from_wire` says that it is of the wrong type.
    try:
        if isinstance(value, int) or (value[:1].isdecimal() and set(value) <= _DIGITS):
            return Time.of_number(str(value))
        return read_time(value)
    except ValueError as error:
        message = str(error)
    if isinstance(value, str) and not set(value) <= _DIGITS:
        message = f"{value[:40]!a} is not an RFC 3339 time"  # Nor one that a recording may have.
    raise InvalidTick(f"t: {message}")


class Utf8:
    """Turns a stream of bytes into UTF-8 where it is UTF-16, as PowerShell pipes it."""

    def __init__(self) -> None:
        self._begin: bytes | None = b""
        self._decoder: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes) -> bytes:
        """The same as UTF-8; an empty `data` means the end.

        Raises:
            InvalidTick: it begins like UTF-16, and is none.
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
    """Ticks in JSON lines, such as `tickcast watch` writes them: in their order, which is kept.

    Args:
        path: plain or compressed; told by the content.
        on_bad_row: called with the line number and the error of each line that is not a tick; such
            lines are left out.

    Raises:
        InvalidRecording: the file can't be read, or does not begin like ticks.
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
    """Whether a file begins like JSON, plain or compressed."""
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
    """Cuts a stream of bytes into lines, holding no more than one line.

    Args:
        max_bytes: of a line; of a longer one `feed` yields None.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """The lines that are complete with this data; an empty `data` means the end."""
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
