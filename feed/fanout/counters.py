"""Counters of the hot path: plain numbers, cheap to update. `feed.server.metrics` exports them."""

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
    """Counts of what happened to a client's ticks.

    Attributes:
        sent: ticks written to the client, including snapshots.
        merged: ticks replaced by a later tick of their stream, which counts them in `cf`.
        skipped: ticks left out and announced in a `skipped` notice.
        bytes: bytes sent, including other messages.
    """

    __slots__ = ("bytes", "merged", "sent", "skipped")

    def __init__(self, sent: int = 0, merged: int = 0, skipped: int = 0, size: int = 0) -> None:
        self.sent = sent
        self.merged = merged
        self.skipped = skipped
        self.bytes = size

    def add(self, other: Totals, times: int = 1) -> None:
        """Add other totals; with `times=-1`, subtract them."""
        self.sent += times * other.sent
        self.merged += times * other.merged
        self.skipped += times * other.skipped
        self.bytes += times * other.bytes


class BucketCounts:
    """Counts values in buckets.

    Attributes:
        bounds: the upper bounds of the buckets. The last bucket has none.
        counts: how many values fell into each bucket; one longer than `bounds`.
        total: the sum of all values.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value that occurred `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class Counters:
    """Everything that one server has counted since it started.

    Attributes:
        ticks_in: ticks received from the broker.
        ticks_out, frames_out, bytes_out: handed to clients' sockets or queued for them, summed
            over all clients.
        conflated: ticks merged into later ones for clients with `conflate_ms`.
        slow_merged, slow_skipped: ticks merged or skipped because a client was too slow.
        replayed_out: ticks of tapes, sent to clients with private replays.
        history_out: ticks from history, sent to clients that asked for it.
        gaps: gaps in streams, by reason. `lost` is the number of ticks in them.
        connections: clients that have connected.
        closed: connections that ended, by close code.
        refused: refused handshakes and credentials, by reason.
        rate_limited: messages refused by the rate limit.
        lag_s: the time from publishing a tick to the flush that sent it.
        flush_s, flush_ticks: the duration of flushes, and the ticks that each one sent.
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
        self.lag_s = BucketCounts(LAG_BOUNDS_S)
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
