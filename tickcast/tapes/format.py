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
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct, field
from msgspec.structs import replace

from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import InvalidTape, InvalidTick, TapeNotFound
from tickcast.wire.ticks import CHANNELS, Bar, Quote, Tick, Trade, is_feed_name, is_symbol, validate
from tickcast.wire.times import Time

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# The maximum size of a frame's lines. It limits the memory used, whatever a file claims.
FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
# The maximum size of a compressed frame: zstd's bound for incompressible data.
_STORED_MAX: Final = FRAME_BYTES_MAX + FRAME_BYTES_MAX // 256 + 1024
_READ_BYTES: Final = 1024 * 1024
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
    # One byte more than allowed is enough to notice a frame that is too big, however big it is.
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
def open_for_reading(path: Path) -> Iterator[int]:
    """Open a regular file for reading, without following symbolic links; yield its descriptor.

    Raises TapeNotFound or InvalidTape.
    """
    try:
        # Without O_NONBLOCK, opening a named pipe would block.
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TapeNotFound(f"{path}: no such file") from None
    except OSError as error:
        reason = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise InvalidTape(f"{path}: {reason}") from None
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
    # The bytes of a frame that is not complete, and the number of bytes to have in memory next.
    waiting = b""
    wanted = _READ_BYTES
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
        # Without a complete frame, read more at once, up to the size that the largest may have.
        wanted = len(waiting) + _READ_BYTES if consumed else min(_STORED_MAX, 4 * wanted)


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


# The version of the format, for both the lines and the manifest.
VERSION: Final = 1
_TEXT_MAX: Final = 500


class TapeHeader(Struct, tag_field="T", tag="tape", kw_only=True, omit_defaults=True):
    """The first line, with the version of the format and what was recorded."""

    version: int = field(name="v")
    feed: str
    # Where the ticks came from, such as a URL or the name of a file.
    source: str = ""


class EpochMark(Struct, tag_field="T", tag="epoch", kw_only=True):
    """States that a stream's ticks from here on are numbered in this epoch, after this number."""

    channel: str = field(name="ch")
    symbol: str = field(name="S")
    # Empty if unknown.
    epoch: str
    # The last number that is accounted for; the stream's next tick has the number after it.
    seq: int
    # When this was received, in nanoseconds since the Unix epoch.
    rx: int | None = None


class GapMark(Struct, tag_field="T", tag="gap", kw_only=True):
    """Ticks of a stream that are missing from the tape at this position."""

    channel: str = field(name="ch")
    symbol: str = field(name="S")
    # The missing numbers. Either is None if unknown; both are if the numbering restarts.
    first_seq: int | None = field(name="from")
    last_seq: int | None = field(name="to")
    # As in a `gap` notice (`retention`, `epoch`, `broker`); `skipped` or `missing`, as the client
    # library reports them; `cut`, if part of a tape was copied.
    reason: str
    # When this was received, in nanoseconds since the Unix epoch.
    rx: int | None = None


# The lines other than ticks.
Mark = TapeHeader | EpochMark | GapMark


class TapeLine(NamedTuple):
    """The content of a line, and when it was received, in nanoseconds since the Unix epoch."""

    item: Tick | Mark
    rx: int | None


# Decoded separately: most readers don't need `rx`, and a tick has no field for it.
class _Received(Struct):
    rx: int | None = None


def _decode_time(kind: type, value: object) -> object:
    if kind is Time:
        return _read_time(value) if type(value) is str else Time.from_wire(value)
    raise NotImplementedError(f"no decoding for {kind.__name__}")


# Cached because consecutive ticks often have the same time.
_read_time: Final = lru_cache(maxsize=64)(Time.parse)


_DECODER: Final = msgspec.json.Decoder(Tick | Mark, dec_hook=_decode_time)
_RECEIVED: Final = msgspec.json.Decoder(_Received)
# Where the part of a line ends that counts for the content hash.
_SEQ: Final = b',"seq":'
_FLOATS: Final[dict[type[Tick], tuple[str, ...]]] = {
    Trade: ("price", "size"),
    Quote: ("bid_price", "bid_size", "ask_price", "ask_size"),
    Bar: ("open", "high", "low", "close", "volume", "vwap"),
}


def encode_tick(tick: Tick, rx: int | None) -> tuple[bytes, bytes]:
    """Encode a tick as a line of a tape, and as the line for the content hash.

    The second is the first without `seq` and all that follows it. No text in a tick can be mistaken
    for the key `seq`, because quotes in strings are escaped.
    """
    line = encode(_with_floats(tick), Encoding.JSON)
    end = line.rfind(_SEQ)
    if end >= 0:
        content = line[:end] + b"}\n"
    elif tick.snap or tick.conflated:
        content = encode_tick(replace(tick, snap=False, conflated=0), None)[1]
    else:
        content = line + b"\n"
    return (line + b"\n" if rx is None else b'%b,"rx":%d}\n' % (line[:-1], rx)), content


def _with_floats(tick: Tick) -> Tick:
    """Convert prices and amounts to floats; an integer would be encoded as 1, not 1.0."""
    for name in _FLOATS[type(tick)]:
        if type(getattr(tick, name)) is not float:
            names = _FLOATS[type(tick)]
            return replace(tick, **{each: float(getattr(tick, each)) for each in names})
    return tick


def encode_mark(mark: Mark) -> bytes:
    """Encode a line other than a tick."""
    return msgspec.json.encode(mark) + b"\n"


def decode_line(line: bytes) -> Tick | Mark:
    """Decode one line.

    Raises:
        InvalidTape: it is not a line of a tape, or its tick breaks the rules for ticks.
    """
    try:
        item: Tick | Mark = _DECODER.decode(line)
        if isinstance(item, Tick):
            validate(item)
            if item.seq is not None and not 0 < item.seq < 2**63:
                raise ValueError("seq is out of range")
        else:
            _check_mark(item)
    except (msgspec.MsgspecError, ValueError, RecursionError, InvalidTick) as error:
        raise InvalidTape(f"{line[:40]!a}…: {error}") from None
    return item


def received_at(line: bytes) -> int | None:
    """Return the `rx` of a line that `decode_line` has accepted. Raises InvalidTape."""
    try:
        return _RECEIVED.decode(line).rx
    except msgspec.MsgspecError as error:
        raise InvalidTape(f"{line[:40]!a}…: {error}") from None


def _check_mark(mark: Mark) -> None:
    if isinstance(mark, TapeHeader):
        if mark.version != VERSION:
            raise ValueError(f"unknown version {mark.version} of the format; this is {VERSION}")
        if not is_feed_name(mark.feed) or not _is_text(mark.source):
            raise ValueError("invalid feed or source")
        return
    if mark.channel not in CHANNELS or not is_symbol(mark.symbol):
        raise ValueError("invalid ch or S")
    if isinstance(mark, EpochMark):
        if not (_is_text(mark.epoch) and 0 <= mark.seq < 2**63):
            raise ValueError("invalid epoch or seq")
        return
    first, last = mark.first_seq, mark.last_seq
    if not _is_text(mark.reason) or any(
        n is not None and not 0 <= n < 2**63 for n in (first, last)
    ):
        raise ValueError("invalid from, to or reason")
    if first is not None and last is not None and first > last:
        raise ValueError("the gap ends before it begins")


def _is_text(text: str) -> bool:
    return len(text) <= _TEXT_MAX and text.isprintable()
