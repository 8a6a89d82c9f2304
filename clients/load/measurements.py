"""What a worker process measures: a histogram, the figures of a second, and the final result."""

from __future__ import annotations

from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from clients.load.report import AccountTotals, Connections

_LINEAR_BITS: Final = 8
_MAX_US: Final = (1 << 36) - 1
_PLAUSIBLE_US: Final = 3600 * 1_000_000
_EARLY_US: Final = -2000
Key = TypeVar("Key", str, int)
# Fields of which `merge` keeps the larger value; it adds up all other numbers.
_PEAKS: Final = frozenset(
    ("number", "max_us", "queue_max_bytes", "lag_max_ms", "loop_late_us", "cpu_share")
)


class LatencyHistogram(Struct):
    """A log-linear histogram of durations, like HdrHistogram: mergeable, exact to 0.8 %.

    HdrHistogram's own package takes three times as long to record a value.
    """

    # Values below 2**8 µs have one bucket each. Above, each doubling has half as many buckets.
    counts: dict[int, int] = msgspec.field(default_factory=dict)
    count: int = 0
    sum_us: int = 0
    max_us: int = 0

    def record(self, us: int, weight: int = 1) -> None:
        """Count a duration; those outside 0 to 19 hours count as these limits."""
        if us < 0:
            us = 0
        elif us > _MAX_US:
            us = _MAX_US
        shift = us.bit_length() - _LINEAR_BITS
        # The inverse of `lowest_us`, inlined because this runs several times for every frame.
        bucket = us if shift <= 0 else (shift << (_LINEAR_BITS - 1)) + (us >> shift)
        try:
            self.counts[bucket] += weight
        except KeyError:  # Rare, so this is faster than `get`.
            self.counts[bucket] = weight
        self.count += weight
        self.sum_us += us * weight
        if us > self.max_us:  # noqa: PLR1730  (a call would cost more than the rest)
            self.max_us = us

    @property
    def mean_us(self) -> float:
        """The mean; 0 if empty."""
        return self.sum_us / self.count if self.count else 0.0

    def quantile_us(self, share: float) -> float:
        """Return the duration that `share` of all values do not exceed; 0 if empty."""
        wanted = max(1, share * self.count)
        seen = 0
        for bucket, count in sorted(self.counts.items()):
            seen += count
            if seen >= wanted - 1e-9:
                middle = (lowest_us(bucket) + lowest_us(bucket + 1)) / 2
                return min(middle if bucket >= 1 << _LINEAR_BITS else bucket, self.max_us)
        return 0.0


def lowest_us(bucket: int) -> int:
    """Return the shortest duration in a bucket."""
    shift = max(0, (bucket >> (_LINEAR_BITS - 1)) - 1)
    return (bucket - (shift << (_LINEAR_BITS - 1))) << shift


class LatencySample(Struct, frozen=True, gc=False):
    """The times of one tick, and how many ticks it represents. 0 is an unknown time."""

    t_ns: int
    weight: int
    tr_us: int
    tw_us: int


class LatencyHistograms(Struct):
    """Latencies from the time of the tick, `t`, of publishing, `tr`, and of the write, `tw`."""

    tick: LatencyHistogram = msgspec.field(default_factory=LatencyHistogram)
    publish: LatencyHistogram = msgspec.field(default_factory=LatencyHistogram)
    server: LatencyHistogram = msgspec.field(default_factory=LatencyHistogram)
    # Ticks that came before their time, which shows that two clocks differ.
    early: int = 0

    def record_sample(self, sample: LatencySample, now_ns: int) -> int:
        """Count one tick and those it represents; return its age in µs, negative if unknown."""
        now_us = now_ns // 1000
        if sample.tr_us:
            self.publish.record(now_us - sample.tr_us, sample.weight)
        if sample.tw_us:
            self.server.record(now_us - sample.tw_us, sample.weight)
        age_us = (now_ns - sample.t_ns) // 1000
        # The times of a recording are meaningless here.
        if not -_PLAUSIBLE_US < age_us < _PLAUSIBLE_US:
            return -1
        if age_us < _EARLY_US:
            self.early += sample.weight
        self.tick.record(age_us, sample.weight)
        return max(age_us, 0)

    def record_oldest(self, age_us: int) -> None:
        """Update the maximum with the oldest tick of a frame, which is not always a sample."""
        if self.tick.count and age_us < _PLAUSIBLE_US:
            self.tick.max_us = max(self.tick.max_us, age_us)


class Second(Struct, tag=True):
    """The figures of one second, or less at the end of a phase; of one process until merged."""

    # Seconds since the start of the measurement; negative before it.
    number: int = -1
    # Summed over the processes, like all that follows except the peaks.
    span_s: float = 0.0
    processes: int = 1
    connected: int = 0
    # Planned connections that are open or have failed.
    attempted: int = 0
    ticks: int = 0
    slow_ticks: int = 0
    frames: int = 0
    bytes: int = 0
    problems: int = 0
    # Of clients that always read, and of slow ones.
    reading: LatencyHistograms = msgspec.field(default_factory=LatencyHistograms)
    slow: LatencyHistograms = msgspec.field(default_factory=LatencyHistograms)
    # From the clients' latest heartbeats.
    queue_max_bytes: int = 0
    queue_sum_bytes: int = 0
    lag_max_ms: float = 0.0
    heartbeats: int = 0
    # The longest delay of a process's timers, and the largest share of a core that it used.
    loop_late_us: int = 0
    cpu_share: float = 0.0

    @property
    def mean_span_s(self) -> float:
        """The length of the second."""
        return self.span_s / self.processes if self.processes else 0.0


class WorkerResult(Struct, tag=True):
    """The totals of a process's connections at the end."""

    connections: Connections = msgspec.field(default_factory=Connections)
    accounts: AccountTotals = msgspec.field(default_factory=AccountTotals)
    handshake: LatencyHistogram = msgspec.field(default_factory=LatencyHistogram)
    subscribed: LatencyHistogram = msgspec.field(default_factory=LatencyHistogram)
    # Name and mean latency of each client that read until the end.
    client_means_us: list[tuple[str, float]] = msgspec.field(default_factory=list)
    rss_bytes: int = 0


def merge(total: Struct, part: Struct) -> None:
    """Add the numbers, counts by name and lists in `part` to `total`, also in nested structs."""
    for name in part.__struct_fields__:
        ours, theirs = getattr(total, name), getattr(part, name)
        if isinstance(theirs, Struct):
            merge(ours, theirs)
        elif isinstance(theirs, dict):
            add_counts(ours, theirs)
        elif isinstance(theirs, list):
            ours.extend(theirs)
        elif isinstance(theirs, int | float) and not isinstance(theirs, bool):
            setattr(total, name, max(ours, theirs) if name in _PEAKS else ours + theirs)


def add_counts(total: dict[Key, int], part: dict[Key, int]) -> None:
    """Add counts by name to `total`."""
    for key, count in part.items():
        total[key] = total.get(key, 0) + count
