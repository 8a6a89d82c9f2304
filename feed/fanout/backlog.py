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
    encode_batch,
    message_frame,
    pack_frames,
)
from tickcast.wire import messages
from tickcast.wire.actions import SlowPolicy
from tickcast.wire.sequence import NEW_EPOCH, GapReason, SequenceGap
from tickcast.wire.ticks import StreamKey, Tick

# A stream has more than one part only if its epoch changes while the client does not read.
_PARTS_MAX: Final = 8

# The policy of a stream, or None if the client does not hold it.
PolicyOf = Callable[[StreamKey], SlowPolicy | None]


class MissedTicks:
    """The latest tick of a stream, and how many earlier ticks the client did not receive."""

    __slots__ = ("before", "first_seq", "latest", "policy", "published_us")

    def __init__(self, batch: TickBatch, policy: SlowPolicy) -> None:
        first = batch.ticks[0]
        # The number of the first missed tick.
        self.first_seq = (first.seq or 0) - first.conflated
        # How many ticks were missed before the latest one, which also counts those that it
        # replaced itself.
        self.before = 0
        self._end_with(batch, policy)

    def is_followed_by(self, batch: TickBatch) -> bool:
        """Whether a batch continues in the same epoch."""
        return (batch.ticks[0].seq or 0) > (self.latest.seq or 0)

    def append(self, batch: TickBatch, policy: SlowPolicy) -> None:
        """Add the next ticks of the stream."""
        if self.latest.snap:
            # A snapshot is sent on request and not counted. Newer ticks replace it.
            self.first_seq = (batch.ticks[0].seq or 0) - batch.ticks[0].conflated
        else:
            self.before += 1 + self.latest.conflated
        self._end_with(batch, policy)

    def _end_with(self, batch: TickBatch, policy: SlowPolicy) -> None:
        *others, self.latest = batch.ticks
        self.before += sum(1 + tick.conflated for tick in others)
        self.published_us = batch.published_us[-1]
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
        return messages.skipped(key, self.first_seq, last, self.before)


class Backlog:
    """The ticks that one client has missed, by stream.

    Its size grows with the number of streams, not of ticks.
    """

    __slots__ = ("_parts", "_wire_format")

    def __init__(self, wire_format: WireFormat) -> None:
        self._wire_format = wire_format
        # One part for each epoch of a stream, with the gaps between them. The stream that has
        # waited longest comes first.
        self._parts: dict[StreamKey, list[MissedTicks | SequenceGap]] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add_batch(self, batch: TickBatch, policy: SlowPolicy) -> None:
        """Add the next ticks of a stream."""
        parts = self._parts.setdefault(batch.key, [])
        for run in _split_by_epoch(batch):
            last = parts[-1] if parts else None
            if isinstance(last, MissedTicks) and last.is_followed_by(run):
                last.append(run, policy)
            else:
                parts.append(MissedTicks(run, policy))
        _limit(parts)

    def add_gap(self, key: StreamKey, gap: SequenceGap) -> None:
        """Add a gap. Ticks that were missed before it become part of the gap."""
        parts = self._parts.setdefault(key, [])
        while parts and gap.reason is not GapReason.EPOCH:
            last = parts[-1]
            if isinstance(last, MissedTicks) and last.latest.snap:
                first_seq = gap.first_seq
            elif last.first_seq is None:
                break
            else:
                first_seq = last.first_seq
            gap = gap._replace(first_seq=first_seq)
            parts.pop()
        parts.append(gap)
        _limit(parts)

    def change_subscriptions(self, policy_of: PolicyOf, wire_format: WireFormat) -> None:
        """Update the policies, and drop the streams that the client no longer holds."""
        self._wire_format = wire_format
        kept = {}
        for key, parts in self._parts.items():
            if policy := policy_of(key):
                for part in parts:
                    if isinstance(part, MissedTicks):
                        part.policy = policy
                kept[key] = parts
        self._parts = kept

    def pop_frames(self, written_us: int) -> tuple[bytes, Totals]:
        """Remove and encode the ticks of the streams that have waited longest.

        Returns the frames, and what they add to the client's totals.
        """
        keys = list(self._parts)[:FRAME_TICKS_MAX]
        queues = [[(key, part) for part in self._parts.pop(key)] for key in keys]
        totals = Totals()
        frames: list[bytes] = []
        # Send the first part of every stream, then the second, and so on. This keeps the order of
        # parts within each stream and needs few frames.
        for row in zip_longest(*queues):
            frames += self._encode([entry for entry in row if entry], written_us, totals)
        return b"".join(frames), totals

    def _encode(
        self,
        parts: Sequence[tuple[StreamKey, MissedTicks | SequenceGap]],
        written_us: int,
        totals: Totals,
    ) -> list[bytes]:
        wire_format = self._wire_format
        frames: list[bytes] = []
        encoded: list[EncodedTicks] = []
        for key, part in parts:
            if isinstance(part, SequenceGap):
                frames.append(message_frame(messages.gap(key, part), wire_format.encoding))
                continue
            if notice := part.to_notice(key):
                frames.append(message_frame(notice, wire_format.encoding))
                totals.skipped += part.before
            tick = part.to_tick()
            totals.sent += 1
            totals.merged += tick.conflated
            batch = TickBatch(key, [tick], [part.published_us])
            encoded += encode_batch(batch, wire_format, written_us)
        if encoded:
            frames.append(pack_frames(encoded, wire_format.encoding)[0])
        return frames


def _limit(parts: list[MissedTicks | SequenceGap]) -> None:
    """Replace the oldest parts, which belong to past epochs, by one notice if there are too many.

    The notice is necessary: the next tick may have a lower number than the client's last one, and
    would otherwise look like a duplicate. Several notices would say no more than one.
    """
    if len(parts) > _PARTS_MAX:
        del parts[:-_PARTS_MAX]
        parts[0] = NEW_EPOCH


def _split_by_epoch(batch: TickBatch) -> list[TickBatch]:
    """Split a batch wherever the numbering restarts."""
    key, ticks, published_us = batch
    starts = [
        index
        for index in range(1, len(ticks))
        if (ticks[index].seq or 0) <= (ticks[index - 1].seq or 0)
    ]
    if not starts:
        return [batch]
    return [
        TickBatch(key, ticks[start:end], published_us[start:end])
        for start, end in pairwise([0, *starts, len(ticks)])
    ]
