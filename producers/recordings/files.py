"""Read files, plain or compressed, from any offset. The content determines the compression."""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from tickcast.wire.errors import InvalidRecording

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_BZIP2_MAGIC: Final = b"BZh"
_XZ_MAGIC: Final = b"\xfd7zXZ\x00"
_ZIP_MAGICS: Final = (b"PK\x03\x04", b"PK\x05\x06")
_ZSTD_WINDOW_LOG_MAX: Final = 31 if sys.maxsize > 2**32 else 27
"""`zstd --long=31` uses a window of 2 GiB. Memory use is bounded by the size of the content."""
_FOREIGN: Final = {
    b"\x04\x22\x4d\x18": "compressed with lz4: unpack it first (lz4 -d)",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    b"Rar!": "a rar archive: unpack it first",
    b"\x1f\x9d": "compressed with compress: unpack it first (uncompress)",
    b"\xff\x06\x00\x00sNaPpY": "compressed with snappy: unpack it first",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook: save it as CSV",
    b"SQLite format 3": "an SQLite database: export a table of it as CSV",
    b"\x89HDF": "an HDF5 file: export a table of it as CSV or Parquet",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"FEA1": "a Feather file: write it as Parquet",
    b"Obj\x01": "an Avro file: write it as Parquet or CSV",
    b"ORC": "an ORC file: write it as Parquet",
    b"%PDF": "a PDF document",
    b"<!DOCTYPE": "a web page: is it what the download was meant to bring?",
    b"<html": "a web page: is it what the download was meant to bring?",
}
"""Formats that are not supported, by their first bytes."""
_TAR_MAGIC: Final = b"ustar"
_TAR_AT: Final = 257
_BEGIN_BYTES: Final = 512
_BUFFER_BYTES: Final = 1 << 16
DAMAGE: Final = (
    EOFError, zlib.error, zstd.ZstdError, lzma.LZMAError, zipfile.BadZipFile, csv.Error,
)  # fmt: skip
"""Errors raised for a truncated file, and for invalid compressed data or quoting."""


class _AsItComes(io.RawIOBase):
    """Passes on all data that can be unpacked before damage or a truncated end.

    Without it, `BufferedReader` would fill a whole buffer at a time and lose all of it if the
    damage is in its last byte.
    """

    def __init__(self, data: io.BufferedIOBase) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._data.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._data.seek(offset, whence)

    def position(self) -> int:
        return self._data.tell()

    def readinto(self, buffer: Any) -> int:
        chunk = self._data.read1(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self._data.close()
        super().close()


class _Utf8(io.RawIOBase):
    """Converts UTF-16 to UTF-8."""

    def __init__(self, data: io.BufferedReader[_AsItComes], encoding: str) -> None:
        self._data = data
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._data.read1(_BUFFER_BYTES)
            try:
                self._ready = self._decoder.decode(chunk, final=not chunk).encode()
            except UnicodeError as error:
                raise EOFError(f"not UTF-16, although it begins so: {error}") from None
            if not chunk:
                break
        part = self._ready[: len(buffer)]
        self._ready = self._ready[len(part) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._data.close()
        super().close()


@contextmanager
def opened_bytes(path: Path, offset: int = 0) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file's content, and the stored file, whose position shows the progress.

    UTF-16 is converted to UTF-8. A zip archive must contain exactly one file, which is opened.

    Args:
        offset: bytes of the content to skip. Compressed content must be unpacked up to there.

    Raises:
        InvalidRecording: the format isn't supported; the message says what to do.
    """
    with path.open("rb") as stored, ExitStack() as stack:
        data = stack.enter_context(_unpacked(stored))
        raw = stack.enter_context(io.BufferedReader(_AsItComes(data), _BUFFER_BYTES))
        content: BinaryIO = raw
        begin = raw.peek(_BEGIN_BYTES)
        if begin.startswith(_TAR_MAGIC, _TAR_AT):
            raise InvalidRecording("a tar archive: unpack it first")
        encoding = utf16_of(begin)
        if encoding is not None:
            content = stack.enter_context(io.BufferedReader(_Utf8(raw, encoding), _BUFFER_BYTES))
            while offset > 0 and (passed := content.read(min(offset, _BUFFER_BYTES))):
                offset -= len(passed)
        elif offset:
            content.seek(offset)
        yield content, stored


@contextmanager
def _unpacked(stored: BinaryIO) -> Iterator[io.BufferedIOBase]:
    begin = stored.read(_BEGIN_BYTES)
    stored.seek(0)
    for magic, what in _FOREIGN.items():
        if begin.startswith(magic):
            raise InvalidRecording(what)
    if begin.startswith(_GZIP_MAGIC):
        yield gzip.GzipFile(fileobj=stored)
    elif begin.startswith(_ZSTD_MAGIC):
        options = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG_MAX}
        yield zstd.ZstdFile(stored, options=options)
    elif begin.startswith(_BZIP2_MAGIC):
        yield bz2.BZ2File(stored)
    elif begin.startswith(_XZ_MAGIC):
        yield lzma.LZMAFile(stored)  # noqa: SIM115 - closed with `stored`
    elif begin.startswith(_ZIP_MAGICS):
        with zipfile.ZipFile(stored) as archive, _only_file(archive) as data:
            yield data
    else:
        yield stored  # type: ignore[misc]


def _only_file(archive: zipfile.ZipFile) -> Any:
    """Open the only file in an archive."""
    files = [each for each in archive.infolist() if not each.is_dir()]
    if any(each.filename.startswith("xl/") for each in files):
        raise InvalidRecording("an Excel workbook: save it as CSV")
    # macOS adds metadata files; ignore them.
    files = [each for each in files if not each.filename.startswith("__MACOSX/")]
    if len(files) != 1:
        raise InvalidRecording(f"a zip archive of {len(files)} files: unpack it first")
    if files[0].flag_bits & 1:
        raise InvalidRecording("a zip archive with a password: unpack it first")
    try:
        return archive.open(files[0])
    except NotImplementedError as error:
        raise InvalidRecording(f"a zip archive: unpack it first ({error})") from None


def unpacking_of(begin: bytes) -> str | None:
    """Return what to do with data that begins like this, or None if it can be read as it is.

    This is for programs that read a pipe. For files, `opened_bytes` unpacks the data.
    """
    packers = {_GZIP_MAGIC: "gzip", _ZSTD_MAGIC: "zstd", _BZIP2_MAGIC: "bzip2", _XZ_MAGIC: "xz"}
    for magic, name in packers.items():
        if begin.startswith(magic):
            return f"compressed with {name}: unpack it first, such as with {name} -dc"
    if begin.startswith(_ZIP_MAGICS):
        return "a zip archive: unpack it first, such as with unzip -p"
    return next((what for magic, what in _FOREIGN.items() if begin.startswith(magic)), None)


def utf16_of(begin: bytes) -> str | None:
    """Return the UTF-16 encoding of a text that begins like this, or None if it isn't UTF-16.

    PowerShell writes UTF-16.
    """
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(begin) >= 4 and begin[1] == begin[3] == 0 and begin[0] and begin[2]:
        return "utf-16-le"
    if len(begin) >= 4 and begin[0] == begin[2] == 0 and begin[1] and begin[3]:
        return "utf-16-be"
    return None


def not_utf8(error: UnicodeDecodeError) -> str:
    """Describe the error of a text that isn't UTF-8."""
    byte = error.object[error.start]
    return (
        f"not UTF-8: {error.reason} 0x{byte:02x}; convert it first, such as with"
        " iconv -f latin1 -t utf-8 (or -f gbk, whatever it is)"
    )


@contextmanager
def opened(path: Path, offset: int = 0) -> Iterator[tuple[io.TextIOWrapper, BinaryIO]]:
    """Open a file like `opened_bytes`, as lines of text. Line ends are kept."""
    with (
        opened_bytes(path, offset) as (content, stored),
        io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as lines,
    ):
        yield lines, stored
