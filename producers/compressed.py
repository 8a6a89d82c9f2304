"""Files that may be compressed, read from any place on; what they are is told by their content."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_BUFFER_BYTES: Final = 1 << 16
DAMAGE: Final = (EOFError, zlib.error, zstd.ZstdError, csv.Error)
"""What is raised where a file is cut off, or its compression or its quotes make no sense."""


class _AsItComes(io.RawIOBase):
    """What can be unpacked of a file: all that lies before damage, or before a torn end.

    A whole buffer at a time would be lost with its last byte.
    """

    def __init__(self, data: io.BufferedIOBase) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._data.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._data.seek(offset, whence)

    def tell(self) -> int:
        return self._data.tell()

    def readinto(self, buffer: Any) -> int:
        chunk = self._data.read1(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self._data.close()
        super().close()


@contextmanager
def opened_bytes(path: Path, offset: int = 0) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file's content, and the file below the decompression, whose position tells the progress.

    Args:
        offset: bytes of the content to skip. What is compressed must be unpacked up to there.
    """
    with path.open("rb") as stored:
        magic = stored.read(4)
        stored.seek(0)
        data: io.BufferedIOBase = stored
        if magic.startswith(_GZIP_MAGIC):
            data = gzip.GzipFile(fileobj=stored)
        elif magic == _ZSTD_MAGIC:
            data = zstd.ZstdFile(stored)
        with io.BufferedReader(_AsItComes(data), _BUFFER_BYTES) as content:
            if offset:
                content.seek(offset)
            yield content, stored


@contextmanager
def opened(path: Path, offset: int = 0) -> Iterator[tuple[io.TextIOWrapper, BinaryIO]]:
    """The same as lines of text, whose ends are kept."""
    with (
        opened_bytes(path, offset) as (content, stored),
        io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as lines,
    ):
        yield lines, stored
