"""Makes one contiguous run of a stream out of live batches and history."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from feed.batch import Batch
from feed.ticks import Tick

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

    def start(self, epoch: str, seq: int) -> list[Tick]:
        """Begin after `seq`; returns the ticks among those held that follow it."""
        self.epoch, self.seq = epoch, seq
        return self._release()

    def live(self, batch: Batch) -> list[Tick]:
        """Take a batch that has just been published; returns the ticks that are due now."""
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

    def repair(self, epoch: str, history: Iterable[Batch], complete: bool) -> list[Tick]:
        """Take history: what follows `seq`, or all there is when the epoch is a new one.

        It stays behind unless the history is complete, that is, reaches up to the present.
        """
        if epoch != self.epoch:
            self.epoch, self.seq = epoch, 0
        ticks: list[Tick] = []
        for batch in history:
            if batch.first_seq > self.seq + 1:
                self.lost += batch.first_seq - self.seq - 1
                self.seq = batch.first_seq - 1
            ticks += self._take(batch)
        return ticks + self._release() if complete else ticks

    def _release(self) -> list[Tick]:
        held, self._held, self._held_ticks = self._held, [], 0
        self.behind = False
        return [tick for batch in held for tick in self.live(batch)]

    def _hold(self, batch: Batch) -> None:
        if self._held_ticks + len(batch.ticks) > HELD_TICKS_MAX:
            self._held, self._held_ticks = [], 0
        self._held.append(batch)
        self._held_ticks += len(batch.ticks)

    def _take(self, batch: Batch) -> list[Tick]:
        known = self.seq + 1 - batch.first_seq
        ticks = batch.ticks[known:] if known > 0 else batch.ticks
        self.seq += len(ticks)
        return ticks
