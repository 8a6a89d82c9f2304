"""One client's accounts, which check that each published tick is accounted for once and in order.

Section 5 of the protocol sets the rule: a tick's number is one above that of the tick before it in
its stream, plus the number of ticks merged into it. `skipped` and `gap` notices cover any other
numbers in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from clients.load.payload import Notice, StreamNumbers, Summary
from clients.load.report import SequenceFault

_FAULTS_KEPT: Final = 5
_HOLES_KEPT: Final = 1000
# What `SequenceChecker` counts, under the names of the report.
OUTCOMES: Final = (
    "delivered", "merged", "skipped", "gap", "snapshots", "unnumbered",
    "missing", "repeated", "reordered", "wrong_notices",
)  # fmt: skip


class SequenceChecker:
    """The ticks that one client received, and their faults.

    It summarizes a payload once for all clients that share it, so it is faster than the client
    library's accounts, which see one tick at a time.
    """

    __slots__ = (*OUTCOMES, "_holes", "_name", "_streams", "faults", "positions")

    def __init__(self, name: str, streams: StreamNumbers, bases: Mapping[int, int]) -> None:
        """Args:
        name: the client's name in faults.
        bases: the positions of streams when this client subscribed; other streams begin with
            their first tick.
        """
        self._name = name
        self._streams = streams
        # Ranges that were missing so far: stream number, first and last `seq`.
        self._holes: list[tuple[int, int, int]] = []
        # The last `seq` accounted for, by stream number; None after an epoch's end.
        self.positions: dict[int, int | None] = dict(bases)
        # The first faults in full; the others are only counted.
        self.faults: list[SequenceFault] = []
        self.delivered = self.merged = self.skipped = self.gap = 0
        # Ticks that don't affect the order.
        self.snapshots = self.unnumbered = 0
        self.missing = self.repeated = self.reordered = self.wrong_notices = 0

    @property
    def unexplained(self) -> int:
        """The number of unexplained ticks and notices; 0 with a correct server."""
        return self.missing + self.repeated + self.reordered + self.wrong_notices

    @property
    def accounted(self) -> int:
        """The number of ticks accounted for, each once."""
        return self.delivered + self.merged + self.skipped + self.gap - self.repeated

    def add_ticks(self, summary: Summary) -> None:
        """Record ticks."""
        positions = self.positions
        for number, before, last in summary.runs:
            if positions.get(number) == before:
                positions[number] = last
            else:
                self._add_discontinuous(number, before, last)
        self.delivered += summary.ticks
        self.merged += summary.merged
        self.unnumbered += summary.unnumbered
        for number, seq in summary.snapshots:
            self.snapshots += 1
            # The first live tick must follow the snapshot. A known position already implies that.
            if seq and positions.get(number) is None:
                positions[number] = seq

    def _add_discontinuous(self, number: int, before: int, last: int) -> None:
        position = self.positions.get(number)
        if position is not None and last <= position:
            self._add_late(number, before + 1, last)
            return
        self.positions[number] = last
        if position is not None and before > position:
            self._add_missing(number, position + 1, before)
        elif position is not None:
            # The first ticks of the run, or those merged into them, were already accounted for.
            self._add_repeated(number, before + 1, position)

    def _add_missing(self, number: int, first: int, last: int, detail: str = "") -> None:
        self.missing += last - first + 1
        if len(self._holes) < _HOLES_KEPT:
            self._holes.append((number, first, last))
        self._add_fault("missing", number, first, last, detail)

    def _add_repeated(self, number: int, first: int, last: int) -> None:
        self.repeated += last - first + 1
        self._add_fault("repeated", number, first, last)

    def _add_late(self, number: int, first: int, last: int) -> None:
        """Record ticks at or below the position: missed ones are reordered, others repeated."""
        for place, (stream, begin, end) in enumerate(self._holes):
            if stream == number and begin <= first and last <= end:
                parts = ((number, begin, first - 1), (number, last + 1, end))
                self._holes[place : place + 1] = [part for part in parts if part[1] <= part[2]]
                self.missing -= last - first + 1
                self.reordered += last - first + 1
                self._add_fault("reordered", number, first, last)
                return
        self._add_repeated(number, first, last)

    def _add_fault(self, kind: str, number: int, first: int, last: int, detail: str = "") -> None:
        if len(self.faults) < _FAULTS_KEPT:
            stream = " ".join(self._streams.names[number]) if number >= 0 else "?"
            self.faults.append(SequenceFault(self._name, stream, kind, first, last, detail))

    def add_notice(self, notice: Notice) -> None:
        """Record a `skipped` or `gap` notice; other notices do not affect the accounts."""
        kind = notice.get("T")
        if kind not in ("skipped", "gap"):
            return
        number = self._streams.number(str(notice.get("ch")), str(notice.get("S")))
        position = self.positions.get(number)
        first, last = notice.get("from"), notice.get("to")
        reason = notice.get("reason") if kind == "gap" else None
        if number < 0:
            self._reject(number, 0, 0, "unknown stream")
        elif reason == "epoch" and first is None and last is None:
            self.positions[number] = None
        elif reason == "retention" and first is None and _is_seq(last):
            # A gap of unknown size: the ticks before it are not retained.
            if position is None:
                self.positions[number] = last
            else:
                self._reject(number, 0, last, f"no beginning, although {position} is known")
        elif not (_is_seq(first) and _is_seq(last)) or first > last:
            self._reject(number, 0, 0, "invalid range")
        elif kind == "skipped" and notice.get("n", last - first + 1) != last - first + 1:
            self._reject(number, first, last, f"n is {notice['n']}")
        else:
            self._add_range(kind, number, first, last)

    def _add_range(self, kind: str, number: int, first: int, last: int) -> None:
        position = self.positions.get(number)
        if position is not None and first <= position:
            self._reject(number, first, last, f"{position} was accounted for already")
            return
        if position is not None and first > position + 1:
            self._add_missing(number, position + 1, first - 1)
        self.positions[number] = last
        if kind == "gap":
            self.gap += last - first + 1
        else:
            self.skipped += last - first + 1

    def _reject(self, number: int, first: int, last: int, detail: str) -> None:
        self.wrong_notices += 1
        self._add_fault("wrong notice", number, first, last, detail)

    def lags(self, ends: Mapping[int, int]) -> bool:
        """Return whether a stream is not yet accounted for up to its end."""
        return any((self.positions.get(number) or 0) < end for number, end in ends.items())

    def close_streams(self, ends: Mapping[int, int]) -> None:
        """Count as missing the ticks that were published up to `ends` and never arrived."""
        for number, end in ends.items():
            position = self.positions.get(number) or 0
            if position < end:
                self._add_missing(number, position + 1, end, "at the end")
                self.positions[number] = end


def _is_seq(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
