"""Counters of the hot path: plain numbers, cheap to update. `feed.server.metrics` exports them."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LAG_BOUNDS_S: Final = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
FLUSH_BOUNDS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
FLUSH_BOUNDS_TICKS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000)


@dataclass(slots=True)
class Totals:
    """Counts of what happened to a client's ticks."""

    # Ticks written to the client, including snapshots.
    sent: int = 0
    # Ticks replaced by a later tick of their stream, which counts them in `cf`.
    merged: int = 0
    # Ticks left out and announced in a `skipped` notice.
    skipped: int = 0
    # Bytes sent, including other messages.
    bytes: int = 0

    def add(self, other: Totals, times: int = 1) -> None:
        """Add other totals; with `times=-1`, subtract them."""
        self.sent += times * other.sent
        self.merged += times * other.merged
        self.skipped += times * other.skipped
        self.bytes += times * other.bytes


class BucketCounts:
    """Counts values in buckets."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        # The upper bounds of the buckets. One more bucket has none.
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        # The sum of all values.
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value that occurred `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class Counters:
    """Everything that one server has counted since it started."""

    def __init__(self) -> None:
        self.ticks_in = 0
        # Handed to clients' sockets or queued for them, summed over all clients.
        self.ticks_out = self.frames_out = self.bytes_out = 0
        # Ticks merged into later ones for clients with `conflate_ms`.
        self.conflated = 0
        # Ticks merged or skipped because a client was too slow.
        self.slow_merged = self.slow_skipped = 0
        # Ticks from history and from tapes, for clients that requested them.
        self.history_out = self.replayed_out = 0
        # Gaps in streams, by reason, and the ticks lost in them.
        self.gaps: Counter[str] = Counter()
        self.lost = 0
        self.connections = 0
        # Connections that ended, by close code.
        self.closed: Counter[int] = Counter()
        # Handshakes, credentials and requests that were refused, by reason.
        self.refused: Counter[str] = Counter()
        # Messages refused by the rate limit.
        self.rate_limited = 0
        # The time from publishing a tick to the flush that sent it.
        self.lag_s = BucketCounts(LAG_BOUNDS_S)
        # The duration of flushes, and the ticks that each one sent.
        self.flush_s = BucketCounts(FLUSH_BOUNDS_S)
        self.flush_ticks = BucketCounts(FLUSH_BOUNDS_TICKS)

    def add_gap(self, reason: str, ticks: int) -> None:
        """Count a gap in a stream."""
        self.gaps[reason] += 1
        self.lost += ticks

    def add_sent(self, ticks: int, conflated: int, frames: int, size: int) -> None:
        """Add to the four counters that every flush updates."""
        self.ticks_out += ticks
        self.conflated += conflated
        self.frames_out += frames
        self.bytes_out += size
