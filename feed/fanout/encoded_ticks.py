"""Encodes ticks for clients: pieces of streams, and the frames built from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from msgspec.structs import asdict

from tickcast.wire.encoding import (
    Encoding,
    array_delimiters,
    build_frame,
    encode,
    encode_elements,
    frame_header,
)
from tickcast.wire.ticks import Bar, Quote, StreamKey, Tick, Trade

FRAME_TICKS_MAX: Final = 500
"""Maximum number of ticks in a frame, so that bursts stay within client libraries' limits."""


class WireFormat:
    """How ticks are encoded for a client. There is one object for each of the four forms.

    Attributes:
        encoding: JSON or MessagePack.
        stamps: whether ticks carry `tr` and `tw`.
    """

    __slots__ = ("encoding", "stamps")

    def __init__(self, encoding: Encoding, stamps: bool) -> None:
        self.encoding = encoding
        self.stamps = stamps


_FORMS: Final = {
    (encoding, stamps): WireFormat(encoding, stamps)
    for encoding in Encoding
    for stamps in (False, True)
}


def form_of(encoding: Encoding, stamps: bool = False) -> WireFormat:
    """The form with these properties."""
    return _FORMS[encoding, stamps]


class TickBatch(NamedTuple):
    """Ticks of one stream in order, with their publication times.

    Attributes:
        ticks: at least one.
        published_us: when each tick was published, microseconds since the Unix epoch.
    """

    key: StreamKey
    ticks: Sequence[Tick]
    published_us: Sequence[int]


class EncodedTicks:
    """A chunk of at most `FRAME_TICKS_MAX` ticks, encoded as elements of an array.

    Attributes:
        elements: the encoded ticks.
        size: number of ticks.
        merged: number of earlier ticks that these replaced.
        chunk: the original ticks, for clients that can't receive them now.
        frame: the piece as a separate frame, built when it is first needed.
    """

    __slots__ = ("chunk", "elements", "frame", "merged", "size")

    def __init__(self, elements: bytes, size: int, merged: int, chunk: TickBatch) -> None:
        self.elements = elements
        self.size = size
        self.merged = merged
        self.chunk = chunk
        self.frame: bytes | None = None


def encode_pieces(chunk: TickBatch, form: WireFormat, written_us: int) -> list[EncodedTicks]:
    """Encode a chunk as pieces; `written_us` becomes `tw` if the form has stamps."""
    key, ticks, published_us = chunk
    if len(ticks) <= FRAME_TICKS_MAX:
        return [_encode_piece(chunk, form, written_us)]
    starts = range(0, len(ticks), FRAME_TICKS_MAX)
    parts = [slice(start, start + FRAME_TICKS_MAX) for start in starts]
    return [
        _encode_piece(TickBatch(key, ticks[part], published_us[part]), form, written_us)
        for part in parts
    ]


def _encode_piece(chunk: TickBatch, form: WireFormat, written_us: int) -> EncodedTicks:
    ticks = chunk.ticks
    if form.stamps:
        ticks = [
            _stamped(tick, published_us, written_us)
            for tick, published_us in zip(ticks, chunk.published_us, strict=True)
        ]
    merged = sum([tick.conflated for tick in ticks])
    return EncodedTicks(encode_elements(ticks, form.encoding), len(ticks), merged, chunk)


def pack_frames(pieces: Sequence[EncodedTicks], encoding: Encoding) -> tuple[bytes, int, int, int]:
    """Pack pieces into as few frames as possible.

    Returns the frames as one byte string, the number of frames, the number of ticks in them, and
    the number of earlier ticks that these replaced.
    """
    if len(pieces) == 1:
        (piece,) = pieces
        if piece.frame is None:
            # Kept, because all audiences that get only this piece share the frame.
            piece.frame = _array_frame([piece.elements], piece.size, encoding)
        return piece.frame, 1, piece.size, piece.merged
    # One plain loop: `map` and `sum` would take twice as long.
    elements = []
    count = merged = 0
    for piece in pieces:
        elements.append(piece.elements)
        count += piece.size
        merged += piece.merged
    if count <= FRAME_TICKS_MAX:
        return _array_frame(elements, count, encoding), 1, count, merged
    frames = [
        _array_frame(
            [piece.elements for piece in part], sum([piece.size for piece in part]), encoding
        )
        for part in _split(pieces)
    ]
    return b"".join(frames), len(frames), count, merged


def _split(pieces: Sequence[EncodedTicks]) -> Iterator[list[EncodedTicks]]:
    """Group pieces by frame."""
    part: list[EncodedTicks] = []
    count = 0
    for piece in pieces:
        if count + piece.size > FRAME_TICKS_MAX:
            yield part
            part, count = [], 0
        part.append(piece)
        count += piece.size
    yield part


def _array_frame(elements: Sequence[bytes], count: int, encoding: Encoding) -> bytes:
    before, between, after = array_delimiters(count, encoding)
    body = between.join(elements)
    header = frame_header(len(before) + len(body) + len(after), encoding)
    return b"".join((header, before, body, after))


def message_frame(message: object, encoding: Encoding) -> bytes:
    """Encode a message other than a tick as a frame."""
    return build_frame(encode(message, encoding), encoding)


# ------------------------------------------------------------------------------------- stamps


class _StampedTrade(Trade, tag_field="T", tag="t", kw_only=True, gc=False):
    tr: int
    tw: int


class _StampedQuote(Quote, tag_field="T", tag="q", kw_only=True, gc=False):
    tr: int
    tw: int


class _StampedBar(Bar, tag_field="T", tag="b", kw_only=True, gc=False):
    tr: int
    tw: int


def _stamped(tick: Tick, published_us: int, written_us: int) -> Tick:
    fields = asdict(tick)
    if isinstance(tick, Trade):
        return _StampedTrade(**fields, tr=published_us, tw=written_us)
    if isinstance(tick, Quote):
        return _StampedQuote(**fields, tr=published_us, tw=written_us)
    return _StampedBar(**fields, tr=published_us, tw=written_us)
