"""The frames of a tape: a file is a sequence of zstd frames of whole lines, with a limited size.

Source: RFC 8878, section 3.1: frames are independent, and a file consists of consecutive frames.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from tickcast.wire.errors import InvalidTape, TapeNotFound

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
"""The maximum size of a frame's lines. It limits the memory used, whatever a file claims."""
_STORED_MAX: Final = FRAME_BYTES_MAX + FRAME_BYTES_MAX // 256 + 1024
"""The maximum size of a compressed frame: zstd's bound for incompressible data."""
_CHUNK: Final = 1024 * 1024
_OPTIONS: Final[dict[int, int]] = {
    zstd.CompressionParameter.compression_level: 3,
    zstd.CompressionParameter.checksum_flag: 1,
}


class Frame(NamedTuple):
    """A compressed frame, and its offset in the file in bytes."""

    offset: int
    stored: bytes


def compress(lines: bytes) -> bytes:
    """Compress lines to a frame, which includes its size and a checksum."""
    return zstd.compress(lines, options=_OPTIONS)


def decompress(frame: Frame) -> list[bytes]:
    """Decompress the lines of a frame.

    Raises:
        InvalidTape: the frame is damaged, too big, or does not end with a whole line.
    """
    decompressor = zstd.ZstdDecompressor()
    try:
        data = decompressor.decompress(frame.stored, FRAME_BYTES_MAX + 1)
    except zstd.ZstdError as error:
        raise InvalidTape(f"the frame at byte {frame.offset:,} is damaged: {error}") from None
    if len(data) > FRAME_BYTES_MAX or not decompressor.eof:
        raise InvalidTape(
            f"the frame at byte {frame.offset:,} holds more than {FRAME_BYTES_MAX:,} bytes,"
            " or is cut off"
        )
    if data and not data.endswith(b"\n"):
        raise InvalidTape(f"the frame at byte {frame.offset:,} does not end with a line")
    return data.split(b"\n")[:-1]


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a regular file for reading, without following symbolic links; yield its descriptor.

    Raises:
        TapeNotFound: the file does not exist.
        InvalidTape: it can't be read, or is not a regular file.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would block.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TapeNotFound(f"{path}: no such file") from None
    except OSError as error:
        words = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise InvalidTape(f"{path}: {words}") from None
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise InvalidTape(f"{path}: not a regular file")
        yield number
    finally:
        os.close(number)


def frames_at(number: int, offset: int, end: int | None = None) -> Iterator[Frame]:
    """Read the frames of a file from `offset` on, up to the first that is not whole.

    At most one frame is in memory. Raises OSError.

    Args:
        end: where to stop, in bytes; None means at the end of the file.
    """
    waiting = b""
    wanted = _CHUNK
    while True:
        more = _pread(number, wanted - len(waiting), offset + len(waiting), end)
        waiting += more
        consumed = 0
        with memoryview(waiting) as view:
            while size := _size_of_first(view[consumed:]):
                yield Frame(offset + consumed, bytes(view[consumed : consumed + size]))
                consumed += size
        offset, waiting = offset + consumed, waiting[consumed:]
        if not more or (not consumed and wanted >= _STORED_MAX):
            return
        wanted = len(waiting) + _CHUNK if consumed else min(_STORED_MAX, 4 * wanted)


def _pread(number: int, count: int, offset: int, end: int | None) -> bytes:
    if end is not None:
        count = min(count, end - offset)
    return os.pread(number, count, offset) if count > 0 else b""


def _size_of_first(data: memoryview) -> int:
    """Return the size in bytes of the frame at the start of the data, or 0 if it is not whole."""
    try:
        return zstd.get_frame_size(data)
    except zstd.ZstdError:
        return 0
