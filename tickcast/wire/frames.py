"""Server-side WebSocket frames, which are final and unmasked (RFC 6455, section 5.2).

Because server frames have no mask, the same bytes can be sent to any number of clients.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from tickcast.wire.encoding import Encoding

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
