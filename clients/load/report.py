"""The report of a run. `docs/load-testing.md` documents its keys, which must not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct, field

from clients.load.histogram import QUANTILES, LatencyHistogram, lowest_us
from clients.load.messages import FaultLine

SCHEMA: Final = "tickcast-load/1"


class Latency(Struct, frozen=True):
    """A distribution of durations, in milliseconds."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Latencies(Struct, frozen=True):
    """Latencies by their starting point; None if that is unknown."""

    from_tick_time: Latency | None = None
    from_publish: Latency | None = None
    from_server_write: Latency | None = None


class RunVerdict(Struct, frozen=True):
    """Whether the run passed, its problems, warnings about the figures, and other notes."""

    passed: bool
    problems: list[str] = []
    warnings: list[str] = []
    notes: list[str] = []


class Workload(Struct, frozen=True):
    """The settings of the run."""

    url: str
    encoding: str
    channels: list[str]
    connections: int
    symbols_per_connection: int | None
    pool_symbols: list[str]
    pool_size: int
    published_symbols: int
    duration_s: float
    warmup_s: float
    publish_ticks_per_s: float | None
    burst_ticks: int
    slow_share: float
    stall_s: float
    read_s: float
    churn_per_s: float
    ramp_per_s: float
    processes: int
    seed: int
    conflate_ms: int | None
    slow_policy: str | None


class Connections(Struct, frozen=True):
    """The connections by outcome; `closes` and `slow_closes` are by close code."""

    asked: int
    opened: int
    refused: int
    refusals: dict[str, int]
    dropped: int
    closes: dict[str, int]
    slow_closed: int
    slow_closes: dict[str, int]
    left_by_churn: int
    returned: int
    stalls: int
    handshake: Latency | None
    subscribed: Latency | None
    granted: dict[str, int]
    server_errors: dict[str, int]


class Throughput(Struct, frozen=True):
    """Ticks received by all clients, over the full seconds of the measurement."""

    measured_s: float
    ticks: int
    slow_ticks: int
    frames: int
    bytes: int
    ticks_per_s: float
    frames_per_s: float
    bytes_per_s: float
    ticks_per_frame: float
    bytes_per_tick: float


class AccountsSummary(Struct, frozen=True):
    """Ticks of all clients by outcome, and the unexplained ones."""

    checked: bool
    ends_compared: bool
    whole_run_clients: int
    expected_ticks: int
    accounted_ticks: int
    delivered: int
    merged: int
    skipped: int
    gap: int
    snapshots: int
    unnumbered: int
    missing: int
    repeated: int
    reordered: int
    wrong_notices: int
    undecodable: int
    faults: list[FaultLine]

    @property
    def unexplained(self) -> int:
        """The number of unexplained ticks and notices."""
        return self.missing + self.repeated + self.reordered + self.wrong_notices + self.undecodable


class Fairness(Struct, frozen=True):
    """Mean latency per client that always reads: the slowest compared to the fastest."""

    clients: int
    fastest_mean_ms: float
    median_mean_ms: float
    slowest_mean_ms: float
    slowest_to_fastest: float
    slowest_client: str


class Publishing(Struct, frozen=True):
    """The load tester's producer. Lateness is the delay from when a tick was due."""

    scheduled_ticks: int
    published_ticks: int
    closing_ticks: int
    lateness: Latency | None


class ServerUsage(Struct, frozen=True):
    """The processes given with --pid. 100 percent is one core."""

    pids: list[int]
    cpu_percent_mean: float
    cpu_us_per_tick: float | None
    rss_begin_bytes: int
    rss_end_bytes: int
    rss_max_bytes: int


class Tester(Struct, frozen=True):
    """The load tester itself, such as the share of a core that its busiest process used."""

    processes: int
    worker_cpu_percent_mean: float
    worker_cpu_percent_max: float
    parent_cpu_percent_mean: float
    loop_lateness_p50_ms: float
    loop_lateness_max_ms: float
    worker_rss_bytes: int


class Point(Struct, frozen=True):
    """One second of the timeline."""

    second: int
    connections: int
    ticks_per_s: float
    frames_per_s: float
    bytes_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    slow_p99_ms: float | None
    queue_max_bytes: int | None
    queue_mean_bytes: float | None
    lag_max_ms: float | None
    server_cpu_percent: float | None
    server_rss_bytes: int | None
    worker_cpu_percent: float
    parent_cpu_percent: float | None
    loop_lateness_ms: float
    problems: int


class Bucket(Struct, frozen=True):
    """Latencies from `from_ms` up to that of the next bucket."""

    from_ms: float
    count: int


class LoadReport(Struct, frozen=True, kw_only=True):
    """The results of a run."""

    schema: str = SCHEMA
    version: str
    started_at: str
    ended_at: str
    interrupted: bool
    verdict: RunVerdict
    workload: Workload
    connections: Connections
    throughput: Throughput
    latency: Latencies
    slow_latency: Latencies
    accounts: AccountsSummary
    fairness: Fairness | None
    publishing: Publishing | None
    server: ServerUsage | None
    tester: Tester
    timeline: list[Point]
    latency_histogram: list[Bucket] = field(default_factory=list)
    slow_latency_histogram: list[Bucket] = field(default_factory=list)


def to_json(report: LoadReport) -> bytes:
    """Encode the report as indented JSON with a trailing line feed."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def latency_of(histogram: LatencyHistogram) -> Latency | None:
    """Return the figures of a distribution, or None if it is empty."""
    if not histogram.count:
        return None
    p50, p90, p99, p999 = (_ms(histogram.quantile_us(share)) for share in QUANTILES)
    return Latency(
        histogram.count, _ms(histogram.mean_us), p50, p90, p99, p999, _ms(histogram.max_us)
    )


def buckets_of(histogram: LatencyHistogram) -> list[Bucket]:
    """Return the buckets of a distribution."""
    return [Bucket(lowest_us(bucket) / 1000, count) for bucket, count in histogram.buckets()]


def fairness_of(means_us: Sequence[tuple[str, float]]) -> Fairness | None:
    """Compare the latencies of clients; None with fewer than two."""
    if len(means_us) < 2:
        return None
    ordered = sorted(means_us, key=lambda each: each[1])
    fastest, slowest = ordered[0][1], ordered[-1][1]
    return Fairness(
        len(ordered), _ms(fastest), _ms(ordered[len(ordered) // 2][1]), _ms(slowest),
        round(slowest / fastest, 3) if fastest > 0 else 1.0, ordered[-1][0],
    )  # fmt: skip


def _ms(us: float) -> float:
    return round(us / 1000, 3)
