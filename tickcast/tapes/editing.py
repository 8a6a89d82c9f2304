"""Cuts and merges tapes."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from tickcast.tapes.format import EpochMark, GapMark, TapeHeader, TapeLine
from tickcast.tapes.manifest import number_of
from tickcast.tapes.tape import Tape
from tickcast.tapes.writer import FRAME_BYTES, TapeWriter
from tickcast.wire.subscriptions import Coverage
from tickcast.wire.ticks import Tick, channel_of
from tickcast.wire.times import Time

# Reasons of gaps: ticks left out by a cut, a restart of the numbering, ticks missing before.
_CUT: Final = "cut"
_EPOCH: Final = "epoch"
_MISSING: Final = "missing"
_Stream = tuple[str, str]


def cut(
    tape: Tape,
    writer: TapeWriter,
    begin: Time | None = None,
    end: Time | None = None,
    coverage: Coverage | None = None,
) -> None:
    """Copy part of a tape: all ticks from `begin` on and before `end`.

    Numbers, times of receipt and gaps within the part are kept. If times of a stream fall, ticks
    between two copied ones may be left out; they become a gap with the reason `cut`.

    Raises InvalidTape or RecordingFailed.
    """
    part = _Part(writer)
    for item, rx in tape.records(coverage):
        if isinstance(item, EpochMark | GapMark):
            part.add_mark(item)
        elif not isinstance(item, TapeHeader) and (
            (begin is None or item.time >= begin) and (end is None or item.time < end)
        ):
            part.add_tick(item, rx)
            _flush_if_full(writer)


class _Part:
    """Copies part of a tape, and keeps track of where its streams are."""

    def __init__(self, writer: TapeWriter) -> None:
        self._writer = writer
        # Streams with a tick in the part, their current epochs, and marks for their next tick.
        self._begun: set[_Stream] = set()
        self._epochs: dict[_Stream, str] = {}
        self._marks: dict[_Stream, list[EpochMark | GapMark]] = {}

    def add_mark(self, mark: EpochMark | GapMark) -> None:
        """Keep a mark until the stream's next tick in the part, if there is one."""
        stream = (mark.channel, mark.symbol)
        if isinstance(mark, EpochMark):
            self._epochs[stream] = mark.epoch
        elif mark.reason == _EPOCH:
            self._epochs[stream] = ""
        if stream in self._begun:
            self._marks.setdefault(stream, []).append(mark)

    def add_tick(self, tick: Tick, rx: int | None) -> None:
        """Copy a tick, preceded by the marks that apply to it."""
        stream = (channel_of(tick), tick.symbol)
        if stream in self._begun:
            for mark in self._marks.pop(stream, ()):
                self._writer.copy_mark(mark, _CUT)
        elif tick.seq is not None:
            before = max(0, tick.seq - tick.conflated - 1)
            self._writer.append_position(*stream, self._epochs.get(stream, ""), before, rx)
        self._begun.add(stream)
        self._writer.append_tick(tick, rx, _CUT)


class _SortedLine(NamedTuple):
    """A line of a merged tape, and the time by which it is sorted."""

    time: int
    line: TapeLine


def merge(tapes: Sequence[Tape], writer: TapeWriter) -> None:
    """Merge several tapes into one, by the times of their ticks.

    The order is stable: each tape keeps its order, even where its times fall, and for equal times
    the tape that is named first comes first. Tapes of one recording that follow each other count as
    one. A stream on tapes that do not follow each other loses its numbers, because they come from
    different numberings.

    Raises InvalidTape or RecordingFailed.
    """
    chains = _chains(tapes)
    # In how many chains each stream occurs.
    chains_with = Counter(stream for chain in chains for stream in _streams_of(*chain))
    for item in heapq.merge(*map(_read, chains), key=lambda item: item.time):
        _copy(item.line, writer, chains_with)
        _flush_if_full(writer)


def _copy(line: TapeLine, writer: TapeWriter, chains_with: Counter[_Stream]) -> None:
    item, rx = line
    if isinstance(item, EpochMark | GapMark):
        if chains_with[item.channel, item.symbol] == 1:
            writer.copy_mark(item, _MISSING)
    elif isinstance(item, TapeHeader):
        return
    elif chains_with[channel_of(item), item.symbol] == 1:
        writer.append_tick(item, rx)
    else:
        # Numbers of different numberings would contradict each other.
        writer.append_tick(replace(item, seq=None, conflated=0), rx)


def _read(chain: Sequence[Tape]) -> Iterator[_SortedLine]:
    """Read tapes one after the other. A time that falls is replaced by the greatest so far."""
    time = -(2**63)
    streams = _streams_of(*chain)
    for tape in chain:
        for line in tape.records():
            item = line.item
            if isinstance(item, EpochMark | GapMark):
                # For other streams, this tape only says where they are.
                if (item.channel, item.symbol) in streams:
                    yield _SortedLine(time, line)
            elif not isinstance(item, TapeHeader):
                time = max(time, item.time)
                yield _SortedLine(time, line)


def _streams_of(*tapes: Tape) -> set[_Stream]:
    streams = (each for tape in tapes for each in tape.manifest.streams)
    return {(each.channel, each.symbol) for each in streams if each.ticks}


def _chains(tapes: Sequence[Tape]) -> list[list[Tape]]:
    """Group tapes that follow each other."""
    chains: list[list[Tape]] = []
    for tape in tapes:
        for chain in chains:
            if _follows(chain[-1], tape):
                chain.append(tape)
                break
        else:
            chains.append([tape])
    return chains


def _follows(before: Tape, tape: Tape) -> bool:
    """Whether a tape follows another, by their names or by the numbers of all shared streams."""
    feed = tape.manifest.feed
    if before.manifest.feed != feed:
        return False
    first, second = number_of(before.id, feed), number_of(tape.id, feed)
    if first is not None and second is not None and before.path.parent == tape.path.parent:
        return first < second
    ends = {(each.channel, each.symbol): each for each in before.manifest.streams}
    shared = [
        (ends[each.channel, each.symbol], each)
        for each in tape.manifest.streams
        if (each.channel, each.symbol) in ends
    ]
    return bool(shared) and all(
        end.last_seq is not None
        and each.first_seq is not None
        and end.epoch == each.epoch
        and end.last_seq < each.first_seq
        for end, each in shared
    )


def _flush_if_full(writer: TapeWriter) -> None:
    if writer.waiting_bytes > FRAME_BYTES:
        writer.flush()
