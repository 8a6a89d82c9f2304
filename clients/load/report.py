"""The report of a run: one structure for JSON, text and HTML.

`docs/load-testing.md` documents its keys, which must not change.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct, field

from tickcast.wire.encoding import Encoding


class Latency(Struct, frozen=True):
    """A distribution of durations."""

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


class Workload(Struct, frozen=True, kw_only=True):
    """The requested load."""

    url: str
    encoding: Encoding = Encoding.JSON
    channels: tuple[str, ...] = ("trades",)
    connections: int = 100
    # Drawn at random from the pool; None takes all of it.
    symbols_per_connection: int | None = None
    # The first symbols of the pool, and the sizes of the pool and of what is published of it.
    pool_symbols: tuple[str, ...] = ()
    pool_size: int = 0
    published_symbols: int = 0
    duration_s: float = 30.0
    warmup_s: float = 1.0
    # None publishes nothing. Ticks of a burst are due at the same moment.
    publish_ticks_per_s: float | None = None
    burst_ticks: int = 1
    # The share of connections, 0 to 1, that stop reading for a time, and then read for a time.
    slow_share: float = 0.0
    stall_s: float = 2.0
    read_s: float = 1.0
    # Connections that leave, each replaced by a new one, and connections to open at the start.
    churn_per_s: float = 0.0
    ramp_per_s: float = 500.0
    processes: int = 1
    seed: int = 1
    conflate_ms: int | None = None
    slow_policy: str | None = None


class Connections(Struct):
    """The connections by outcome. A worker counts them; the last step fills in the totals."""

    asked: int = 0
    opened: int = 0
    refused: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    # Closed by the server or cut, by close code: clients that always read, and slow ones.
    dropped: int = 0
    closes: dict[str, int] = field(default_factory=dict)
    slow_closed: int = 0
    slow_closes: dict[str, int] = field(default_factory=dict)
    left_by_churn: int = 0
    returned: int = 0
    stalls: int = 0
    handshake: Latency | None = None
    subscribed: Latency | None = None
    granted: dict[str, int] = field(default_factory=dict)
    server_errors: dict[str, int] = field(default_factory=dict)


class SequenceFault(Struct, frozen=True):
    """One unexplained tick or range of ticks."""

    client: str
    stream: str
    kind: str
    first_seq: int
    last_seq: int
    detail: str


class AccountTotals(Struct):
    """Ticks of all clients by outcome, and the unexplained ones."""

    checked: bool = False
    ends_compared: bool = False
    whole_run_clients: int = 0
    # Published to the streams of these clients, according to the store, and accounted for by them.
    expected_ticks: int = 0
    accounted_ticks: int = 0
    delivered: int = 0
    merged: int = 0
    skipped: int = 0
    gap: int = 0
    snapshots: int = 0
    unnumbered: int = 0
    missing: int = 0
    repeated: int = 0
    reordered: int = 0
    wrong_notices: int = 0
    undecodable: int = 0
    faults: list[SequenceFault] = field(default_factory=list)

    @property
    def unexplained(self) -> int:
        """The number of unexplained ticks, notices and frames."""
        return self.missing + self.repeated + self.reordered + self.wrong_notices + self.undecodable


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


class Fairness(Struct, frozen=True):
    """Mean latency of each client that always reads: the slowest compared to the fastest."""

    clients: int
    fastest_mean_ms: float
    median_mean_ms: float
    slowest_mean_ms: float
    slowest_to_fastest: float
    slowest_client: str


class Publishing(Struct, frozen=True):
    """The load tester's own producer. Lateness is the delay from when a tick was due."""

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


class Point(Struct, frozen=True, kw_only=True):
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

    schema: str = "tickcast-load/1"
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
    accounts: AccountTotals
    fairness: Fairness | None
    publishing: Publishing | None
    server: ServerUsage | None
    tester: Tester
    timeline: list[Point]
    latency_histogram: list[Bucket]
    slow_latency_histogram: list[Bucket]


def to_json(report: LoadReport) -> bytes:
    """Encode the report as indented JSON with a trailing line feed."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
