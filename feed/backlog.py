"""What a client was too slow to take, kept as one tick for each stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest
from typing import Any, Final

from msgspec.structs import replace

from feed import protocol
from feed.batch import NEW_EPOCH, Gap, GapReason
from feed.counters import Totals
from feed.delivery import SlowPolicy
from feed.pieces import (
    FRAME_TICKS_MAX,
    Chunk,
    Form,
    Piece,
    encode_pieces,
    message_frame,
    pack_frames,
)
from feed.ticks import StreamKey, Tick

_PARTS_MAX: Final = 8
"""What is kept of a stream at the most, where one epoch follows the other."""


class Missed:
    """The latest tick of a stream, and how many ticks before it the client did not get.

    Attributes:
        before: ticks missed before the latest, and before those that the latest itself replaced.
        first_seq: the number of the first of them.
    """

    __slots__ = ("before", "first_seq", "latest", "policy", "published_us")

    def __init__(self, chunk: Chunk, policy: SlowPolicy) -> None:
        first = chunk.ticks[0]
        self.first_seq = (first.seq or 0) - first.conflated
        self.before = 0
        self._end_with(chunk, policy)

    def is_followed_by(self, chunk: Chunk) -> bool:
        """Whether a chunk goes on in the same epoch."""
        return (chunk.ticks[0].seq or 0) > (self.latest.seq or 0)

    def add(self, chunk: Chunk, policy: SlowPolicy) -> None:
        """Take what came next."""
        if self.latest.snap:
            # Sent on request and not counted: what has come since takes its place.
            self.first_seq = (chunk.ticks[0].seq or 0) - chunk.ticks[0].conflated
        else:
            self.before += 1 + self.latest.conflated
        self._end_with(chunk, policy)

    def _end_with(self, chunk: Chunk, policy: SlowPolicy) -> None:
        *others, self.latest = chunk.ticks
        self.before += sum(1 + tick.conflated for tick in others)
        self.published_us = chunk.published_us[-1]
        self.policy = policy

    def to_tick(self) -> Tick:
        """The tick that the client gets."""
        if self.policy is SlowPolicy.CONFLATE and self.before:
            return replace(self.latest, conflated=self.latest.conflated + self.before)
        return self.latest

    def to_notice(self, key: StreamKey) -> list[dict[str, Any]] | None:
        """What to say before the tick about those before it."""
        if self.policy is SlowPolicy.CONFLATE or not self.before:
            return None
        last = (self.latest.seq or 0) - self.latest.conflated - 1
        return protocol.skipped(key, self.first_seq, last, self.before)


Part = Missed | Gap


class Backlog:
    """What one client has missed, by stream: its size grows with streams, not with ticks.

    A stream has one part, or more where its epoch has changed meanwhile. Of many epochs the first
    ones are told as one.
    """

    __slots__ = ("_form", "_parts")

    def __init__(self, form: Form) -> None:
        self._form = form
        self._parts: dict[StreamKey, list[Part]] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, chunk: Chunk, policy: SlowPolicy) -> None:
        """Take the next ticks of a stream."""
        parts = self._parts.setdefault(chunk.key, [])
        for run in _split_by_epoch(chunk):
            last = parts[-1] if parts else None
            if isinstance(last, Missed) and last.is_followed_by(run):
                last.add(run, policy)
            else:
                parts.append(Missed(run, policy))
        _bound(parts)

    def add_gap(self, key: StreamKey, gap: Gap) -> None:
        """Take word of a gap. What was missed before it becomes a part of it."""
        parts = self._parts.setdefault(key, [])
        while parts and gap.reason is not GapReason.EPOCH:
            last = parts[-1]
            if isinstance(last, Missed) and last.latest.snap:
                first_seq = gap.first_seq
            elif last.first_seq is None:
                break
            else:
                first_seq = last.first_seq
            gap = gap._replace(first_seq=first_seq)
            parts.pop()
        parts.append(gap)
        _bound(parts)

    def keep(self, policy_of: Callable[[StreamKey], SlowPolicy | None], form: Form) -> None:
        """The client's wishes have changed: go by these policies, forget streams without one."""
        self._form = form
        kept = {}
        for key, parts in self._parts.items():
            if policy := policy_of(key):
                for part in parts:
                    if isinstance(part, Missed):
                        part.policy = policy
                kept[key] = parts
        self._parts = kept

    def take(self, written_us: int) -> tuple[bytes, Totals]:
        """Frames with what some streams have missed, those that have waited longest first.

        Returns them with what the client thereby got, for its totals.
        """
        keys = list(self._parts)[:FRAME_TICKS_MAX]
        queues = [[(key, part) for part in self._parts.pop(key)] for key in keys]
        released = Totals()
        frames: list[bytes] = []
        # Each stream's first part, then each one's second: their order counts, and frames are few.
        for turn in zip_longest(*queues):
            frames += self._release([each for each in turn if each], written_us, released)
        return b"".join(frames), released

    def _release(
        self, parts: Sequence[tuple[StreamKey, Part]], written_us: int, released: Totals
    ) -> list[bytes]:
        frames: list[bytes] = []
        pieces: list[Piece] = []
        for key, part in parts:
            if isinstance(part, Gap):
                frames.append(message_frame(protocol.gap(key, part), self._form.encoding))
                continue
            if notice := part.to_notice(key):
                frames.append(message_frame(notice, self._form.encoding))
                released.skipped += part.before
            tick = part.to_tick()
            released.sent += 1
            released.merged += tick.conflated
            pieces += encode_pieces(Chunk(key, [tick], [part.published_us]), self._form, written_us)
        if pieces:
            frames.append(pack_frames(pieces, self._form.encoding)[0])
        return frames


def _bound(parts: list[Part]) -> None:
    """Drop the oldest of too many parts: all of them are from epochs that have ended.

    That is told as one new epoch, which is all that a client can make of several. Else the next
    tick, whose number may be lower than what the client has, would look like a repetition.
    """
    if len(parts) > _PARTS_MAX:
        del parts[:-_PARTS_MAX]
        parts[0] = NEW_EPOCH


def _split_by_epoch(chunk: Chunk) -> list[Chunk]:
    """A chunk as several where the numbering restarts within it."""
    key, ticks, published_us = chunk
    starts = [
        position
        for position in range(1, len(ticks))
        if (ticks[position].seq or 0) <= (ticks[position - 1].seq or 0)
    ]
    if not starts:
        return [chunk]
    bounds = [0, *starts, len(ticks)]
    return [
        Chunk(key, ticks[start:end], published_us[start:end]) for start, end in pairwise(bounds)
    ]
