"""Encode and decode ticks and messages, and build the WebSocket frames that carry them.

Clients receive JSON or MessagePack. The broker receives MessagePack with times as nanoseconds.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, Final

import msgspec

from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import Bar, Quote, Tick, Trade
from tickcast.wire.times import Time


class Encoding(Enum):
    """The encoding of a connection: JSON in text frames, or MessagePack in binary frames."""

    JSON = "json"
    MSGPACK = "msgpack"


def _encode_hook(encode_time: Any) -> Any:
    # msgspec calls the hook for values whose type it does not know. `Time` is a subclass of `int`,
    # which it does not treat as an integer.
    def encode(value: object) -> object:
        if isinstance(value, Time):
            return encode_time(value)
        raise NotImplementedError(f"no encoding for {type(value).__name__}")

    return encode


_WIRE_ENCODERS: Final[dict[Encoding, msgspec.json.Encoder | msgspec.msgpack.Encoder]] = {
    Encoding.JSON: msgspec.json.Encoder(enc_hook=_encode_hook(Time.rfc3339)),
    Encoding.MSGPACK: msgspec.msgpack.Encoder(enc_hook=_encode_hook(Time.msgpack_ext)),
}
# For the broker, a time is its nanoseconds: `operator.index` turns it into a plain integer.
_STORE_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=operator.index)


def _decode_time(kind: type, value: object) -> object:
    # msgspec calls this for `Time` only: it is the only custom type in a tick.
    return Time.from_wire(value)


_STORE_DECODER: Final = msgspec.msgpack.Decoder(list[Tick], dec_hook=_decode_time)


def encode(message: object, encoding: Encoding) -> bytes:
    """Encode a message for clients: ticks, or any value made of builtins and `Time`."""
    return _WIRE_ENCODERS[encoding].encode(message)


def encode_elements(ticks: Sequence[Tick], encoding: Encoding) -> bytes:
    """Encode ticks as the inside of an array, to be joined with others in one array."""
    array = encode(ticks, encoding)
    if encoding is Encoding.JSON:
        return array[1:-1]
    return array[len(_msgpack_array_header(len(ticks))) :]


def array_delimiters(count: int, encoding: Encoding) -> tuple[bytes, bytes, bytes]:
    """The bytes before, between and after the elements of an array of `count` elements."""
    if encoding is Encoding.JSON:
        return b"[", b",", b"]"
    return _msgpack_array_header(count), b"", b""


def _msgpack_array_header(count: int) -> bytes:
    """The header of an array. Source: MessagePack specification, "Array format family"."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def pack(ticks: Sequence[Tick]) -> bytes:
    """Encode ticks for the broker: a MessagePack array, with times as nanoseconds."""
    return _STORE_ENCODER.encode(ticks)


def unpack(data: bytes) -> list[Tick]:
    """Decode the result of `pack`. Raises InvalidTick."""
    try:
        return _STORE_DECODER.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidTick(f"undecodable batch: {error}") from None


def tick_from_message(fields: dict[str, Any], kinds: Any = Tick) -> Tick:
    """Convert one decoded message to a tick, ignoring unknown fields.

    Args:
        kinds: the type to convert to, if it is not `Tick` itself: classes derived from its members.

    >>> fields = {"T": "t", "S": "ES", "p": 1640.25, "s": 3, "t": "2013-09-03T13:00:00Z"}
    >>> tick = tick_from_message(fields)
    >>> tick.symbol, tick.price, tick.seq
    ('ES', 1640.25, None)

    Raises:
        InvalidTick: a field is missing or of the wrong type.
    """
    try:
        tick: Tick = msgspec.convert(fields, kinds, dec_hook=_decode_time)
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidTick(str(error)) from None
    return tick


def field_names(kind: type[Tick]) -> frozenset[str]:
    """The names of this tick type's fields in messages, including `T`."""
    return frozenset(("T", *(field.encode_name for field in msgspec.structs.fields(kind))))


# -- time stamps


# The tags are those of the types without stamps: on the wire, stamps are just two more fields.
class StampedTrade(Trade, tag="t", kw_only=True):
    """A trade with the times of its transit.

    Attributes:
        published_us: when its publisher handed it to the broker, microseconds since the Unix epoch,
            by the publisher's clock.
        written_us: when the server wrote it to this connection, by the server's clock.
    """

    published_us: int = msgspec.field(name="tr")
    written_us: int = msgspec.field(name="tw")


class StampedQuote(Quote, tag="q", kw_only=True):
    """A quote with the additional attributes of a `StampedTrade`."""

    published_us: int = msgspec.field(name="tr")
    written_us: int = msgspec.field(name="tw")


class StampedBar(Bar, tag="b", kw_only=True):
    """A bar with the additional attributes of a `StampedTrade`."""

    published_us: int = msgspec.field(name="tr")
    written_us: int = msgspec.field(name="tw")


Stamped = StampedTrade | StampedQuote | StampedBar
"""The additional type of each tick after `Stream.configure(stamps=True)`."""

_STAMPED: Final[dict[type, Any]] = {Trade: StampedTrade, Quote: StampedQuote, Bar: StampedBar}


def stamp(tick: Tick, published_us: int, written_us: int) -> Stamped:
    """Add the times of its transit to a tick."""
    stamped: Stamped = _STAMPED[type(tick)](
        **msgspec.structs.asdict(tick), published_us=published_us, written_us=written_us
    )
    return stamped


# -- frames

# Server frames are final and have no mask (RFC 6455, section 5.2). Therefore the same bytes can be
# sent to any number of clients.
TEXT: Final = 0x1
BINARY: Final = 0x2
_FIN: Final = 0x80
_MEDIUM: Final = struct.Struct("!BBH")
_LARGE: Final = struct.Struct("!BBQ")


def build_frame(payload: bytes, encoding: Encoding) -> bytes:
    """Build a complete frame around a payload: text for JSON, binary for MessagePack."""
    return frame_header(len(payload), encoding) + payload


def frame_header(size: int, encoding: Encoding) -> bytes:
    """Build the header of a frame with a payload of `size` bytes."""
    first = _FIN | (TEXT if encoding is Encoding.JSON else BINARY)
    if size < 126:
        return bytes((first, size))
    if size < 1 << 16:
        return _MEDIUM.pack(first, 126, size)
    return _LARGE.pack(first, 127, size)


def split_frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split concatenated frames from `build_frame`. Yields the opcode and payload of each."""
    position = 0
    while position < len(data):
        opcode, size = data[position] & 0x0F, data[position + 1]
        position += 2
        if size == 126:
            (size,) = struct.unpack_from("!H", data, position)
            position += 2
        elif size == 127:
            (size,) = struct.unpack_from("!Q", data, position)
            position += 8
        yield opcode, data[position : position + size]
        position += size
