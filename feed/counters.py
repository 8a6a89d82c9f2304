"""What is counted while ticks flow: plain numbers, cheap to add to. `feed.metrics` shows them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from typing import Final

LAG_BOUNDS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
FLUSH_BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
FLUSH_BOUNDS_TICKS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)


class Totals:
    """What became of a client's ticks.

    Attributes:
        sent: written to it, snapshots included.
        merged: replaced by later ones of their stream, which say so in `cf`.
        skipped: left out, which a `skipped` notice says.
        bytes: all that was sent, other messages included.
    """

    __slots__ = ("bytes", "merged", "sent", "skipped")

    def __init__(self, sent: int = 0, merged: int = 0, skipped: int = 0, size: int = 0) -> None:
        self.sent = sent
        self.merged = merged
        self.skipped = skipped
        self.bytes = size

    def add(self, other: Totals, times: int = 1) -> None:
        """Add another's numbers; -1 times takes them off again."""
        self.sent += times * other.sent
        self.merged += times * other.merged
        self.skipped += times * other.skipped
        self.bytes += times * other.bytes


class Histogram:
    """Counts values by the bucket they fall into.

    Attributes:
        bounds: the upper ends of the buckets; the last bucket has none.
        counts: how many values fell into each; one longer than `bounds`.
        total: the sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value that came up so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class Counters:
    """All that one server has counted since it began.

    Attributes:
        ticks_in: taken from the broker.
        ticks_out, frames_out, bytes_out: handed to clients' sockets or held for them, over all.
        conflated: ticks that clients with `conflate_ms` got merged into later ones.
        slow_merged, slow_skipped: ticks that clients did not get one by one, being too slow.
        replayed_out: ticks of tapes, handed to clients that have them played to themselves.
        history_out: ticks from history, handed to clients that asked for the past.
        gaps: times that a stream lacked ticks, by reason; `lost`: how many ticks that were.
        connections: clients that have connected.
        closed: connections that ended, by close code.
        refused: handshakes and credentials that were turned away, by reason.
        rate_limited: messages refused because too many came.
        lag_s: from publishing to the flush that sent it.
        flush_s, flush_ticks: how long flushes took, and how many ticks they sent on.
    """

    def __init__(self) -> None:
        self.ticks_in = 0
        self.ticks_out = 0
        self.frames_out = 0
        self.bytes_out = 0
        self.conflated = 0
        self.slow_merged = 0
        self.slow_skipped = 0
        self.history_out = 0
        self.replayed_out = 0
        self.gaps: Counter[str] = Counter()
        self.lost = 0
        self.connections = 0
        self.closed: Counter[int] = Counter()
        self.refused: Counter[str] = Counter()
        self.rate_limited = 0
        self.lag_s = Histogram(LAG_BOUNDS_S)
        self.flush_s = Histogram(FLUSH_BOUNDS_S)
        self.flush_ticks = Histogram(FLUSH_BOUNDS_TICKS)

    def add_gap(self, reason: str, ticks: int) -> None:
        """Note that a stream has a gap."""
        self.gaps[reason] += 1
        self.lost += ticks

    def add_sent(self, ticks: int, conflated: int, frames: int, size: int) -> None:
        """Note what was handed over: the four that are counted with each flush."""
        self.ticks_out += ticks
        self.conflated += conflated
        self.frames_out += frames
        self.bytes_out += size
