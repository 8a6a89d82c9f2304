"""Makes one contiguous run of a stream out of live batches and history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from feed.batch import Batch

HELD_TICKS_MAX: Final = 100_000
"""Live ticks of a stream held while its history is read. More are dropped: history has them."""


class Run:
    """One stream's ticks, each exactly once and in order.

    It begins *behind*: live batches are held until the caller has said where to begin (`start`), or
    has given the history after `seq` (`repair`). It falls behind again whenever a live batch shows
    that ticks are missing; then the caller reads the history after `seq` once more.

    Attributes:
        epoch: the numbering that `seq` belongs to.
        seq: the last tick handed out.
        behind: True while live batches are held back.
        lost: ticks that history could not give back any more.
    """

    __slots__ = ("_held", "_held_ticks", "behind", "epoch", "lost", "seq")

    def __init__(self) -> None:
        self.epoch = ""
        self.seq = 0
        self.behind = True
        self.lost = 0
        self._held: list[Batch] = []
        self._held_ticks = 0

    def start(self, epoch: str, seq: int) -> list[Batch]:
        """Begin after `seq`; returns what was held and follows it."""
        self.epoch, self.seq = epoch, seq
        return self._release()

    def live(self, batch: Batch) -> list[Batch]:
        """Take a batch that has just been published; returns what is due now."""
        if self.behind:
            self._hold(batch)
            return []
        if batch.epoch != self.epoch:
            if batch.epoch < self.epoch:
                return []
            self.epoch, self.seq = batch.epoch, 0
        if batch.first_seq > self.seq + 1:
            self.behind = True
            self._hold(batch)
            return []
        return self._take(batch)

    def repair(self, epoch: str, history: Iterable[Batch], complete: bool) -> list[Batch]:
        """Take history: what follows `seq`, or all there is when the epoch is a new one.

        It stays behind unless the history is complete, that is, reaches up to the present.
        """
        if epoch != self.epoch:
            self.epoch, self.seq = epoch, 0
        due: list[Batch] = []
        for batch in history:
            if batch.first_seq > self.seq + 1:
                self.lost += batch.first_seq - self.seq - 1
                self.seq = batch.first_seq - 1
            due += self._take(batch)
        return due + self._release() if complete else due

    def _release(self) -> list[Batch]:
        held, self._held, self._held_ticks = self._held, [], 0
        self.behind = False
        return [due for batch in held for due in self.live(batch)]

    def _hold(self, batch: Batch) -> None:
        if self._held_ticks + len(batch.ticks) > HELD_TICKS_MAX:
            self._held, self._held_ticks = [], 0
        self._held.append(batch)
        self._held_ticks += len(batch.ticks)

    def _take(self, batch: Batch) -> list[Batch]:
        known = self.seq + 1 - batch.first_seq
        if known >= len(batch.ticks):
            return []
        if known > 0:
            batch = batch._replace(ticks=batch.ticks[known:])
        self.seq += len(batch.ticks)
        return [batch]
