"""Reads tapes."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from pathlib import Path
from typing import Final

from tickcast.tapes.format import (
    Frame,
    Mark,
    TapeHeader,
    TapeLine,
    decode_line,
    decompress,
    encode_tick,
    frames_at,
    open_for_reading,
    received_at,
)
from tickcast.tapes.manifest import (
    MANIFEST_BYTES_MAX,
    FrameEntry,
    Manifest,
    decode_manifest,
    id_of,
    manifest_path,
)
from tickcast.tapes.stats import TapeStats
from tickcast.wire.errors import InvalidTape, TapeNotFound
from tickcast.wire.subscriptions import Coverage
from tickcast.wire.ticks import StreamKey, Tick, channel_of
from tickcast.wire.times import Time

# Limit for the frames and gaps of a tape without a manifest, which are held in memory.
_ENTRIES_MAX: Final = 1_000_000
_NEVER: Final = -(2**63)


class Tape:
    """A recorded tape. Several readers can use it at once, even while it is being written."""

    def __init__(self, path: Path, manifest: Manifest, torn_bytes: int = 0) -> None:
        self.path = path
        # The file name without suffixes.
        self.id = id_of(path)
        # The contents, determined by reading the tape if it has no manifest.
        self.manifest = manifest
        # The size of the incomplete end that a killed writer left in the file.
        self.torn_bytes = torn_bytes

    @classmethod
    def open(cls, path: Path) -> Tape:
        """Open a tape. A tape without a manifest is read through once.

        Raises:
            TapeNotFound: there is no such file.
            InvalidTape: the file is not a tape, is damaged, or does not match its manifest.
        """
        with open_for_reading(path) as number:
            size = os.fstat(number).st_size
            manifest = read_manifest(path)
            if manifest is None:
                scan = TapeScan(path, number)
                return cls(path, scan.manifest, size - scan.manifest.bytes)
        torn = size - manifest.bytes
        # Only a tape whose writer was killed or is still writing may be longer than its manifest.
        if torn and (manifest.complete or torn < 0):
            raise InvalidTape(f"{path}: has {size:,} bytes, but {manifest.bytes:,} in its manifest")
        return cls(path, manifest, torn)

    @property
    def first(self) -> Time:
        """The least time of its ticks; 0 without ticks."""
        return self.manifest.first or Time(0)

    @property
    def last(self) -> Time:
        """The greatest time of its ticks; 0 without ticks."""
        return self.manifest.last or Time(0)

    def read(self, start: Time | None = None, coverage: Coverage | None = None) -> Iterator[Tick]:
        """Read the ticks in their order on the tape, with at most one frame in memory.

        Args:
            start: begin each stream with its first tick at or after this time. As with `start` of a
                subscription, all later ticks of the stream follow, whatever their times.
            coverage: read only these streams.

        Raises:
            InvalidTape: the tape is damaged, or has changed.
        """
        wanted = _Selection(start, coverage).includes
        for line in self._lines_from(start):
            item = decode_line(line)
            if isinstance(item, Tick) and wanted(item):
                yield item

    def records(self, coverage: Coverage | None = None) -> Iterator[TapeLine]:
        """Read all lines like `read`, including those that are not ticks."""
        wanted = _Selection(None, coverage).includes
        for line in self._lines_from(None):
            item = decode_line(line)
            if wanted(item):
                yield TapeLine(item, received_at(line))

    def _lines_from(self, start: Time | None) -> Iterator[bytes]:
        frames = self.frames_from(start)
        return self._lines(frames[0].offset if frames else self.manifest.bytes)

    def frames_from(self, start: Time | None) -> list[FrameEntry]:
        """Return the frames from the first one on that may contain a tick at or after a time.

        Times on a tape may fall, but the greatest time so far does not: see "The time index" in
        docs/architecture.md.
        """
        frames = self.manifest.frames
        if start is None:
            return frames
        # A frame without ticks has no times; it must not hide the frames before it.
        times = (_NEVER if each.last is None else each.last for each in frames)
        return frames[bisect_left(list(accumulate(times, max)), start) :]

    def ticks_of(self, frame: FrameEntry) -> list[Tick]:
        """Read the ticks of one frame in their order.

        Raises:
            InvalidTape: the tape is damaged, or has changed.
        """
        items = map(decode_line, self._lines(frame.offset, 1))
        return [item for item in items if isinstance(item, Tick)]

    def _lines(self, offset: int, frames: int | None = None) -> Iterator[bytes]:
        """Read the lines of a number of frames, or of all frames, from an offset on."""
        began = offset
        try:
            with open_for_reading(self.path) as number:
                for frame in islice(frames_at(number, offset, self.manifest.bytes), frames):
                    if frame.offset != offset:
                        break
                    yield from decompress(frame)
                    offset += len(frame.stored)
        except OSError as error:
            raise InvalidTape(f"{self.path}: {error.strerror}") from None
        except InvalidTape as error:
            raise InvalidTape(f"{self.path}: {error}") from None
        if offset == began if frames else offset != self.manifest.bytes:
            raise InvalidTape(f"{self.path}: the frame at byte {offset:,} is damaged or missing")


class _Selection:
    """Selects the lines of a tape to read."""

    def __init__(self, start: Time | None, coverage: Coverage | None) -> None:
        self._start = start
        self._coverage = coverage
        # Streams that have reached the start. All of their later ticks follow.
        self._begun: set[tuple[str, str]] = set()
        # Answers of `coverage`, which is slow compared with a lookup for each tick.
        self._covered: dict[tuple[str, str], bool] = {}

    def includes(self, item: Tick | Mark) -> bool:
        if (self._start is None and self._coverage is None) or isinstance(item, TapeHeader):
            return True
        channel = channel_of(item) if isinstance(item, Tick) else item.channel
        stream = (channel, item.symbol)
        if self._coverage is not None and not self._covers(stream, self._coverage):
            return False
        if self._start is None or not isinstance(item, Tick) or stream in self._begun:
            return True
        if item.time < self._start:
            return False
        self._begun.add(stream)
        return True

    def _covers(self, stream: tuple[str, str], coverage: Coverage) -> bool:
        known = self._covered.get(stream)
        if known is None:
            known = self._covered[stream] = coverage.covers(StreamKey("", *stream))
        return known


class TapeScan:
    """Reads through the whole frames of a tape's file.

    Raises InvalidTape if the file is not a tape.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.stats = TapeStats()
        self._frames: list[FrameEntry] = []
        self._bytes = 0
        try:
            for frame in frames_at(number, 0):
                # After a machine crash, a frame may be whole and still contain garbage.
                try:
                    lines = decompress(frame)
                except InvalidTape:
                    break
                self._count(frame, lines)
        except OSError as error:
            raise InvalidTape(f"{path}: {error.strerror}") from None
        except InvalidTape as error:
            raise InvalidTape(f"{path}: {error}") from None
        if self.stats.header is None:
            is_empty = os.fstat(number).st_size == 0
            raise InvalidTape(
                f"{path}: {'empty: nothing was flushed' if is_empty else 'not a tape'}"
            )

    def _count(self, frame: Frame, lines: Iterable[bytes]) -> None:
        times: list[int] = []
        for line in lines:
            item = decode_line(line)
            if isinstance(item, Mark):
                self.stats.count_mark(item)
                continue
            if self.stats.header is None:
                raise InvalidTape("does not begin with the header of a tape")
            # The hash is over the line as it is written now, without `rx`.
            self.stats.count_tick(item, encode_tick(item, None)[1])
            times.append(int(item.time))
        self._frames.append(
            FrameEntry(frame.offset, len(times), min(times, default=None), max(times, default=None))
        )
        self._bytes += len(frame.stored)
        if len(self._frames) + len(self.stats.gaps) > _ENTRIES_MAX:
            raise InvalidTape(f"more than {_ENTRIES_MAX:,} frames and gaps")

    @property
    def manifest(self) -> Manifest:
        """Return the manifest that the writer would have written."""
        return self.stats.manifest(self._frames, self._bytes, complete=False)


def read_manifest(tape: Path) -> Manifest | None:
    """Read the manifest of a tape, or return None if there is none. Raises InvalidTape."""
    path = manifest_path(tape)
    try:
        with open_for_reading(path) as number:
            if os.fstat(number).st_size > MANIFEST_BYTES_MAX:
                raise InvalidTape(f"{path}: too big for a manifest")
            with os.fdopen(os.dup(number), "rb") as file:
                return decode_manifest(file.read(MANIFEST_BYTES_MAX))
    except TapeNotFound:
        return None
    except OSError as error:
        raise InvalidTape(f"{path}: {error.strerror}") from None
