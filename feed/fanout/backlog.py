"""The ticks that a slow client has missed, kept as one tick for each stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest
from typing import Any, Final

from msgspec.structs import replace

from feed.fanout.counters import Totals
from feed.fanout.encoded_ticks import (
    FRAME_TICKS_MAX,
    EncodedTicks,
    TickBatch,
    WireFormat,
    encode_pieces,
    message_frame,
    pack_frames,
)
from tickcast.wire import messages as protocol
from tickcast.wire.actions import SlowPolicy
from tickcast.wire.sequence import NEW_EPOCH, GapReason, SequenceGap
from tickcast.wire.ticks import StreamKey, Tick

_PARTS_MAX: Final = 8
"""The maximum number of parts for a stream. There are several only if epochs change."""


class Missed:
    """The latest tick of a stream, and how many earlier ticks the client did not receive.

    Attributes:
        before: how many ticks were missed before the latest one, not counting those that the
            latest one itself replaced.
        first_seq: the sequence number of the first missed tick.
    """

    __slots__ = ("before", "first_seq", "latest", "policy", "published_us")

    def __init__(self, chunk: TickBatch, policy: SlowPolicy) -> None:
        first = chunk.ticks[0]
        self.first_seq = (first.seq or 0) - first.conflated
        self.before = 0
        self._end_with(chunk, policy)

    def is_followed_by(self, chunk: TickBatch) -> bool:
        """Whether a chunk continues in the same epoch."""
        return (chunk.ticks[0].seq or 0) > (self.latest.seq or 0)

    def add(self, chunk: TickBatch, policy: SlowPolicy) -> None:
        """Add the next chunk of the stream."""
        if self.latest.snap:
            # A snapshot is sent on request and not counted. Newer ticks replace it.
            self.first_seq = (chunk.ticks[0].seq or 0) - chunk.ticks[0].conflated
        else:
            self.before += 1 + self.latest.conflated
        self._end_with(chunk, policy)

    def _end_with(self, chunk: TickBatch, policy: SlowPolicy) -> None:
        *others, self.latest = chunk.ticks
        self.before += sum(1 + tick.conflated for tick in others)
        self.published_us = chunk.published_us[-1]
        self.policy = policy

    def to_tick(self) -> Tick:
        """The tick to send to the client."""
        if self.policy is SlowPolicy.CONFLATE and self.before:
            return replace(self.latest, conflated=self.latest.conflated + self.before)
        return self.latest

    def to_notice(self, key: StreamKey) -> list[dict[str, Any]] | None:
        """The `skipped` notice to send before the tick; None if none is needed."""
        if self.policy is SlowPolicy.CONFLATE or not self.before:
            return None
        last = (self.latest.seq or 0) - self.latest.conflated - 1
        return protocol.skipped(key, self.first_seq, last, self.before)


Part = Missed | SequenceGap


class Backlog:
    """The ticks that one client has missed, by stream.

    Its size grows with the number of streams, not of ticks. A stream has one part, or several if
    its epoch has changed meanwhile. If there are too many, the oldest are merged into a new epoch.
    """

    __slots__ = ("_form", "_parts")

    def __init__(self, form: WireFormat) -> None:
        self._form = form
        self._parts: dict[StreamKey, list[Part]] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, chunk: TickBatch, policy: SlowPolicy) -> None:
        """Add the next ticks of a stream."""
        parts = self._parts.setdefault(chunk.key, [])
        for run in _split_by_epoch(chunk):
            last = parts[-1] if parts else None
            if isinstance(last, Missed) and last.is_followed_by(run):
                last.add(run, policy)
            else:
                parts.append(Missed(run, policy))
        _bound(parts)

    def add_gap(self, key: StreamKey, gap: SequenceGap) -> None:
        """Add a gap. Ticks that were missed before it become part of the gap."""
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

    def keep(self, policy_of: Callable[[StreamKey], SlowPolicy | None], form: WireFormat) -> None:
        """Apply changed subscriptions: update the policies and drop streams that have none."""
        self._form = form
        kept = {}
        for key, parts in self._parts.items():
            if policy := policy_of(key):
                for part in parts:
                    if isinstance(part, Missed):
                        part.policy = policy
                kept[key] = parts
        self._parts = kept

    def pop_frames(self, written_us: int) -> tuple[bytes, Totals]:
        """Take frames with the missed ticks of some streams, those that have waited longest first.

        Returns the frames, and what they add to the client's totals.
        """
        keys = list(self._parts)[:FRAME_TICKS_MAX]
        queues = [[(key, part) for part in self._parts.pop(key)] for key in keys]
        released = Totals()
        frames: list[bytes] = []
        # Send the first part of every stream, then the second, and so on. This keeps the order of
        # parts within each stream and needs few frames.
        for turn in zip_longest(*queues):
            frames += self._release([each for each in turn if each], written_us, released)
        return b"".join(frames), released

    def _release(
        self, parts: Sequence[tuple[StreamKey, Part]], written_us: int, released: Totals
    ) -> list[bytes]:
        frames: list[bytes] = []
        pieces: list[EncodedTicks] = []
        for key, part in parts:
            if isinstance(part, SequenceGap):
                frames.append(message_frame(protocol.gap(key, part), self._form.encoding))
                continue
            if notice := part.to_notice(key):
                frames.append(message_frame(notice, self._form.encoding))
                released.skipped += part.before
            tick = part.to_tick()
            released.sent += 1
            released.merged += tick.conflated
            pieces += encode_pieces(
                TickBatch(key, [tick], [part.published_us]), self._form, written_us
            )
        if pieces:
            frames.append(pack_frames(pieces, self._form.encoding)[0])
        return frames


def _bound(parts: list[Part]) -> None:
    """Merge the oldest parts into one if there are too many. They belong to past epochs.

    The client receives them as a single new epoch; several would tell it no more. The notice is
    necessary: the next tick may have a lower number than the client's last one, and would otherwise
    look like a duplicate.
    """
    if len(parts) > _PARTS_MAX:
        del parts[:-_PARTS_MAX]
        parts[0] = NEW_EPOCH


def _split_by_epoch(chunk: TickBatch) -> list[TickBatch]:
    """Split a chunk wherever the numbering restarts."""
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
        TickBatch(key, ticks[start:end], published_us[start:end]) for start, end in pairwise(bounds)
    ]
