"""Record a run, build its report, and decide whether it passed."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

from msgspec.structs import replace

from clients.load.measurements import (
    LatencyHistogram,
    LatencyHistograms,
    Second,
    WorkerResult,
    lowest_us,
    merge,
)
from clients.load.plan import Plan
from clients.load.publishing import LoadProducer
from clients.load.report import (
    Bucket,
    Fairness,
    Latencies,
    Latency,
    LoadReport,
    Point,
    Publishing,
    RunVerdict,
    ServerUsage,
    Tester,
    Throughput,
)
from tickcast.wire.times import Time

_CLOCK_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_FAULTS_MAX: Final = 20
# A process that uses more of a core than this is likely to delay what it measures.
_BUSY_PERCENT: Final = 85.0
_LOOP_LATE_MS: Final = 50.0
_PUBLISHER_LATE_MS: Final = 20.0


class ProcessUsage(NamedTuple):
    """The CPU time that processes have used so far, and their current memory."""

    cpu_s: float
    rss_bytes: int


class UsageSample(NamedTuple):
    """The usage of this process and the server, at a time in seconds since the start."""

    at_s: float
    own_cpu_s: float
    server: ProcessUsage | None


def read_usage(pids: Iterable[int], proc: Path = Path("/proc")) -> ProcessUsage | None:
    """Return the total over some processes, or None if one of them is gone."""
    cpu_s, rss_bytes = 0.0, 0
    try:
        for pid in pids:
            stat = (proc / str(pid) / "stat").read_text("ascii", "replace")
            # The program's name is in parentheses and may contain anything: count from its end.
            fields = stat.rsplit(")", 1)[1].split()
            cpu_s += (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS_PER_S
            rss_bytes += int(fields[21]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None
    return ProcessUsage(cpu_s, rss_bytes)


class RunRecorder:
    """The figures of the run so far."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        # The latest second of each process, and each second of all processes together.
        self.latest: dict[int, Second] = {}
        self.seconds: dict[int, Second] = {}
        self.total = Second(processes=0)
        # One sample per second of the measurement.
        self.samples: list[UsageSample] = []

    def add_second(self, process: int, second: Second) -> None:
        """Add the figures of one process for one second."""
        self.latest[process] = second
        merge(self.total, second)
        if second.number >= 0:
            merge(self.seconds.setdefault(second.number, Second(processes=0)), second)

    def last_second(self) -> Second | None:
        """Return the latest second that every process has reported."""
        complete = (each for each in self.seconds.values() if each.processes >= self._processes)
        return max(complete, key=lambda second: second.number, default=None)

    def measured(self, duration_s: float) -> list[Second]:
        """Return the full seconds of the measurement, or the first, partial one if it has none."""
        found = [self.seconds[number] for number in sorted(self.seconds)]
        return [each for each in found if each.number + 1 <= duration_s + 1e-6] or found[:1]

    def cpu_percent(self, number: int) -> tuple[float | None, float | None]:
        """Return the CPU use of the server and this process in a second; None if unknown."""
        if number + 1 >= len(self.samples):
            return None, None
        before, after = self.samples[number : number + 2]
        span_s = after.at_s - before.at_s
        own = _ratio((after.own_cpu_s - before.own_cpu_s) * 100, span_s, 1)
        if before.server is None or after.server is None:
            return None, own
        return _ratio((after.server.cpu_s - before.server.cpu_s) * 100, span_s, 1), own


def build_report(
    plan: Plan,
    recorder: RunRecorder,
    result: WorkerResult,
    producer: LoadProducer | None,
    problems: list[str],
    *,
    started: Time,
    measured_s: float,
    interrupted: bool,
) -> LoadReport:
    """Build the report, including its verdict."""
    seconds, total = recorder.measured(measured_s), recorder.total
    accounts, connections = result.accounts, result.connections
    accounts.checked = accounts.delivered > accounts.unnumbered or not accounts.unnumbered
    connections.asked = plan.connections
    connections.refused = sum(connections.refusals.values())
    connections.dropped = sum(connections.closes.values())
    connections.slow_closed = sum(connections.slow_closes.values())
    connections.handshake = latency_of(result.handshake)
    connections.subscribed = latency_of(result.subscribed)
    publishing: Publishing | None = None
    if producer is not None:
        lateness = latency_of(producer.lateness)
        counts = (producer.scheduled, producer.published, producer.closing)
        publishing = Publishing(*counts, lateness)
    report = LoadReport(
        version=metadata.version("tickcast"),
        started_at=started.rfc3339(),
        ended_at=Time.now().rfc3339(),
        interrupted=interrupted,
        verdict=RunVerdict(passed=False),
        workload=plan.workload(),
        connections=connections,
        throughput=_throughput(seconds),
        latency=_latencies(total.reading),
        slow_latency=_latencies(total.slow),
        accounts=replace(accounts, faults=accounts.faults[:_FAULTS_MAX]),
        fairness=_fairness(result.client_means_us),
        publishing=publishing,
        server=_server(plan, recorder, seconds),
        tester=_tester(plan, recorder, seconds, result.rss_bytes),
        timeline=[_point(second, recorder) for second in seconds],
        latency_histogram=_buckets(total.reading.tick),
        slow_latency_histogram=_buckets(total.slow.tick),
    )
    found = [*problems, *_problems(report)]
    early = total.reading.early + total.slow.early
    verdict = RunVerdict(not found, found, [*_warnings(report, early)], [*_notes(report)])
    return replace(report, verdict=verdict)


def latency_of(histogram: LatencyHistogram) -> Latency | None:
    """Return the figures of a distribution, or None if it is empty."""
    if not histogram.count:
        return None
    p50, p90, p99, p999 = (_ms(histogram.quantile_us(share)) for share in (0.5, 0.9, 0.99, 0.999))
    mean, longest = _ms(histogram.mean_us), _ms(histogram.max_us)
    return Latency(histogram.count, mean, p50, p90, p99, p999, longest)


def _latencies(latencies: LatencyHistograms) -> Latencies:
    return Latencies(*map(latency_of, (latencies.tick, latencies.publish, latencies.server)))


def _buckets(histogram: LatencyHistogram) -> list[Bucket]:
    return [
        Bucket(lowest_us(bucket) / 1000, count)
        for bucket, count in sorted(histogram.counts.items())
    ]


def _ms(us: float) -> float:
    return round(us / 1000, 3)


def _ratio(count: float, of: float, digits: int) -> float:
    return round(count / of, digits) if of else 0.0


def _throughput(seconds: Sequence[Second]) -> Throughput:
    total = Second(processes=0)
    for second in seconds:
        merge(total, second)
    span_s = sum(second.mean_span_s for second in seconds)
    return Throughput(
        measured_s=round(span_s, 3),
        ticks=total.ticks,
        slow_ticks=total.slow_ticks,
        frames=total.frames,
        bytes=total.bytes,
        ticks_per_s=_ratio(total.ticks, span_s, 1),
        frames_per_s=_ratio(total.frames, span_s, 1),
        bytes_per_s=_ratio(total.bytes, span_s, 1),
        ticks_per_frame=_ratio(total.ticks, total.frames, 3),
        bytes_per_tick=_ratio(total.bytes, total.ticks, 1),
    )


def _fairness(means_us: Sequence[tuple[str, float]]) -> Fairness | None:
    if len(means_us) < 2:
        return None
    ordered = sorted(means_us, key=lambda each: each[1])
    (_, fastest), (_, median), (name, slowest) = (
        ordered[0], ordered[len(ordered) // 2], ordered[-1],
    )  # fmt: skip
    ratio = round(slowest / fastest, 3) if fastest > 0 else 1.0
    return Fairness(len(ordered), _ms(fastest), _ms(median), _ms(slowest), ratio, name)


def _server(plan: Plan, recorder: RunRecorder, seconds: Sequence[Second]) -> ServerUsage | None:
    used = recorder.samples[: len(seconds) + 1]
    usages = [sample.server for sample in used if sample.server is not None]
    if not plan.pids or len(usages) < 2 or len(usages) < len(used):
        return None
    cpu_s = usages[-1].cpu_s - usages[0].cpu_s
    ticks = sum(second.ticks for second in seconds)
    return ServerUsage(
        pids=list(plan.pids),
        cpu_percent_mean=_ratio(cpu_s * 100, used[-1].at_s - used[0].at_s, 1),
        cpu_us_per_tick=_ratio(cpu_s * 1e6, ticks, 3) if ticks else None,
        rss_begin_bytes=usages[0].rss_bytes,
        rss_end_bytes=usages[-1].rss_bytes,
        rss_max_bytes=max(usage.rss_bytes for usage in usages),
    )


def _tester(plan: Plan, recorder: RunRecorder, seconds: Sequence[Second], rss_bytes: int) -> Tester:
    busiest = [second.cpu_share * 100 for second in seconds] or [0.0]
    late_ms = [second.loop_late_us / 1000 for second in seconds] or [0.0]
    own = [recorder.cpu_percent(number)[1] for number in range(len(seconds))]
    known = [percent for percent in own if percent is not None] or [0.0]
    return Tester(
        processes=plan.processes,
        worker_cpu_percent_mean=round(statistics.fmean(busiest), 1),
        worker_cpu_percent_max=round(max(busiest), 1),
        parent_cpu_percent_mean=round(statistics.fmean(known), 1),
        loop_lateness_p50_ms=round(statistics.median(late_ms), 3),
        loop_lateness_max_ms=round(max(late_ms), 3),
        worker_rss_bytes=rss_bytes,
    )


def _point(second: Second, recorder: RunRecorder) -> Point:
    rates = _throughput([second])
    latency, slow = latency_of(second.reading.tick), latency_of(second.slow.tick)
    server_cpu, own_cpu = recorder.cpu_percent(second.number)
    usage = next((each.server for each in recorder.samples[second.number + 1 :]), None)
    point = Point(
        second=second.number,
        connections=second.connected,
        ticks_per_s=rates.ticks_per_s,
        frames_per_s=rates.frames_per_s,
        bytes_per_s=rates.bytes_per_s,
        p50_ms=latency.p50_ms if latency else None,
        p99_ms=latency.p99_ms if latency else None,
        max_ms=latency.max_ms if latency else None,
        slow_p99_ms=slow.p99_ms if slow else None,
        queue_max_bytes=second.queue_max_bytes,
        queue_mean_bytes=_ratio(second.queue_sum_bytes, second.connected, 1),
        lag_max_ms=second.lag_max_ms,
        server_cpu_percent=server_cpu,
        server_rss_bytes=usage.rss_bytes if usage else None,
        worker_cpu_percent=round(second.cpu_share * 100, 1),
        parent_cpu_percent=own_cpu,
        loop_lateness_ms=round(second.loop_late_us / 1000, 3),
        problems=second.problems,
    )
    if any(each.heartbeats for each in recorder.latest.values()):
        return point
    return replace(point, queue_max_bytes=None, queue_mean_bytes=None, lag_max_ms=None)


# -- the verdict


def _problems(report: LoadReport) -> Iterator[str]:
    accounts, connections, publishing = report.accounts, report.connections, report.publishing
    kinds = {
        "missing": accounts.missing,
        "repeated": accounts.repeated,
        "out of order": accounts.reordered,
    }
    unexplained = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)
    if unexplained:
        yield f"unexplained ticks: {unexplained}"
    if accounts.wrong_notices:
        yield f"{accounts.wrong_notices:,} skipped or gap notices contradict earlier messages"
    if accounts.undecodable:
        yield f"{accounts.undecodable:,} frames could not be decoded"
    lacking = accounts.expected_ticks - accounts.accounted_ticks
    if accounts.ends_compared and lacking > 0 and not unexplained:
        yield f"{lacking:,} published ticks are not accounted for"
    if not connections.opened:
        yield "no connection could be opened"
    elif connections.refused:
        yield f"{connections.refused:,} connections refused: {_counts(connections.refusals)}"
    if connections.dropped:
        closes = _counts(connections.closes, "code ")
        yield f"{connections.dropped:,} reading connections closed by the server: {closes}"
    others = {
        code: n for code, n in connections.slow_closes.items() if code not in {"4102", "1006"}
    }
    if others:
        yield f"slow connections closed for another reason: {_counts(others, 'code ')}"
    if publishing and (unpublished := publishing.scheduled_ticks - publishing.published_ticks) > 0:
        yield f"{unpublished:,} ticks could not be published in time"


def _warnings(report: LoadReport, early: int) -> Iterator[str]:
    tester, publishing = report.tester, report.publishing
    if (busy := tester.worker_cpu_percent_mean) > _BUSY_PERCENT:
        yield (
            f"the load tester was the bottleneck: a process used {busy:.0f}% of a core, which adds"
            " to the latencies. Use --processes, or another machine"
        )
    if (late_ms := tester.loop_lateness_p50_ms) > _LOOP_LATE_MS:
        yield (
            f"the load tester came late to its sockets, by {late_ms:.0f} ms in half of the seconds"
            f" and up to {tester.loop_lateness_max_ms:.0f} ms, which adds to the latencies"
        )
    if (busy := tester.parent_cpu_percent_mean) > _BUSY_PERCENT:
        yield f"the publishing process used {busy:.0f}% of a core: it may have come late"
    lateness = publishing.lateness if publishing else None
    if lateness and lateness.p99_ms > _PUBLISHER_LATE_MS:
        yield (
            f"the publisher was late: 1 % of the ticks by more than {lateness.p99_ms:.0f} ms;"
            " latency from tick time includes that"
        )
    if early:
        yield (
            f"{early:,} ticks came before their time: the clocks of this machine and the"
            " producer's differ, and latencies from tick time are off by as much"
        )


def _notes(report: LoadReport) -> Iterator[str]:
    accounts, connections, workload = report.accounts, report.connections, report.workload
    if report.interrupted:
        yield "interrupted: the figures cover the time until then"
    if not accounts.checked:
        yield "the server's ticks carry no seq: order and completeness could not be checked"
    elif not accounts.delivered:
        yield "no tick arrived"
    elif not accounts.ends_compared:
        yield "order was checked, but not whether the last ticks came: nothing to compare with"
    if report.throughput.ticks and report.latency.from_tick_time is None:
        yield "the times of the ticks are not current: no latency from tick time"
    if connections.opened and "stamps" not in connections.granted:
        yield "no stamps: latency from publish time is not known"
    if connections.opened and "heartbeat_ms" not in connections.granted:
        yield "no heartbeats: the server's queues are not known"
    elif report.timeline and not any(point.queue_max_bytes for point in report.timeline):
        yield "at every heartbeat the server's queues were empty"
    options = {"conflate_ms": workload.conflate_ms, "slow": workload.slow_policy}
    for name, value in options.items():
        if value is not None and connections.opened and name not in connections.granted:
            yield f"the server refused the option {name}; it was left out"
    if connections.slow_closed:
        yield (
            f"slow connections closed by the server: {connections.slow_closed:,}"
            f" ({_counts(connections.slow_closes, 'code ')});"
            f" {connections.returned:,} reconnected"
        )


def _counts(counts: Mapping[str, int], prefix: str = "") -> str:
    ordered = sorted(counts.items(), key=lambda each: -each[1])
    shown = ", ".join(f"{count:,} × {prefix}{name}" for name, count in ordered[:4])
    return shown + (", …" if len(ordered) > 4 else "")
