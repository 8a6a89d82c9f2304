"""Combines live batches and history into one contiguous run of a stream."""

from __future__ import annotations

from typing import Final

from tickcast.wire.batch import NEW_EPOCH, Batch, GapReason, History, SequenceGap

HELD_TICKS_MAX: Final = 100_000
"""Maximum live ticks held while a stream's history is read; history has those that are dropped."""

Due = Batch | SequenceGap
"""What to deliver next: ticks, or a gap in place of lost ones."""


class SequenceTracker:
    """One stream's ticks, each exactly once and in order, with gaps in place of lost ones.

    A run begins *behind*: live batches are held until the caller sets the starting point (`start`)
    or has read the history after `seq` (`ask`, then `repair`). It falls behind again whenever a
    live batch shows that ticks are missing; the caller then reads history again.

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

    def start(self, epoch: str, seq: int) -> list[Due]:
        """Begin after `seq`; return the held ticks that follow it."""
        self.epoch, self.seq = epoch, seq
        return self._release()

    def live(self, batch: Batch) -> list[Due]:
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

    def ask(self) -> int:
        """Return the number after which the caller should read history; call it before reading.

        That history covers all batches held now, so any hole left among them is final. It need not
        cover later batches, because the connection may be interrupted again meanwhile.
        """
        self._vouched = len(self._held)
        return self.seq

    def repair(self, history: History) -> list[Due]:
        """Take the history read after `ask`, or the whole history if its epoch is new.

        The run stays behind unless the history is complete, which means that it reaches the
        present. Ticks that are still missing then are lost.
        """
        due: list[Due] = []
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

    def _enter(self, epoch: str) -> list[Due]:
        """Enter a later epoch; return a notice if the run has already numbered ticks."""
        had_numbers = self.seq > 0
        self.epoch, self.seq = epoch, 0
        return [NEW_EPOCH] if had_numbers else []

    def _declare_lost(self, next_seq: int) -> list[Due]:
        if next_seq <= self.seq + 1:
            return []
        gap = SequenceGap(self.seq + 1, next_seq - 1, GapReason.BROKER)
        self.seq = next_seq - 1
        return [gap]

    def _release(self) -> list[Due]:
        """Release held batches up to the first hole that history may still fill."""
        held, self._held, self._held_ticks = self._held, [], 0
        vouched, self._vouched = self._vouched, 0
        self.behind = False
        due: list[Due] = []
        for place, batch in enumerate(held):
            if place < vouched and batch.epoch >= self.epoch:
                due += self._enter(batch.epoch) if batch.epoch > self.epoch else []
                due += self._declare_lost(batch.first_seq)
            due += self.live(batch)
        return due

    def _fall_behind(self, batch: Batch) -> list[Due]:
        self.behind = True
        self._hold(batch)
        return []

    def _hold(self, batch: Batch) -> None:
        if self._held_ticks + len(batch.ticks) > HELD_TICKS_MAX:
            self._held, self._held_ticks, self._vouched = [], 0, 0
        self._held.append(batch)
        self._held_ticks += len(batch.ticks)

    def _take(self, batch: Batch) -> list[Due]:
        known = self.seq + 1 - batch.first_seq
        if known >= len(batch.ticks):
            return []
        if known > 0:
            batch = batch._replace(ticks=batch.ticks[known:])
        self.seq += len(batch.ticks)
        return [batch]
