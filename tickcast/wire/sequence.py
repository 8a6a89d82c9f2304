"""The sequence of a stream: numbered batches, gaps, and the tracker that joins them.

The broker numbers the ticks of each stream 1, 2, 3, … within an *epoch*. All readers of a stream
use `SequenceTracker`, so that each tick is delivered once and no loss is silent.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from tickcast.wire.encoding import unpack
from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import Tick

# Maximum number of live ticks held while a stream's history is read. If more arrive, all that are
# held are dropped. They are in history too, so they are read from there.
HELD_TICKS_MAX: Final = 100_000


def assign_seqs(ticks: list[Tick], first_seq: int) -> list[Tick]:
    """Number ticks of one stream, starting with `first_seq`."""
    for seq, tick in enumerate(ticks, first_seq):
        tick.seq = seq
    return ticks


class Batch(NamedTuple):
    """Consecutive ticks of one stream, numbered by the broker."""

    # Identifies the numbering. A later epoch compares greater.
    epoch: str
    # At least one. Their `seq` rises by one from tick to tick.
    ticks: list[Tick]
    # When the publisher sent them, in microseconds since the Unix epoch. In history, it is when the
    # store received them, accurate to the millisecond.
    published_us: int = 0

    @property
    def first_seq(self) -> int:
        """The sequence number of the first tick."""
        return self.ticks[0].seq or 0

    @classmethod
    def parse(cls, message: bytes) -> Batch:
        """Parse a pub/sub message: `epoch first_seq published_us`, a line feed, packed ticks.

        Raises InvalidTick.
        """
        header, _, payload = message.partition(b"\n")
        try:
            epoch, first_seq, published_us = header.decode("ascii").split(" ")
            batch = cls(epoch, assign_seqs(unpack(payload), int(first_seq)), int(published_us))
        except ValueError:
            raise InvalidTick(f"undecodable header: {header[:60]!a}") from None
        if not batch.ticks:
            raise InvalidTick("empty batch")
        return batch


class History(NamedTuple):
    """Some of a stream's retained batches, in order, read at one moment."""

    # The stream's position at that moment; empty and 0 if it was never published.
    epoch: str
    seq: int
    batches: list[Batch]
    # The last sequence number that the read covered. A tick up to here that is missing from
    # `batches` is not retained.
    through: int
    # Whether the read reached the end of the stream.
    complete: bool


class TimeLocation(NamedTuple):
    """Where a point in time lies within a stream."""

    # The current position of the stream; empty and 0 if it was never published.
    epoch: str
    seq: int
    # The number before the first tick that is not older than the time; `seq` if there is no such
    # tick. If that tick is no longer retained, the number before the oldest retained tick.
    before: int
    # Whether the first such tick is no longer retained.
    trimmed: bool


class GapReason(Enum):
    """Why ticks are no longer available (`docs/protocol.md`, section "Gaps")."""

    # They are older than the retained history.
    RETENTION = "retention"
    # The numbering has restarted.
    EPOCH = "epoch"
    # They were lost between the store and the server.
    BROKER = "broker"


class SequenceGap(NamedTuple):
    """Ticks of a stream that are no longer available.

    A number is None if it is not known. For a new epoch, both are None.
    """

    first_seq: int | None
    last_seq: int | None
    reason: GapReason

    @property
    def ticks(self) -> int:
        """How many ticks are missing; 0 if that is not known."""
        if self.first_seq is None or self.last_seq is None:
            return 0
        return self.last_seq - self.first_seq + 1


NEW_EPOCH: Final = SequenceGap(None, None, GapReason.EPOCH)

# What to deliver next: ticks, or a gap in place of lost ones.
SequenceEvent = Batch | SequenceGap


class SequenceTracker:
    """One stream's ticks, each exactly once and in order, with gaps in place of lost ones.

    A tracker begins *behind*: live batches are held until the caller sets the starting point
    (`start_after`) or has read the history after `seq` (`begin_repair`, then `repair`). It falls
    behind again whenever a live batch shows that ticks are missing; the caller then reads history
    again. Each method returns what to deliver now.
    """

    __slots__ = ("_held", "_held_covered", "_held_ticks", "behind", "epoch", "seq")

    def __init__(self) -> None:
        # The last tick returned or declared lost.
        self.epoch = ""
        self.seq = 0
        # True while live batches are held.
        self.behind = True
        self._held: list[Batch] = []
        self._held_ticks = 0
        # How many of the held batches the history that is being read covers.
        self._held_covered = 0

    def start_after(self, epoch: str, seq: int) -> list[SequenceEvent]:
        """Begin after `seq`; return the held ticks that follow it."""
        self.epoch, self.seq = epoch, seq
        return self._release()

    def add_batch(self, batch: Batch) -> list[SequenceEvent]:
        """Add a batch that has just been published."""
        if self.behind:
            self._hold(batch)
            return []
        if batch.epoch != self.epoch:
            if batch.epoch < self.epoch:
                return []
            if batch.first_seq > 1:
                return self._fall_behind(batch)
            return [*self._enter(batch.epoch), *self._advance(batch)]
        if batch.first_seq > self.seq + 1:
            return self._fall_behind(batch)
        return self._advance(batch)

    def begin_repair(self) -> int:
        """Return the number after which to read history. Call this before reading.

        The history covers all batches held now, so any hole left among them is final. It need not
        cover later batches, because the connection may be interrupted again meanwhile.
        """
        self._held_covered = len(self._held)
        return self.seq

    def repair(self, history: History) -> list[SequenceEvent]:
        """Add the history read after `begin_repair`, or the whole history if its epoch is new.

        The tracker stays behind unless the history is complete, which means that it reaches the
        present. Ticks that are still missing then are lost.
        """
        events: list[SequenceEvent] = []
        if history.epoch > self.epoch:
            events += self._enter(history.epoch)
        for batch in history.batches:
            events += self._declare_lost(batch.first_seq)
            events += self._advance(batch)
        if not history.complete:
            return events
        events += self._release()
        if history.epoch == self.epoch and not self.behind:
            # The store has assigned all numbers up to here, so ticks missing at the end are lost.
            events += self._declare_lost(history.seq + 1)
        return events

    def _enter(self, epoch: str) -> list[SequenceEvent]:
        """Enter a later epoch; return a notice if any tick of the last one was delivered."""
        had_numbers = self.seq > 0
        self.epoch, self.seq = epoch, 0
        return [NEW_EPOCH] if had_numbers else []

    def _declare_lost(self, next_seq: int) -> list[SequenceEvent]:
        if next_seq <= self.seq + 1:
            return []
        gap = SequenceGap(self.seq + 1, next_seq - 1, GapReason.BROKER)
        self.seq = next_seq - 1
        return [gap]

    def _release(self) -> list[SequenceEvent]:
        """Release held batches up to the first hole that history may still fill."""
        held, self._held, self._held_ticks = self._held, [], 0
        covered, self._held_covered = self._held_covered, 0
        self.behind = False
        events: list[SequenceEvent] = []
        for place, batch in enumerate(held):
            if place < covered and batch.epoch >= self.epoch:
                events += self._enter(batch.epoch) if batch.epoch > self.epoch else []
                events += self._declare_lost(batch.first_seq)
            # May fall behind, which holds this batch and all later ones again.
            events += self.add_batch(batch)
        return events

    def _fall_behind(self, batch: Batch) -> list[SequenceEvent]:
        self.behind = True
        self._hold(batch)
        return []

    def _hold(self, batch: Batch) -> None:
        if self._held_ticks + len(batch.ticks) > HELD_TICKS_MAX:
            self._held, self._held_ticks, self._held_covered = [], 0, 0
        self._held.append(batch)
        self._held_ticks += len(batch.ticks)

    def _advance(self, batch: Batch) -> list[SequenceEvent]:
        """Move past a batch; return the part of it that was not delivered yet."""
        known = self.seq + 1 - batch.first_seq
        if known >= len(batch.ticks):
            return []
        if known > 0:
            batch = batch._replace(ticks=batch.ticks[known:])
        self.seq += len(batch.ticks)
        return [batch]
