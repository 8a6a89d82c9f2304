"""What a client was too slow to take, kept as one tick for each stream."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from msgspec.structs import replace

from feed import protocol
from feed.counters import Totals
from feed.delivery import SlowPolicy
from feed.pieces import FRAME_TICKS_MAX, Chunk, Form, encode_pieces, message_frame, pack_frames
from feed.ticks import StreamKey, Tick


class Missed:
    """The latest tick of a stream, and how many ticks before it the client did not get.

    Attributes:
        before: ticks missed before the latest, and before those that the latest itself replaced.
        first_seq: the number of the first of them.
        older: the same of an epoch that has ended meanwhile.
    """

    __slots__ = ("before", "first_seq", "latest", "older", "policy", "published_us")

    def __init__(self, chunk: Chunk, policy: SlowPolicy, older: Missed | None = None) -> None:
        first = chunk.ticks[0]
        self.first_seq = (first.seq or 0) - first.conflated
        self.before = 0
        self.older = older
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

    def chain(self) -> list[Missed]:
        """This one and those of older epochs, the oldest first."""
        return [*(self.older.chain() if self.older else []), self]

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


class Backlog:
    """What one client has missed, by stream: its size grows with streams, not with ticks."""

    __slots__ = ("_form", "_missed")

    def __init__(self, form: Form) -> None:
        self._form = form
        self._missed: dict[StreamKey, Missed] = {}

    def __bool__(self) -> bool:
        return bool(self._missed)

    def add(self, chunk: Chunk, policy: SlowPolicy) -> None:
        """Take the next ticks of a stream."""
        for part in _split_by_epoch(chunk):
            missed = self._missed.get(chunk.key)
            if missed is not None and missed.is_followed_by(part):
                missed.add(part, policy)
            else:
                self._missed[chunk.key] = Missed(part, policy, older=missed)

    def keep(self, policy_of: Callable[[StreamKey], SlowPolicy | None], form: Form) -> None:
        """The client's wishes have changed: go by these policies, forget streams without one."""
        self._form = form
        kept = {}
        for key, missed in self._missed.items():
            if policy := policy_of(key):
                for each in missed.chain():
                    each.policy = policy
                kept[key] = missed
        self._missed = kept

    def take(self, written_us: int) -> tuple[bytes, Totals]:
        """Frames with what some streams have missed, those that have waited longest first.

        Returns them with what the client thereby got, for its totals.
        """
        keys = list(self._missed)[:FRAME_TICKS_MAX]
        entries = [(key, each) for key in keys for each in self._missed.pop(key).chain()]
        released = Totals()
        notices, pieces = [], []
        for key, missed in entries:
            if notice := missed.to_notice(key):
                notices.append(message_frame(notice, self._form.encoding))
                released.skipped += missed.before
            tick = missed.to_tick()
            released.sent += 1
            released.merged += tick.conflated
            pieces += encode_pieces(
                Chunk(key, [tick], [missed.published_us]), self._form, written_us
            )
        ticks, *_ = pack_frames(pieces, self._form.encoding)
        return b"".join([*notices, ticks]), released


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
