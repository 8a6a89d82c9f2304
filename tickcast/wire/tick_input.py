"""Parse ticks that other programs send: one JSON object a line, or an array in JSON or MessagePack.

Ticks have the form in which clients receive them (`docs/protocol.md`, section "Ticks"). Fields that
a server adds, such as `seq`, are removed.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Any, Final

import msgpack
import msgspec
from msgspec.structs import replace

from tickcast.wire.encoding import field_names, tick_from_message
from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import TICK_TYPES, Bar, Quote, Tick, Trade, validate
from tickcast.wire.times import Time

_FIELDS: Final = {tag: field_names(type_) for tag, type_ in TICK_TYPES.items()}
# Fields that a server adds to the fields of ticks.
_STAMPS: Final = frozenset(("tr", "tw", "rp"))
# Alpaca's fields for conditions, tapes and corrections of a trade, which ticks don't have yet.
_ALPACA_FIELDS: Final = frozenset(("c", "z", "u"))
# Types of Alpaca's other messages: corrections, cancelled trades, price limits, statuses, bars of
# the day so far, updated bars, imbalances and order books.
_ALPACA_MESSAGES: Final = frozenset("cxlsduio")
# Types of the messages that a server sends in addition to ticks.
_NOTICES: Final = frozenset(
    "success subscription configured heartbeat gap skipped replay pong shutdown".split()
)
_NUMBER_CHARACTERS: Final = frozenset("0123456789.eE+-")
_DECODER: Final = msgspec.json.Decoder()
_EXACT_DECODER: Final = msgspec.json.Decoder(float_hook=str)

TimeParser = Callable[[str], Time]
# Decodes a tick again, with its numbers as text: a float may have lost digits of a time.
ExactDecoder = Callable[[], Any]


class TickFormat(Enum):
    """How a list of ticks is written, named by its media type."""

    JSON = "application/json"
    LINES = "application/x-ndjson"
    MSGPACK = "application/msgpack"


# -- lists


# The default of `time`, compared by identity. Any number may also be a time that was sent.
_MISSING: Final = Time(0)


class _Trade(Trade, tag="t", kw_only=True, forbid_unknown_fields=True, gc=False):
    time: Time = msgspec.field(name="t", default=_MISSING)


class _Quote(Quote, tag="q", kw_only=True, forbid_unknown_fields=True, gc=False):
    time: Time = msgspec.field(name="t", default=_MISSING)


class _Bar(Bar, tag="b", kw_only=True, forbid_unknown_fields=True, gc=False):
    time: Time = msgspec.field(name="t", default=_MISSING)


def _decode_time(kind: type, value: object) -> object:
    # A number may have any unit, and the slow path finds out which.
    if kind is Time and isinstance(value, str):
        return Time.parse(value)
    if kind is Time and hasattr(value, "to_unix_nano"):
        return Time.from_wire(value)
    raise ValueError("not an RFC 3339 time")


_Ticks: Any = list[_Trade | _Quote | _Bar]
_FAST_DECODER: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(
    _Ticks, dec_hook=_decode_time
)


class _Message(msgspec.Struct):
    ticks: _Ticks


_FAST_MESSAGE_DECODER: Final = msgspec.json.Decoder(_Message, dec_hook=_decode_time)
_FAST_LINE_DECODER: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(
    _Trade | _Quote | _Bar, dec_hook=_decode_time
)


def parse_ticks(body: bytes, form: TickFormat, now: Time) -> list[Tick]:
    """Parse and validate a list of ticks.

    Args:
        now: the time of ticks without `t`.

    Raises:
        InvalidTick: the list is invalid. The message has the number of the first bad tick, from 1.
    """
    # Typed decoding takes a third of the time but says less about errors. It refuses all that the
    # second way might accept or explain.
    try:
        ticks = _decode_typed(body, form)
    except (msgspec.MsgspecError, ValueError, RecursionError, msgpack.UnpackException):
        return _parse_untyped(body, form, now)
    return ticks if _complete(ticks, now) else _parse_untyped(body, form, now)


def parse_published(message: str | bytes, now: Time) -> list[Tick]:
    """Parse the ticks in a `publish` message: JSON if it is text, MessagePack if it is bytes.

    Raises:
        InvalidTick: see `parse_ticks`.
    """
    try:
        ticks: list[Tick] = (
            _FAST_MESSAGE_DECODER.decode(message).ticks
            if isinstance(message, str)
            else msgspec.convert(_unpack(message)["ticks"], _Ticks, dec_hook=_decode_time)
        )
        if _complete(ticks, now):
            return ticks
    except (msgspec.MsgspecError, ValueError, RecursionError, msgpack.UnpackException):
        pass
    if isinstance(message, str):
        source = message.encode()
        content = _decode(source, _DECODER)
    else:
        source = message
        content = _unpack_checked(message)
    return _parse_list(content["ticks"], now, lambda: _decode(source, _EXACT_DECODER)["ticks"])


def parse_valid(text: bytes, now: Time) -> list[Tick] | None:
    """Parse a tick or an array of ticks in JSON, in a third of the time that `parse_line` takes.

    Returns None if the text is invalid, or of a form that only `parse_line` understands.
    """
    is_array = text.lstrip()[:1] == b"["
    try:
        content = (_FAST_DECODER if is_array else _FAST_LINE_DECODER).decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    ticks: list[Tick] = content if is_array else [content]
    return ticks if _complete(ticks, now) else None


def _complete(ticks: list[Tick], now: Time) -> bool:
    """Set the fields that a client doesn't, and validate; return whether all ticks are valid."""
    for tick in ticks:
        if tick.time is _MISSING:
            tick.time = now
        tick.seq, tick.snap, tick.conflated = None, False, 0
        try:
            validate(tick)
        except InvalidTick:
            return False  # The untyped way finds the error again, and its place.
    return True


def _decode_typed(body: bytes, form: TickFormat) -> list[Tick]:
    if form is TickFormat.JSON:
        ticks: list[Tick] = _FAST_DECODER.decode(body)
    elif form is TickFormat.LINES:
        ticks = _FAST_LINE_DECODER.decode_lines(body)
    else:
        ticks = msgspec.convert(_unpack(body), _Ticks, dec_hook=_decode_time)
    return ticks


def _unpack(body: bytes) -> Any:
    # msgspec would decode a timestamp as a datetime, and so lose its nanoseconds.
    return msgpack.unpackb(body, timestamp=0, strict_map_key=False)


def _unpack_checked(body: bytes) -> Any:
    try:
        return _unpack(body)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidTick(f"not MessagePack: {error or type(error).__name__}") from None


def _parse_untyped(body: bytes, form: TickFormat, now: Time) -> list[Tick]:
    ticks: list[Tick] = []
    if form is TickFormat.LINES:
        for number, line in enumerate(body.split(b"\n"), 1):
            if line.strip():
                try:
                    ticks += parse_line(line, now)
                except InvalidTick as error:
                    raise InvalidTick(f"line {number}: {error}") from None
        return ticks
    is_json = form is TickFormat.JSON
    content = _decode(body, _DECODER) if is_json else _unpack_checked(body)
    if not isinstance(content, list):
        raise InvalidTick("not an array of ticks")
    return _parse_list(content, now, lambda: _decode(body, _EXACT_DECODER))


def _parse_list(content: list[Any], now: Time, exact: ExactDecoder) -> list[Tick]:
    ticks: list[Tick] = []
    for index, fields in enumerate(content):
        try:
            ticks += parse_object(fields, now, None, Time.parse, partial(_element, exact, index))
        except InvalidTick as error:
            raise InvalidTick(f"tick {index + 1} of {len(content)}: {error}") from None
    return ticks


# -- lines


def parse_line(
    line: bytes,
    now: Time | None,
    left_out: set[str] | None = None,
    parse_time: TimeParser = Time.parse,
) -> list[Tick]:
    """Parse one line: a tick, or an array of ticks as a server sends it.

    Other messages of a server are skipped without an error.

    Args:
        now: the time of ticks without `t`; if None, a missing `t` is an error.
        left_out: receives the names of Alpaca's fields and messages that are dropped. If None, its
            messages are errors.
        parse_time: parses times that are given as text and are not numbers.

    Raises:
        InvalidTick: the line is invalid. None of its ticks may be published.
    """
    if line.strip() in (b"[", b"]"):
        raise InvalidTick("not JSON lines: an array over several lines; `jq -c .[]` makes them")
    return parse_decoded(decode_json(line), line, now, left_out, parse_time)


def parse_decoded(
    content: Any,
    source: bytes,
    now: Time | None,
    left_out: set[str] | None,
    parse_time: TimeParser,
) -> list[Tick]:
    """Parse the content of a line, decoded from `source`, like `parse_line`."""
    exact = partial(_decode, source, _EXACT_DECODER)
    if not isinstance(content, list):
        return parse_object(content, now, left_out, parse_time, exact)
    ticks: list[Tick] = []
    for index, each in enumerate(content):
        try:
            ticks += parse_object(each, now, left_out, parse_time, partial(_element, exact, index))
        except InvalidTick as error:
            raise InvalidTick(f"number {index + 1} of {len(content)}: {error}") from None
    return ticks


def _element(exact: ExactDecoder, index: int) -> Any:
    return exact()[index]


def decode_json(text: bytes) -> Any:
    """Decode JSON. Raises InvalidTick."""
    return _decode(text, _DECODER)


def _decode(line: bytes, decoder: msgspec.json.Decoder[Any]) -> Any:
    try:
        return decoder.decode(line.removeprefix(codecs.BOM_UTF8))
    except RecursionError:
        raise InvalidTick("not JSON: nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidTick(f"not a JSON object: {error}") from None


def parse_object(
    fields: Any,
    now: Time | None,
    left_out: set[str] | None,
    parse_time: TimeParser,
    exact: ExactDecoder | None = None,
) -> list[Tick]:
    """Convert a decoded object to a tick; other messages of a server are no ticks.

    Args:
        now, left_out, parse_time: as for `parse_line`.
        exact: decodes the object again; by default, numbers keep 17 digits.

    Raises:
        InvalidTick: it is neither.
    """
    if not isinstance(fields, dict):
        raise InvalidTick("not a JSON object, or an array of objects")
    tag = fields.get("T")
    known = _FIELDS.get(str(tag))
    if known is None:
        if isinstance(tag, str) and tag in _NOTICES:
            return []
        if left_out is not None and isinstance(tag, str) and tag in _ALPACA_MESSAGES:
            left_out.add(f"messages {tag}")
            return []
        raise InvalidTick('T must be "t" (trade), "q" (quote) or "b" (bar)')
    unknown = fields.keys() - known
    if unknown:
        if unsupported := sorted(map(str, unknown - _ALPACA_FIELDS - _STAMPS)):
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
        value = fields["t"]
        if isinstance(value, float):
            value = exact()["t"] if exact else str(value)
        time = _parse_time(value, parse_time)
    tick = tick_from_message({**fields, "t": time})
    validate(tick)
    return [replace(tick, seq=None, snap=False, conflated=0)]


def _parse_time(value: Any, parse_time: TimeParser) -> Any:
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
        # Parsers of recordings would suggest options for tables.
        raise InvalidTick(f"t: {text[:40]!a} is not an RFC 3339 time") from None
