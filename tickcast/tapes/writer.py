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

# When a frame's lines exceed this size, another frame begins without waiting for a flush.
FRAME_BYTES: Final = 1024 * 1024
# Limit for the frames and gaps of one tape, so that its manifest can be read at once.
ENTRIES_MAX: Final = 200_000


class PendingFrame:
    """Lines that will become one frame."""

    __slots__ = ("first", "last", "lines", "size", "ticks")

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.size = 0
        self.ticks = 0
        self.first: int | None = None
        self.last: int | None = None

    def append(self, line: bytes) -> None:
        """Append a line."""
        self.lines.append(line)
        self.size += len(line)

    def append_tick(self, line: bytes, time: int) -> None:
        """Append the line of a tick; `time` is a plain number here and in the index."""
        self.append(line)
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

    Args:
        path: the path of the file, which must not exist.
        feed: the name of the feed.
        source: where the ticks come from.

    Raises:
        RecordingFailed: the file can't be created.
    """

    def __init__(self, path: Path, feed: str, source: str = "") -> None:
        self.path = path
        # The contents of the tape, including lines that are not flushed yet.
        self.stats = TapeStats()
        # The size of the file, and of the lines that `pop_pending` has not returned yet.
        self.stored_bytes = 0
        self.waiting_bytes = 0
        self._frames: list[FrameEntry] = []
        # The frame that lines are appended to, and those that are full and not returned yet.
        self._pending = PendingFrame()
        self._full: list[PendingFrame] = []
        # Why a write failed. Later frames would leave a hole, so they are not written either.
        self._failure: str | None = None
        with _translated_errors(path):
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            # Without this, a crash could lose the name of a file whose data is on the disk.
            _sync_directory(path.parent)
        self.append_mark(TapeHeader(version=VERSION, feed=feed, source=source))

    @property
    def is_full(self) -> bool:
        """Whether to begin another tape, because the manifest would become too big."""
        return len(self._frames) + len(self.stats.gaps) >= ENTRIES_MAX

    # -- lines

    def append_tick(
        self, tick: Tick, rx: int | None = None, gap_reason: str = "missing"
    ) -> StreamStats:
        """Append a tick, preceded by a gap if it does not follow the stream's last number.

        Returns the statistics of the tick's stream.

        Args:
            rx: when the tick was received, in nanoseconds since the Unix epoch.
            gap_reason: the reason of the gap.
        """
        stream = self.stats.stream_of(tick)
        if (missing := stream.missing_before(tick)) is not None:
            self._append_gap(stream, *missing, gap_reason, rx)
        line, content = encode_tick(tick, rx)
        self.stats.count_tick(tick, content)
        self._pending.append_tick(line, int(tick.time))
        self._count_bytes(line)
        return stream

    def append_mark(self, mark: Mark) -> None:
        """Append a line other than a tick."""
        self.stats.count_mark(mark)
        line = encode_mark(mark)
        self._pending.append(line)
        self._count_bytes(line)

    def copy_mark(self, mark: EpochMark | GapMark, gap_reason: str) -> None:
        """Append a mark from another tape, preceded by a gap if numbers before it are missing."""
        stream = self.stats.stream(mark.channel, mark.symbol)
        end = mark.seq if isinstance(mark, EpochMark) else (mark.first_seq or 0) - 1
        is_same_epoch = not isinstance(mark, EpochMark) or stream.epoch in ("", mark.epoch)
        if stream.seq is not None and is_same_epoch and end > stream.seq:
            self._append_gap(stream, stream.seq + 1, end, gap_reason, mark.rx)
        self.append_mark(mark)

    def append_position(
        self, channel: str, symbol: str, epoch: str, seq: int, rx: int | None = None
    ) -> None:
        """Append a mark with the position of a stream."""
        self.append_mark(EpochMark(channel=channel, symbol=symbol, epoch=epoch, seq=seq, rx=rx))

    def _append_gap(
        self, stream: StreamStats, first_seq: int, last_seq: int, reason: str, rx: int | None
    ) -> None:
        self.append_mark(
            GapMark(
                channel=stream.channel, symbol=stream.symbol, first_seq=first_seq,
                last_seq=last_seq, reason=reason, rx=rx,
            )
        )  # fmt: skip

    def _count_bytes(self, line: bytes) -> None:
        self.waiting_bytes += len(line)
        if self._pending.size >= FRAME_BYTES:
            self._full.append(self._pending)
            self._pending = PendingFrame()

    # -- the file

    def pop_pending(self) -> list[PendingFrame]:
        """Return the waiting frames for `write`, which another thread may call."""
        frames = self._full
        if self._pending.lines:
            frames.append(self._pending)
            self._pending = PendingFrame()
        self._full = []
        self.waiting_bytes = 0
        return frames

    def write(self, frames: list[PendingFrame]) -> None:
        """Write frames, and wait until they are on the disk.

        Raises:
            RecordingFailed: this write or an earlier one failed. Data written before is kept.
        """
        if self._failure is not None:
            raise RecordingFailed(self._failure)
        try:
            self._write(frames)
        except RecordingFailed as error:
            self._failure = str(error)
            raise

    def _write(self, frames: list[PendingFrame]) -> None:
        if not frames:
            return
        with _translated_errors(self.path):
            for frame in frames:
                stored = compress(b"".join(frame.lines))
                self._append(stored)
                self._frames.append(
                    FrameEntry(self.stored_bytes, frame.ticks, frame.first, frame.last)
                )
                self.stored_bytes += len(stored)
            os.fsync(self._file)

    def _append(self, stored: bytes) -> None:
        # Writing to a deleted file succeeds, and the data is lost when it is closed.
        if os.fstat(self._file).st_nlink == 0:
            raise RecordingFailed(f"{self.path}: has been deleted")
        rest = memoryview(stored)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            # Remove the incomplete frame, so that the file ends with the last flush.
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
            manifest = self.stats.manifest(self._frames, self.stored_bytes, complete=True)
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

    Raises RecordingFailed.
    """
    with _translated_errors(path):
        number, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(number, "wb") as file:
                file.write(data)
                file.flush()
                # mkstemp() makes a file that only its owner can read.
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
def _translated_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RecordingFailed(f"{path}: {error.strerror or error}") from None
