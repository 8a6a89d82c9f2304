"""Batches of numbered ticks, gaps, and the sequence of one stream without gaps or repeats."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from tickcast.wire.encoding import unpack
from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import Tick, assign_seqs

HELD_TICKS_MAX: Final = 100_000
"""Maximum live ticks held while a stream's history is read; history has those that are dropped."""


class Batch(NamedTuple):
    """Consecutive ticks of one stream, numbered by the broker.

    Attributes:
        epoch: identifies the numbering. A later epoch compares greater.
        ticks: at least one. Their `seq` rises by one from tick to tick.
        published_us: when the publisher sent them, in microseconds since the Unix epoch. In
            history, it is when the store received them, accurate to the millisecond.
    """

    epoch: str
    ticks: list[Tick]
    published_us: int = 0

    @property
    def first_seq(self) -> int:
        """The sequence number of the first tick."""
        return self.ticks[0].seq or 0

    @classmethod
    def parse(cls, message: bytes) -> Batch:
        """Parse a pub/sub message: `epoch first_seq published_us`, a line feed, packed ticks.

        Raises:
            InvalidTick: the message does not have this form.
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
    """Some of a stream's retained batches, in order, read at one moment.

    Attributes:
        epoch, seq: the stream's position at that moment; empty and 0 if it was never published.
        through: the last sequence number that the read covered. A tick up to here that is missing
            from `batches` is not retained.
        complete: whether the read reached the end of the stream.
    """

    epoch: str
    seq: int
    batches: list[Batch]
    through: int
    complete: bool


class TimeLocation(NamedTuple):
    """The position of a point in time within a stream.

    Attributes:
        epoch, seq: the current position of the stream; empty and 0 if it was never published.
        before: the sequence number before the first tick that is not older than the time. It is
            `seq` if there is no such tick. If that tick is no longer retained, it is the number
            before the oldest retained tick.
        trimmed: whether the first such tick is no longer retained.
    """

    epoch: str
    seq: int
    before: int
    trimmed: bool


class GapReason(Enum):
    """Why ticks are no longer available (`docs/protocol.md`, section "Gaps")."""

    RETENTION = "retention"
    """They are older than the retained history."""
    EPOCH = "epoch"
    """The numbering has restarted."""
    BROKER = "broker"
    """They were lost between the store and the server."""


class SequenceGap(NamedTuple):
    """Ticks of a stream, from `first_seq` to `last_seq`, that are no longer available.

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


SequenceEvent = Batch | SequenceGap
"""What to deliver next: ticks, or a gap in place of lost ones."""


class SequenceTracker:
    """One stream's ticks, each exactly once and in order, with gaps in place of lost ones.

    A tracker begins *behind*: live batches are held until the caller sets the starting point
    (`start_after`) or has read the history after `seq` (`begin_repair`, then `repair`). It falls
    behind again whenever a live batch shows that ticks are missing; the caller then reads history
    again.

    Attributes:
        epoch: the numbering that `seq` belongs to.
        seq: number of the last tick returned or declared lost.
        behind: True while live batches are held back.
    """

    __slots__ = ("_held", "_held_ticks", "_vouched", "behind", "epoch", "seq")

    def __init__(self) -> None:
        self.epoch = ""
        self.seq = 0
        self.behind = True
        self._held: list[Batch] = []
        self._held_ticks = 0
        self._vouched = 0

    def start_after(self, epoch: str, seq: int) -> list[SequenceEvent]:
        """Begin after `seq`; return the held ticks that follow it."""
        self.epoch, self.seq = epoch, seq
        return self._release()

    def add_batch(self, batch: Batch) -> list[SequenceEvent]:
        """Take a batch that has just been published; return what to deliver now."""
        if self.behind:
            self._hold(batch)
            return []
        if batch.epoch != self.epoch:
            if batch.epoch < self.epoch:
                return []
            if batch.first_seq > 1:
                return self._fall_behind(batch)
            return [*self._enter(batch.epoch), *self._take(batch)]
        if batch.first_seq > self.seq + 1:
            return self._fall_behind(batch)
        return self._take(batch)

    def begin_repair(self) -> int:
        """Return the number after which the caller should read history; call it before reading.

        That history covers all batches held now, so any hole left among them is final. It need not
        cover later batches, because the connection may be interrupted again meanwhile.
        """
        self._vouched = len(self._held)
        return self.seq

    def repair(self, history: History) -> list[SequenceEvent]:
        """Take the history read after `begin_repair`, or the whole history if its epoch is new.

        The run stays behind unless the history is complete, which means that it reaches the
        present. Ticks that are still missing then are lost.
        """
        due: list[SequenceEvent] = []
        if history.epoch > self.epoch:
            due += self._enter(history.epoch)
        for batch in history.batches:
            due += self._declare_lost(batch.first_seq)
            due += self._take(batch)
        if not history.complete:
            return due
        due += self._release()
        if history.epoch == self.epoch and not self.behind:
            due += self._declare_lost(history.seq + 1)
        return due

    def _enter(self, epoch: str) -> list[SequenceEvent]:
        """Enter a later epoch; return a notice if the run has already numbered ticks."""
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
        vouched, self._vouched = self._vouched, 0
        self.behind = False
        due: list[SequenceEvent] = []
        for place, batch in enumerate(held):
            if place < vouched and batch.epoch >= self.epoch:
                due += self._enter(batch.epoch) if batch.epoch > self.epoch else []
                due += self._declare_lost(batch.first_seq)
            due += self.add_batch(batch)
        return due

    def _fall_behind(self, batch: Batch) -> list[SequenceEvent]:
        self.behind = True
        self._hold(batch)
        return []

    def _hold(self, batch: Batch) -> None:
        if self._held_ticks + len(batch.ticks) > HELD_TICKS_MAX:
            self._held, self._held_ticks, self._vouched = [], 0, 0
        self._held.append(batch)
        self._held_ticks += len(batch.ticks)

    def _take(self, batch: Batch) -> list[SequenceEvent]:
        known = self.seq + 1 - batch.first_seq
        if known >= len(batch.ticks):
            return []
        if known > 0:
            batch = batch._replace(ticks=batch.ticks[known:])
        self.seq += len(batch.ticks)
        return [batch]
