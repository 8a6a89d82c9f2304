"""WebSocket frames as a server sends them: final and unmasked (RFC 6455, section 5.2).

Because server frames carry no mask, one frame's bytes can go to any number of clients.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from feed.encoding import Encoding

TEXT: Final = 0x1
BINARY: Final = 0x2
_FIN: Final = 0x80
_MEDIUM: Final = struct.Struct("!BBH")
_LARGE: Final = struct.Struct("!BBQ")


def build_frame(payload: bytes, encoding: Encoding) -> bytes:
    """The payload as one complete frame: text for JSON, binary for MessagePack."""
    return frame_header(len(payload), encoding) + payload


def frame_header(size: int, encoding: Encoding) -> bytes:
    """What goes before a payload of so many bytes."""
    first = _FIN | (TEXT if encoding is Encoding.JSON else BINARY)
    if size < 126:
        return bytes((first, size))
    if size < 1 << 16:
        return _MEDIUM.pack(first, 126, size)
    return _LARGE.pack(first, 127, size)


def split_frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Opcode and payload of each of the frames that `build_frame` made and someone joined."""
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
