"""The report of a run: its keys are documented in `docs/load-testing.md`, and stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct, field

from clients.load.histogram import QUANTILES, Histogram, lowest_us
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
    """By what they are counted from; None where that is not known."""

    from_tick_time: Latency | None = None
    from_publish: Latency | None = None
    from_server_write: Latency | None = None


class Verdict(Struct, frozen=True):
    """Whether the run is good, and why not; what to mind when reading the figures; what else."""

    passed: bool
    problems: list[str] = []
    warnings: list[str] = []
    notes: list[str] = []


class Workload(Struct, frozen=True):
    """What the run was asked to do."""

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
    """What became of the connections; `closes` and `slow_closes` are by close code."""

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
    """What all clients received, over the full seconds of the measurement."""

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
    """Ticks of all clients, by how they are accounted for, and what is unexplained."""

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
        """How much does not add up."""
        return self.missing + self.repeated + self.reordered + self.wrong_notices + self.undecodable


class Fairness(Struct, frozen=True):
    """Mean latency of single clients that read all the time: the slowest against the fastest."""

    clients: int
    fastest_mean_ms: float
    median_mean_ms: float
    slowest_mean_ms: float
    slowest_to_fastest: float
    slowest_client: str


class Publishing(Struct, frozen=True):
    """The load's own producer. Lateness: from when a tick was due to when it was handed over."""

    scheduled_ticks: int
    published_ticks: int
    closing_ticks: int
    lateness: Latency | None


class Server(Struct, frozen=True):
    """The processes named with --pid. 100 percent is one core."""

    pids: list[int]
    cpu_percent_mean: float
    cpu_us_per_tick: float | None
    rss_begin_bytes: int
    rss_end_bytes: int
    rss_max_bytes: int


class Tester(Struct, frozen=True):
    """The load tester itself: the share of one core that its busiest process used, and so on."""

    processes: int
    worker_cpu_percent_mean: float
    worker_cpu_percent_max: float
    parent_cpu_percent_mean: float
    loop_lateness_p50_ms: float
    loop_lateness_max_ms: float
    worker_rss_bytes: int


class Point(Struct, frozen=True):
    """One second."""

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
    """Latencies from `from_ms` up to the next bucket's."""

    from_ms: float
    count: int


class Report(Struct, frozen=True, kw_only=True):
    """Everything a run has found."""

    schema: str = SCHEMA
    version: str
    started_at: str
    ended_at: str
    interrupted: bool
    verdict: Verdict
    workload: Workload
    connections: Connections
    throughput: Throughput
    latency: Latencies
    slow_latency: Latencies
    accounts: AccountsSummary
    fairness: Fairness | None
    publishing: Publishing | None
    server: Server | None
    tester: Tester
    timeline: list[Point]
    latency_histogram: list[Bucket] = field(default_factory=list)
    slow_latency_histogram: list[Bucket] = field(default_factory=list)


def to_json(report: Report) -> bytes:
    """The report as indented JSON, with a line feed at its end."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def latency_of(histogram: Histogram) -> Latency | None:
    """The figures of a distribution; None when it is empty."""
    if not histogram.count:
        return None
    p50, p90, p99, p999 = (_ms(histogram.quantile_us(share)) for share in QUANTILES)
    return Latency(
        histogram.count, _ms(histogram.mean_us), p50, p90, p99, p999, _ms(histogram.max_us)
    )


def buckets_of(histogram: Histogram) -> list[Bucket]:
    """The distribution itself."""
    return [Bucket(lowest_us(bucket) / 1000, count) for bucket, count in histogram.buckets()]


def fairness_of(means_us: Sequence[tuple[str, float]]) -> Fairness | None:
    """How far clients are apart; None with less than two of them."""
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
