"""Recorded files: what all formats have in common, and how plain and compressed files are opened.

The content determines the compression, not the name.
"""

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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final

from tickcast.wire.errors import InvalidRecording, InvalidTick
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# A callback for the number and the error of each row that isn't a tick.
BadRow = Callable[[int, str], None]

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_BZIP2_MAGIC: Final = b"BZh"
_XZ_MAGIC: Final = b"\xfd7zXZ\x00"
_ZIP_MAGICS: Final = (b"PK\x03\x04", b"PK\x05\x06")
_TAR_MAGIC: Final = b"ustar"
_TAR_MAGIC_OFFSET: Final = 257
# `zstd --long=31` uses a window of 2 GiB. Memory use is bounded by the size of the content.
_ZSTD_WINDOW_LOG_MAX: Final = 31 if sys.maxsize > 2**32 else 27
# What to do with unsupported formats, by their first bytes.
_UNSUPPORTED: Final = {
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
    b"<!DOCTYPE": "a web page: did the download fail?",
    b"<html": "a web page: did the download fail?",
}
_MAGIC_BYTES: Final = 512
_BUFFER_BYTES: Final = 1 << 16

# Errors of a truncated file, and of invalid compressed data or quoting.
DAMAGE_ERRORS: Final = (
    EOFError, zlib.error, zstd.ZstdError, lzma.LZMAError, zipfile.BadZipFile, csv.Error,
)  # fmt: skip
# All errors of reading a file.
READ_ERRORS: Final = (OSError, UnicodeError, *DAMAGE_ERRORS)


def ignore_bad_row(number: int, error: str) -> None:
    """A `BadRow` that does nothing."""


class Recording(ABC):
    """Recorded ticks: a `TickSource` for a replay, in the order of the file.

    Iterating reads all ticks, any number of times. Reading raises InvalidRecording if the file
    turns out to be damaged.
    """

    # Remarks to show to users before the recording is played.
    notes: Sequence[str] = ()

    def __init__(self, path: Path, on_bad_row: BadRow = ignore_bad_row) -> None:
        self._path = path
        self._on_bad_row = on_bad_row

    @abstractmethod
    def _read(self, start: Time | None) -> Iterator[Tick]:
        """Yield the ticks in the file's order, starting at some place at or before `start`."""

    def read(self, start: Time | None = None) -> Iterator[Tick]:
        """Yield the ticks in the file's order, starting at some place at or before `start`."""
        return self._read(start)

    def __iter__(self) -> Iterator[Tick]:
        return self.read()

    @cached_property
    def span(self) -> tuple[Time, Time]:
        """The first time and the greatest time. Raises InvalidRecording if there are no ticks."""
        times = (tick.time for tick in self)
        first = next(times, None)
        if first is None:
            raise InvalidRecording(f"{self._path}: contains no ticks")
        return first, max(first, max(times, default=first))

    @property
    def first(self) -> Time:
        """The time of the first tick."""
        return self.span[0]

    @property
    def last(self) -> Time:
        """The greatest time of a tick."""
        return self.span[1]


# -- opening


@contextmanager
def open_bytes(path: Path, offset: int = 0) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file's content, and the stored file, whose position shows the progress.

    UTF-16 is converted to UTF-8. A zip archive must contain exactly one file, which is opened.

    Args:
        offset: bytes of the content to skip. Compressed content must be unpacked up to there.

    Raises:
        InvalidRecording: the format isn't supported; the message says what to do.
    """
    with path.open("rb") as stored, ExitStack() as stack:
        unpacked = stack.enter_context(_unpack(stored))
        raw = stack.enter_context(io.BufferedReader(_PromptReader(unpacked), _BUFFER_BYTES))
        content: BinaryIO = raw
        begin = raw.peek(_MAGIC_BYTES)
        if begin.startswith(_TAR_MAGIC, _TAR_MAGIC_OFFSET):
            raise InvalidRecording("a tar archive: unpack it first")
        if _utf16_encoding(begin) is not None:
            content = stack.enter_context(io.BufferedReader(_Utf8Reader(raw), _BUFFER_BYTES))
            while offset > 0 and (skipped := content.read(min(offset, _BUFFER_BYTES))):
                offset -= len(skipped)
        elif offset:
            content.seek(offset)
        yield content, stored


@contextmanager
def open_text(path: Path, offset: int = 0) -> Iterator[tuple[io.TextIOWrapper, BinaryIO]]:
    """Open a file like `open_bytes`, as lines of text. Line ends are kept."""
    with (
        open_bytes(path, offset) as (content, stored),
        io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as lines,
    ):
        yield lines, stored


def peek(path: Path, read: Callable[[BinaryIO], bytes]) -> bytes:
    """Return what `read` reads of a file's content, or nothing if that can't be read."""
    try:
        with open_bytes(path) as (content, _):
            return read(content)
    except (InvalidRecording, *READ_ERRORS):
        return b""


def describe_error(error: Exception) -> str:
    """Describe one of `READ_ERRORS`, or another error of a recording, without its file name."""
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return (
            f"not UTF-8: {error.reason} 0x{byte:02x}; convert it first, such as with"
            " iconv -f latin1 -t utf-8 (or -f gbk, whatever it is)"
        )
    return (isinstance(error, OSError) and error.strerror) or str(error)


def unpack_hint(begin: bytes) -> str | None:
    """Return what to do with data that begins like this, or None if it can be read as it is.

    This is for programs that read a pipe. For files, `open_bytes` unpacks the data.
    """
    packers = {_GZIP_MAGIC: "gzip", _ZSTD_MAGIC: "zstd", _BZIP2_MAGIC: "bzip2", _XZ_MAGIC: "xz"}
    for magic, name in packers.items():
        if begin.startswith(magic):
            return f"compressed with {name}: unpack it first, such as with {name} -dc"
    if begin.startswith(_ZIP_MAGICS):
        return "a zip archive: unpack it first, such as with unzip -p"
    return next((hint for magic, hint in _UNSUPPORTED.items() if begin.startswith(magic)), None)


@contextmanager
def _unpack(stored: BinaryIO) -> Iterator[io.BufferedIOBase]:
    begin = stored.read(_MAGIC_BYTES)
    stored.seek(0)
    for magic, hint in _UNSUPPORTED.items():
        if begin.startswith(magic):
            raise InvalidRecording(hint)
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
        with zipfile.ZipFile(stored) as archive, _open_only_member(archive) as data:
            yield data
    else:
        yield stored  # type: ignore[misc]


def _open_only_member(archive: zipfile.ZipFile) -> Any:
    members = [each for each in archive.infolist() if not each.is_dir()]
    if any(each.filename.startswith("xl/") for each in members):
        raise InvalidRecording("an Excel workbook: save it as CSV")
    # macOS adds metadata files; ignore them.
    members = [each for each in members if not each.filename.startswith("__MACOSX/")]
    if len(members) != 1:
        raise InvalidRecording(f"a zip archive of {len(members)} files: unpack it first")
    if members[0].flag_bits & 1:
        raise InvalidRecording("a zip archive with a password: unpack it first")
    try:
        return archive.open(members[0])
    except NotImplementedError as error:
        raise InvalidRecording(f"a zip archive: unpack it first ({error})") from None


class _PromptReader(io.RawIOBase):
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

    def readinto(self, buffer: Any) -> int:
        data = self._data.read1(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._data.close()
        super().close()


# -- streams of lines

LINE_BYTES_MAX: Final = 64 * 1024


class LineSplitter:
    """Splits a stream of bytes into lines, buffering at most one line.

    Args:
        bytes_max: the maximum length of a line. For a longer line, `split` yields None.
    """

    def __init__(self, bytes_max: int = LINE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._rest = b""
        self._skipping = False

    def split(self, data: bytes) -> Iterator[bytes | None]:
        """Yield the lines that this data completes. An empty `data` means the end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines, self._rest = [self._rest], b""
        for line in lines:
            if self._skipping:
                self._skipping = False
            elif len(line) > self._bytes_max:
                yield None
            else:
                yield line
        if len(self._rest) > self._bytes_max:
            if not self._skipping:
                yield None
            self._skipping, self._rest = True, b""


# -- UTF-16, which PowerShell writes to files and pipes


class Utf8Converter:
    """Converts a stream of bytes to UTF-8 if it is UTF-16."""

    def __init__(self) -> None:
        # The first bytes, until there are enough to determine the encoding.
        self._begin: bytes | None = b""
        self._decoder: codecs.IncrementalDecoder | None = None

    def convert(self, data: bytes) -> bytes:
        """Return the data as UTF-8. An empty `data` means the end. Raises InvalidTick."""
        if self._begin is not None:
            self._begin += data
            if data and len(self._begin) < 4:
                return b""
            is_end = not data
            data, self._begin = self._begin, None
            if (encoding := _utf16_encoding(data)) is not None:
                self._decoder = codecs.getincrementaldecoder(encoding)()
                if is_end:
                    return self._decode(data) + self._decode(b"")
        return data if self._decoder is None else self._decode(data)

    def _decode(self, data: bytes) -> bytes:
        assert self._decoder is not None
        try:
            return self._decoder.decode(data, final=not data).encode()
        except UnicodeError as error:
            raise InvalidTick(f"not UTF-16, although it begins so: {error}") from None


def _utf16_encoding(begin: bytes) -> str | None:
    """Return the UTF-16 encoding of a text that begins like this, or None if it isn't UTF-16."""
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if len(begin) >= 4 and begin[1] == begin[3] == 0 and begin[0] and begin[2]:
        return "utf-16-le"
    if len(begin) >= 4 and begin[0] == begin[2] == 0 and begin[1] and begin[3]:
        return "utf-16-be"
    return None


class _Utf8Reader(io.RawIOBase):
    """The content of a UTF-16 file as UTF-8."""

    def __init__(self, data: io.BufferedReader[_PromptReader]) -> None:
        self._data = data
        self._converter = Utf8Converter()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            data = self._data.read1(_BUFFER_BYTES)
            try:
                self._ready = self._converter.convert(data)
            except InvalidTick as error:
                raise EOFError(str(error)) from None
            if not data:
                break
        part = self._ready[: len(buffer)]
        self._ready = self._ready[len(part) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._data.close()
        super().close()
