"""Writes tapes: a frame for each flush, and a manifest at the end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from tickcast.tapes.format import (
    VERSION,
    EpochMark,
    GapMark,
    Mark,
    TapeHeader,
    compress,
    encode_mark,
    encode_tick,
)
from tickcast.tapes.manifest import FrameEntry, encode_manifest, manifest_path
from tickcast.tapes.stats import StreamStats, TapeStats
from tickcast.wire.errors import RecordingFailed
from tickcast.wire.ticks import Tick

BLOCK_BYTES: Final = 1024 * 1024
"""When a frame's lines exceed this size, another frame begins without waiting for a flush."""
ENTRIES_MAX: Final = 200_000
"""Limit for the frames and gaps of one tape, so that its manifest can be read at once."""


class PendingFrame:
    """Lines that will become one frame."""

    __slots__ = ("first", "last", "lines", "size", "ticks")

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.size = 0
        self.ticks = 0
        self.first: int | None = None
        self.last: int | None = None

    def add(self, line: bytes) -> None:
        """Add a line."""
        self.lines.append(line)
        self.size += len(line)

    def add_tick(self, line: bytes, time: int) -> None:
        """Add the line of a tick; `time` is a plain number here and in the index."""
        self.add(line)
        self.ticks += 1
        if self.first is None or self.last is None:
            self.first = self.last = time
        elif time > self.last:
            self.last = time
        elif time < self.first:
            self.first = time


class TapeWriter:
    """Writes one tape.

    Data is on the disk after a flush, so it survives a crash of the process or the machine. Data
    that has not been flushed is lost.

    Attributes:
        ledger: the contents of the tape, including lines that are not flushed yet.
        stored_bytes: the size of the file.
        waiting_bytes: the size of the lines that `pop_pending` has not returned yet.

    Args:
        path: the path of the file, which must not exist.
        feed: the name of the feed.
        source: where the ticks come from.

    Raises:
        RecordingFailed: the file can't be created.
    """

    def __init__(self, path: Path, feed: str, source: str = "") -> None:
        self.path = path
        self.ledger = TapeStats()
        self.stored_bytes = 0
        self.waiting_bytes = 0
        self._frames: list[FrameEntry] = []
        self._block = PendingFrame()
        self._full: list[PendingFrame] = []
        self._failure: str | None = None
        with _told(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            _sync_directory(path.parent)
        self.mark(TapeHeader(version=VERSION, feed=feed, source=source))

    @property
    def is_full(self) -> bool:
        """Whether to begin another tape, because the manifest would become too big."""
        return len(self._frames) + len(self.ledger.gaps) >= ENTRIES_MAX

    # -- lines

    def tick(self, tick: Tick, rx: int | None = None, why_missing: str = "missing") -> StreamStats:
        """Add a tick, preceded by a gap if it does not follow the stream's last number.

        Returns the ledger of the tick's stream.

        Args:
            rx: when the tick was received, in nanoseconds since the Unix epoch.
            why_missing: the reason of the gap.
        """
        stream = self.ledger.stream_of(tick)
        if (missing := stream.missing_before(tick)) is not None:
            self.mark(
                GapMark(
                    channel=stream.channel, symbol=stream.symbol, first_seq=missing[0],
                    last_seq=missing[1], reason=why_missing, rx=rx,
                )
            )  # fmt: skip
        line, content = encode_tick(tick, rx)
        self.ledger.add_tick(tick, content)
        self._block.add_tick(line, int(tick.time))
        self._added(line)
        return stream

    def mark(self, mark: Mark) -> None:
        """Add a line other than a tick."""
        self.ledger.add_mark(mark)
        line = encode_mark(mark)
        self._block.add(line)
        self._added(line)

    def follow(self, mark: EpochMark | GapMark, why_missing: str) -> None:
        """Add a mark from another tape, preceded by a gap if numbers before it are missing."""
        stream = self.ledger.stream(mark.channel, mark.symbol)
        end = mark.seq if isinstance(mark, EpochMark) else (mark.first_seq or 0) - 1
        same = not isinstance(mark, EpochMark) or stream.epoch in ("", mark.epoch)
        if stream.seq is not None and same and end > stream.seq:
            self.mark(
                GapMark(
                    channel=mark.channel, symbol=mark.symbol, first_seq=stream.seq + 1,
                    last_seq=end, reason=why_missing, rx=mark.rx,
                )
            )  # fmt: skip
        self.mark(mark)

    def place(self, channel: str, symbol: str, epoch: str, seq: int, rx: int | None = None) -> None:
        """Add a mark with the position of a stream."""
        self.mark(EpochMark(channel=channel, symbol=symbol, epoch=epoch, seq=seq, rx=rx))

    def _added(self, line: bytes) -> None:
        self.waiting_bytes += len(line)
        if self._block.size >= BLOCK_BYTES:
            self._full.append(self._block)
            self._block = PendingFrame()

    # -- the file

    def pop_pending(self) -> list[PendingFrame]:
        """Return the waiting blocks for `write`, which another thread may call."""
        blocks = self._full
        if self._block.lines:
            blocks.append(self._block)
            self._block = PendingFrame()
        self._full = []
        self.waiting_bytes = 0
        return blocks

    def write(self, blocks: list[PendingFrame]) -> None:
        """Write blocks, and wait until they are on the disk.

        Raises:
            RecordingFailed: this write or an earlier one failed. Data written before is kept.
        """
        if self._failure is not None:
            raise RecordingFailed(self._failure)
        try:
            self._write(blocks)
        except RecordingFailed as error:
            self._failure = str(error)
            raise

    def _write(self, blocks: list[PendingFrame]) -> None:
        if not blocks:
            return
        with _told(self.path):
            for block in blocks:
                frame = compress(b"".join(block.lines))
                self._append(frame)
                self._frames.append(
                    FrameEntry(self.stored_bytes, block.ticks, block.first, block.last)
                )
                self.stored_bytes += len(frame)
            os.fsync(self._file)

    def _append(self, frame: bytes) -> None:
        if os.fstat(self._file).st_nlink == 0:
            raise RecordingFailed(f"{self.path}: has been deleted")
        rest = memoryview(frame)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self.stored_bytes)
            raise

    def flush(self) -> None:
        """Write all waiting lines. Raises like `write`."""
        self.write(self.pop_pending())

    def close(self) -> None:
        """Flush, and write the manifest.

        Raises:
            RecordingFailed: writing failed. There is no manifest then, but the flushed data can be
                read without one.
        """
        try:
            self.flush()
            manifest = self.ledger.manifest(self._frames, self.stored_bytes, complete=True)
            write_atomically(manifest_path(self.path), encode_manifest(manifest))
        finally:
            self.abandon()

    def discard(self) -> None:
        """Remove the file of a tape that could not be completed."""
        self.abandon()
        with suppress(OSError):
            self.path.unlink()

    def abandon(self) -> None:
        """Close the file without writing the rest."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either complete or absent, even after a crash.

    Raises:
        RecordingFailed: it can't be written.
    """
    with _told(path):
        number, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(number, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(number, 0o644)
                os.fsync(number)
            Path(temporary).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(temporary).unlink()
            raise
        _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordingFailed(f"{path}: {error.strerror or error}") from None
