"""Encode ticks for clients: once for each wire format, as bytes that all frames can share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tickcast.wire.encoding import (
    Encoding,
    array_delimiters,
    build_frame,
    encode,
    encode_elements,
    frame_header,
    stamp,
)
from tickcast.wire.ticks import StreamKey, Tick

# Bursts are split into frames of this many ticks, to stay within client libraries' limits.
FRAME_TICKS_MAX: Final = 500


class WireFormat:
    """How ticks are encoded for a client. There are four, and each is one shared object.

    They are compared and hashed by identity, which is cheaper than by value on the hot path.
    """

    __slots__ = ("encoding", "stamps")

    def __init__(self, encoding: Encoding, stamps: bool) -> None:
        self.encoding = encoding
        # Whether ticks carry `tr` and `tw`.
        self.stamps = stamps


_WIRE_FORMATS: Final = {
    (encoding, stamps): WireFormat(encoding, stamps)
    for encoding in Encoding
    for stamps in (False, True)
}


def wire_format_for(encoding: Encoding, stamps: bool = False) -> WireFormat:
    """Return the shared format with these properties."""
    return _WIRE_FORMATS[encoding, stamps]


class TickBatch(NamedTuple):
    """Ticks of one stream in order, at least one, each with its time of publication in µs."""

    key: StreamKey
    ticks: Sequence[Tick]
    published_us: Sequence[int]


class EncodedTicks:
    """At most `FRAME_TICKS_MAX` ticks of one stream, encoded as elements of an array."""

    __slots__ = ("batch", "count", "elements", "frame", "merged")

    def __init__(self, elements: bytes, count: int, merged: int, batch: TickBatch) -> None:
        self.elements = elements
        self.count = count
        # The number of earlier ticks that these replaced.
        self.merged = merged
        # Clients that can't receive the ticks now keep the originals in their backlog.
        self.batch = batch
        # These ticks as a frame to themselves, built when it is first needed.
        self.frame: bytes | None = None


def encode_batch(batch: TickBatch, wire_format: WireFormat, written_us: int) -> list[EncodedTicks]:
    """Encode a batch in parts that fit in a frame.

    Args:
        written_us: becomes `tw` if the format has stamps.
    """
    key, ticks, published_us = batch
    parts = [batch]
    if len(ticks) > FRAME_TICKS_MAX:
        parts = [
            TickBatch(key, ticks[start : start + FRAME_TICKS_MAX],
                      published_us[start : start + FRAME_TICKS_MAX])
            for start in range(0, len(ticks), FRAME_TICKS_MAX)
        ]  # fmt: skip
    return [_encode_part(part, wire_format, written_us) for part in parts]


def _encode_part(batch: TickBatch, wire_format: WireFormat, written_us: int) -> EncodedTicks:
    ticks = batch.ticks
    if wire_format.stamps:
        ticks = [
            stamp(tick, published_us, written_us)
            for tick, published_us in zip(ticks, batch.published_us, strict=True)
        ]
    merged = sum([tick.conflated for tick in ticks])
    return EncodedTicks(encode_elements(ticks, wire_format.encoding), len(ticks), merged, batch)


def pack_frames(encoded: Sequence[EncodedTicks], encoding: Encoding) -> tuple[bytes, int, int, int]:
    """Pack encoded ticks into as few frames as possible.

    Returns the frames as one byte string, the number of frames, the number of ticks in them, and
    the number of earlier ticks that these replaced.
    """
    if len(encoded) == 1:
        (only,) = encoded
        if only.frame is None:
            # Kept, because all groups that get nothing else in this flush share the frame.
            only.frame = _array_frame([only.elements], only.count, encoding)
        return only.frame, 1, only.count, only.merged
    # One plain loop: `map` and `sum` would take twice as long.
    frames = []
    elements: list[bytes] = []
    in_frame = total = merged = 0
    for each in encoded:
        after = in_frame + each.count
        if after > FRAME_TICKS_MAX:
            frames.append(_array_frame(elements, in_frame, encoding))
            total += in_frame
            elements, after = [], each.count
        in_frame = after
        elements.append(each.elements)
        merged += each.merged
    frames.append(_array_frame(elements, in_frame, encoding))
    return b"".join(frames), len(frames), total + in_frame, merged


class EncodedFrames(NamedTuple):
    """Complete frames, with their number and the number of ticks in them."""

    data: bytes
    frames: int
    ticks: int


def encode_frames(batch: TickBatch, wire_format: WireFormat, written_us: int) -> EncodedFrames:
    """Encode a batch as complete frames, for one client."""
    encoded = encode_batch(batch, wire_format, written_us)
    return EncodedFrames(*pack_frames(encoded, wire_format.encoding)[:3])


def _array_frame(elements: Sequence[bytes], count: int, encoding: Encoding) -> bytes:
    before, between, after = array_delimiters(count, encoding)
    body = between.join(elements)
    header = frame_header(len(before) + len(body) + len(after), encoding)
    return b"".join((header, before, body, after))


def message_frame(message: object, encoding: Encoding) -> bytes:
    """Encode a message other than a tick as a frame."""
    return build_frame(encode(message, encoding), encoding)
