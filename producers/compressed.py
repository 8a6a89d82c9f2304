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
from typing import BinaryIO, Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_BUFFER_BYTES: Final = 1 << 16
DAMAGE: Final = (EOFError, zlib.error, zstd.ZstdError, csv.Error)
"""What is raised where a file is cut off, or its compression or its quotes make no sense."""


@contextmanager
def opened(path: Path, offset: int = 0) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file's content, and the file below the decompression, whose position tells the progress.

    Args:
        offset: bytes of the content to skip. What is compressed must be unpacked up to there.
    """
    with path.open("rb") as stored:
        magic = stored.read(4)
        stored.seek(0)
        data: BinaryIO = stored
        if magic.startswith(_GZIP_MAGIC):
            data = gzip.GzipFile(fileobj=stored)  # type: ignore[assignment]
        elif magic == _ZSTD_MAGIC:
            data = zstd.ZstdFile(stored)  # type: ignore[assignment]
        with io.BufferedReader(data, _BUFFER_BYTES) as content:  # type: ignore[type-var]
            if offset:
                content.seek(offset)
            yield content, stored


@contextmanager
def opened_text(path: Path, offset: int = 0) -> Iterator[tuple[io.TextIOWrapper, BinaryIO]]:
    """The same as lines of text, whose ends are kept."""
    with (
        opened(path, offset) as (content, stored),
        io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as lines,
    ):
        yield lines, stored
