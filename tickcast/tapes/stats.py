"""Counts the contents of a tape line by line, for writers and readers alike. No I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from tickcast.tapes.format import EpochMark, GapMark, Mark, TapeHeader
from tickcast.tapes.manifest import FrameEntry, Manifest, StreamSummary
from tickcast.wire.ticks import Tick, channel_of
from tickcast.wire.times import Time

_FAULTS_MAX: Final = 100
# The reason of a gap after which the numbering restarts.
_EPOCH: Final = "epoch"


class StreamStats:
    """The contents of one stream of a tape."""

    __slots__ = (
        "begin", "channel", "content", "epoch", "first", "first_seq", "last", "last_seq", "seq",
        "symbol", "ticks",
    )  # fmt: skip

    def __init__(self, channel: str, symbol: str) -> None:
        self.channel = channel
        self.symbol = symbol
        # The last number that is accounted for, and its epoch; None and empty if unknown.
        self.seq: int | None = None
        self.epoch = ""
        # The epoch and the number after which the tape begins; None if unknown.
        self.begin: tuple[str, int] | None = None
        self.ticks = 0
        self.first = self.last = Time(0)
        self.first_seq: int | None = None
        self.last_seq: int | None = None
        self.content = hashlib.sha256()

    def missing_before(self, tick: Tick) -> tuple[int, int] | None:
        """Return the first and last number missing before a tick, or None."""
        if tick.seq is None or self.seq is None:
            return None
        # A conflated tick accounts for the numbers of the ticks that it replaced.
        first = tick.seq - tick.conflated
        return (self.seq + 1, first - 1) if first > self.seq + 1 else None

    def count_tick(self, tick: Tick, content: bytes) -> None:
        """Count a tick; `content` is its line for the content hash."""
        time = tick.time
        if not self.ticks:
            self.first = self.last = time
            self.first_seq = tick.seq
        elif time > self.last:
            self.last = time
        elif time < self.first:
            self.first = time
        self.ticks += 1
        if tick.seq is not None:
            self.begin_after(tick.seq - tick.conflated - 1)
            self.seq = self.last_seq = tick.seq
        self.content.update(content)

    def begin_after(self, seq: int) -> None:
        """Set the number after which the stream begins, unless it is known."""
        if self.begin is None:
            self.begin = (self.epoch, seq)

    def summary(self) -> StreamSummary:
        """Return the stream's entry in the manifest."""
        return StreamSummary(
            channel=self.channel,
            symbol=self.symbol,
            ticks=self.ticks,
            first=self.first if self.ticks else None,
            last=self.last if self.ticks else None,
            first_seq=self.first_seq,
            last_seq=self.last_seq,
            epoch=self.epoch,
            seq=self.seq,
            sha256=self.content.hexdigest(),
        )


class TapeStats:
    """The contents of all streams of a tape."""

    def __init__(self) -> None:
        # The first line, once it has been read.
        self.header: TapeHeader | None = None
        self.ticks = 0
        # The gaps that the tape states.
        self.gaps: list[GapMark] = []
        # The first ticks that are missing without a gap, or duplicate.
        self.faults: list[str] = []
        self._streams: dict[tuple[str, str], StreamStats] = {}

    def __iter__(self) -> Iterator[StreamStats]:
        return iter(self._streams.values())

    def stream(self, channel: str, symbol: str) -> StreamStats:
        """Return the statistics of a stream, and create them if necessary."""
        stream = self._streams.get((channel, symbol))
        if stream is None:
            stream = self._streams[channel, symbol] = StreamStats(channel, symbol)
        return stream

    def stream_of(self, tick: Tick) -> StreamStats:
        """Return the statistics of a tick's stream."""
        return self.stream(channel_of(tick), tick.symbol)

    def count_tick(self, tick: Tick, content: bytes) -> None:
        """Count a tick; `content` is its line for the content hash."""
        stream = self.stream_of(tick)
        if (missing := stream.missing_before(tick)) is not None:
            self._add_fault(
                stream, f"{missing[0]:,} to {missing[1]:,} are missing, and no gap says so"
            )
        elif tick.seq is not None and stream.seq is not None and tick.seq <= stream.seq:
            self._add_fault(stream, f"{tick.seq:,} follows {stream.seq:,}")
        stream.count_tick(tick, content)
        self.ticks += 1

    def count_mark(self, mark: Mark) -> None:
        """Count a line other than a tick."""
        if isinstance(mark, TapeHeader):
            self._count_header(mark)
        elif isinstance(mark, EpochMark):
            self._count_position(mark)
        else:
            self._count_gap(mark)

    def _count_header(self, header: TapeHeader) -> None:
        if self.header is None:
            self.header = header
        else:
            self._add_fault(None, "a second header")

    def _count_position(self, mark: EpochMark) -> None:
        stream = self.stream(mark.channel, mark.symbol)
        is_same_epoch = stream.epoch in ("", mark.epoch)
        if stream.seq is not None and is_same_epoch and mark.seq != stream.seq:
            self._add_fault(stream, f"an epoch mark says {mark.seq:,} after {stream.seq:,}")
        stream.epoch, stream.seq = mark.epoch, mark.seq
        stream.begin_after(mark.seq)

    def _count_gap(self, gap: GapMark) -> None:
        self.gaps.append(gap)
        stream = self.stream(gap.channel, gap.symbol)
        if gap.reason == _EPOCH:
            stream.epoch, stream.seq = "", 0
        elif gap.last_seq is None:
            stream.seq = None
        else:
            if stream.seq is not None and (gap.first_seq or 0) > stream.seq + 1:
                self._add_fault(stream, f"a gap from {gap.first_seq:,} on follows {stream.seq:,}")
            if gap.first_seq is not None:
                stream.begin_after(gap.first_seq - 1)
            stream.seq = max(stream.seq or 0, gap.last_seq)

    def _add_fault(self, stream: StreamStats | None, text: str) -> None:
        if len(self.faults) < _FAULTS_MAX:
            name = f"{stream.channel}/{stream.symbol}: " if stream else ""
            self.faults.append(name + text)

    def manifest(self, frames: list[FrameEntry], bytes_: int, complete: bool) -> Manifest:
        """Return the manifest of a tape with the lines counted so far."""
        streams = sorted(
            (stream.summary() for stream in self), key=lambda each: (each.channel, each.symbol)
        )
        filled = [each for each in streams if each.ticks]
        return Manifest(
            feed=self.header.feed if self.header else "",
            source=self.header.source if self.header else "",
            ticks=self.ticks,
            first=min((each.first for each in filled if each.first is not None), default=None),
            last=max((each.last for each in filled if each.last is not None), default=None),
            bytes=bytes_,
            complete=complete,
            content=content_hash(streams),
            streams=streams,
            gaps=self.gaps,
            frames=frames,
        )


def content_hash(streams: list[StreamSummary]) -> str:
    """Return the hash of a tape's ticks, independent of the order of different streams.

    It is the SHA-256 over one line for each stream that has ticks, sorted by channel and symbol.
    Each line consists of the SHA-256 of the stream's lines in hexadecimal digits, the channel and
    the symbol, separated by spaces.
    """
    whole = hashlib.sha256()
    for each in sorted(streams, key=lambda each: (each.channel, each.symbol)):
        if each.ticks:
            whole.update(f"{each.sha256} {each.channel} {each.symbol}\n".encode())
    return whole.hexdigest()
