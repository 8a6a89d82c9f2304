"""One client's accounts, which check that each published tick is accounted for once and in order.

Section 5 of the protocol sets the rule: a tick's number is one above that of the tick before it in
its stream, plus the number of ticks merged into it. `skipped` and `gap` notices cover any other
numbers in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, Final, NamedTuple, TypeGuard

from clients.load.payload import Notice, StreamNumbers, Summary

FAULTS_KEPT: Final = 5
"""How many faults a client records in full; the rest are only counted."""
_HOLES_KEPT: Final = 1000


class FaultKind(Enum):
    """Kinds of faults in ticks and notices."""

    MISSING = "missing"
    REPEATED = "repeated"
    REORDERED = "reordered"
    NOTICE = "wrong notice"


class SequenceFault(NamedTuple):
    """An unexplained range of ticks, or a wrong notice: stream number, first and last `seq`."""

    kind: FaultKind
    stream: int
    first: int
    last: int
    detail: str = ""


class SequenceChecker:
    """The ticks that one client received, and their faults.

    Attributes:
        positions: the last `seq` accounted for, by stream number; `None` after an epoch's end.
        delivered, merged, skipped, gapped: numbers of ticks, by outcome.
        snapshots, unnumbered: numbers of ticks that don't affect the order.
        missing, repeated, reordered, wrong_notices: unexplained ticks, and notices that don't fit.
    """

    __slots__ = (
        "_holes", "_streams", "delivered", "faults", "gapped", "merged", "missing", "positions",
        "reordered", "repeated", "skipped", "snapshots", "unnumbered", "wrong_notices",
    )  # fmt: skip

    def __init__(self, streams: StreamNumbers, bases: Mapping[int, int] | None = None) -> None:
        """Args:
        bases: the positions of streams when this client subscribed; other streams begin with
            their first tick.
        """
        self._streams = streams
        self._holes: list[tuple[int, int, int]] = []
        self.positions: dict[int, int | None] = dict(bases or {})
        self.delivered = self.merged = self.skipped = self.gapped = 0
        self.snapshots = self.unnumbered = 0
        self.missing = self.repeated = self.reordered = self.wrong_notices = 0
        self.faults: list[SequenceFault] = []

    @property
    def unexplained(self) -> int:
        """The number of unexplained ticks and notices; 0 with a correct server."""
        return self.missing + self.repeated + self.reordered + self.wrong_notices

    def add(self, summary: Summary) -> None:
        """Record ticks."""
        positions = self.positions
        for number, before, last in summary.runs:
            if positions.get(number) == before:
                positions[number] = last
            else:
                self._take_misfit(number, before, last)
        self.delivered += summary.ticks
        self.merged += summary.merged
        self.unnumbered += summary.unnumbered
        if summary.snapshots:
            self._take_snapshots(summary.snapshots)

    def _take_snapshots(self, snapshots: Iterable[tuple[int, int]]) -> None:
        for number, seq in snapshots:
            self.snapshots += 1
            # The first live tick must follow the snapshot. A known position already implies that.
            if seq and self.positions.get(number) is None:
                self.positions[number] = seq

    def _take_misfit(self, number: int, before: int, last: int) -> None:
        position = self.positions.get(number)
        if position is None or before == position:
            self.positions[number] = last
        elif before > position:
            self._miss(number, position + 1, before)
            self.positions[number] = last
        elif last > position:
            # The first ticks of the run, or those merged into them, were already accounted for.
            self._repeat(number, before + 1, position)
            self.positions[number] = last
        else:
            self._take_late(number, before + 1, last)

    def _miss(self, number: int, first: int, last: int) -> None:
        self.missing += last - first + 1
        if len(self._holes) < _HOLES_KEPT:
            self._holes.append((number, first, last))
        self._note(SequenceFault(FaultKind.MISSING, number, first, last))

    def _repeat(self, number: int, first: int, last: int) -> None:
        self.repeated += last - first + 1
        self._note(SequenceFault(FaultKind.REPEATED, number, first, last))

    def _take_late(self, number: int, first: int, last: int) -> None:
        """Record ticks at or below the position: missed ones are reordered, others repeated."""
        for place, (stream, begin, end) in enumerate(self._holes):
            if stream == number and begin <= first and last <= end:
                parts = ((number, begin, first - 1), (number, last + 1, end))
                self._holes[place : place + 1] = [part for part in parts if part[1] <= part[2]]
                self.missing -= last - first + 1
                self.reordered += last - first + 1
                self._note(SequenceFault(FaultKind.REORDERED, number, first, last))
                return
        self._repeat(number, first, last)

    def _note(self, fault: SequenceFault) -> None:
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(fault)

    # -- notices

    def add_notice(self, notice: Notice) -> None:
        """Record a `skipped` or `gap` notice; other notices do not affect the accounts."""
        kind = notice.get("T")
        if kind not in ("skipped", "gap"):
            return
        number = self._streams.number(str(notice.get("ch")), str(notice.get("S")))
        first, last = notice.get("from"), notice.get("to")
        reason = notice.get("reason") if kind == "gap" else None
        if number < 0:
            self._refuse(number, 0, 0, "a stream that is none")
        elif reason == "epoch" and first is None and last is None:
            self.positions[number] = None
        elif reason == "retention" and first is None and _is_seq(last):
            self._begin_after(number, last)
        elif not (_is_seq(first) and _is_seq(last)) or first > last:
            self._refuse(number, 0, 0, "a range that is none")
        elif kind == "skipped" and notice.get("n", last - first + 1) != last - first + 1:
            self._refuse(number, first, last, f"n is {notice['n']}")
        else:
            self._cover(kind, number, first, last)

    def _begin_after(self, number: int, last: int) -> None:
        """Begin a stream after a gap of unknown size: the ticks before it are not retained."""
        position = self.positions.get(number)
        if position is None:
            self.positions[number] = last
        else:
            self._refuse(number, 0, last, f"{position} is known, so the gap has a beginning")

    def _cover(self, kind: str, number: int, first: int, last: int) -> None:
        position = self.positions.get(number)
        if position is not None and first <= position:
            self._refuse(number, first, last, f"{position} was accounted for already")
            return
        if position is not None and first > position + 1:
            self._miss(number, position + 1, first - 1)
        self.positions[number] = last
        if kind == "gap":
            self.gapped += last - first + 1
        else:
            self.skipped += last - first + 1

    def _refuse(self, number: int, first: int, last: int, detail: str) -> None:
        self.wrong_notices += 1
        self._note(SequenceFault(FaultKind.NOTICE, number, first, last, detail))

    # -- the end

    def lags(self, ends: Mapping[int, int]) -> bool:
        """Return whether a stream is not yet accounted for up to its end."""
        return any((self.positions.get(number) or 0) < end for number, end in ends.items())

    def close(self, ends: Mapping[int, int]) -> None:
        """Count as missing the ticks that were published up to `ends` and never arrived."""
        for number, end in ends.items():
            position = self.positions.get(number) or 0
            if position < end:
                self.missing += end - position
                self._note(
                    SequenceFault(FaultKind.MISSING, number, position + 1, end, "at the end")
                )
                self.positions[number] = end


def _is_seq(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
