"""Build the report from what a run has recorded."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib import metadata

from msgspec import Struct
from msgspec.structs import replace

from clients.load.histogram import LatencyHistogram, merged
from clients.load.messages import Accounts, total_of
from clients.load.plan import Plan
from clients.load.recorder import RunRecorder, SecondFigures, cpu_share, total
from clients.load.report import (
    AccountsSummary,
    Connections,
    Latencies,
    LoadReport,
    Point,
    Publishing,
    RunVerdict,
    ServerUsage,
    Tester,
    Throughput,
    Workload,
    buckets_of,
    fairness_of,
    latency_of,
)
from clients.load.verdict import judge
from tickcast.wire.times import Time

POOL_SHOWN = 1000


class Outcome(Struct, kw_only=True):
    """What the run knows at its end, in addition to the record of each second."""

    started: Time
    ended: Time
    measured_s: float
    interrupted: bool
    ends_compared: bool
    accounts: list[Accounts]
    lateness: LatencyHistogram | None = None
    scheduled: int = 0
    published: int = 0
    closing: int = 0
    trouble: list[str] = []


def build_report(plan: Plan, recorder: RunRecorder, outcome: Outcome) -> LoadReport:
    """Build the report, including its verdict."""
    accounts = total_of(outcome.accounts)
    moments = recorder.measured(outcome.measured_s)
    throughput = _throughput(moments)
    has_heartbeats = any(recorder.heartbeats.values())
    report = LoadReport(
        version=metadata.version("tickcast"),
        started_at=outcome.started.rfc3339(),
        ended_at=outcome.ended.rfc3339(),
        interrupted=outcome.interrupted,
        verdict=RunVerdict(passed=False),
        workload=_workload(plan),
        connections=_connections(plan, accounts, outcome.accounts),
        throughput=throughput,
        latency=_latencies(recorder.reading),
        slow_latency=_latencies(recorder.slow),
        accounts=_summary(accounts, outcome.ends_compared),
        fairness=fairness_of(accounts.client_mean_us),
        publishing=_publishing(plan, outcome),
        server=_server(plan, recorder, moments),
        tester=_tester(plan, recorder, moments, accounts),
        timeline=[_point(moment, recorder, has_heartbeats) for moment in moments],
        latency_histogram=buckets_of(recorder.reading["tick"]),
        slow_latency_histogram=buckets_of(recorder.slow["tick"]),
    )
    return replace(report, verdict=judge(report, outcome.trouble, accounts))


def _workload(plan: Plan) -> Workload:
    return Workload(
        url=plan.url, encoding=plan.encoding.value, channels=list(plan.channels),
        connections=plan.connections, symbols_per_connection=plan.symbols_each,
        pool_symbols=list(plan.pool[:POOL_SHOWN]), pool_size=len(plan.pool),
        published_symbols=len(plan.published),
        duration_s=plan.duration_s, warmup_s=plan.warmup_s,
        publish_ticks_per_s=plan.publish_rate, burst_ticks=plan.burst,
        slow_share=plan.slow_share, stall_s=plan.stall_s, read_s=plan.read_s,
        churn_per_s=plan.churn_rate, ramp_per_s=plan.ramp_rate, processes=plan.processes,
        seed=plan.seed, conflate_ms=plan.conflate_ms, slow_policy=plan.slow_policy,
    )  # fmt: skip


def _connections(plan: Plan, accounts: Accounts, parts: Sequence[Accounts]) -> Connections:
    return Connections(
        asked=plan.connections,
        opened=accounts.opened,
        refused=sum(accounts.refusals.values()),
        refusals=accounts.refusals,
        dropped=sum(accounts.closes.values()),
        closes=accounts.closes,
        slow_closed=sum(accounts.slow_closes.values()),
        slow_closes=accounts.slow_closes,
        left_by_churn=accounts.left,
        returned=accounts.returned,
        stalls=accounts.stalls,
        handshake=latency_of(merged(part.handshake for part in parts)),
        subscribed=latency_of(merged(part.subscribed for part in parts)),
        granted=accounts.granted,
        server_errors=accounts.errors,
    )


def _throughput(moments: Sequence[SecondFigures]) -> Throughput:
    span_s = sum(moment.span_s for moment in moments)
    ticks, frames, data = (total(moments, name) for name in ("ticks", "frames", "bytes"))
    return Throughput(
        measured_s=round(span_s, 3),
        ticks=ticks,
        slow_ticks=total(moments, "slow_ticks"),
        frames=frames,
        bytes=data,
        ticks_per_s=_ratio(ticks, span_s, 1),
        frames_per_s=_ratio(frames, span_s, 1),
        bytes_per_s=_ratio(data, span_s, 1),
        ticks_per_frame=_ratio(ticks, frames, 3),
        bytes_per_tick=_ratio(data, ticks, 1),
    )


def _ratio(count: float, of: float, digits: int) -> float:
    return round(count / of, digits) if of else 0.0


def _latencies(histograms: dict[str, LatencyHistogram]) -> Latencies:
    return Latencies(*(latency_of(histograms[source]) for source in ("tick", "publish", "server")))


def _summary(accounts: Accounts, ends_compared: bool) -> AccountsSummary:
    numbered = accounts.delivered - accounts.unnumbered
    return AccountsSummary(
        checked=numbered > 0 or accounts.unnumbered == 0,
        ends_compared=ends_compared and accounts.whole_clients > 0,
        whole_run_clients=accounts.whole_clients,
        expected_ticks=accounts.expected,
        accounted_ticks=accounts.accounted,
        delivered=accounts.delivered,
        merged=accounts.merged,
        skipped=accounts.skipped,
        gap=accounts.gapped,
        snapshots=accounts.snapshots,
        unnumbered=accounts.unnumbered,
        missing=accounts.missing,
        repeated=accounts.repeated,
        reordered=accounts.reordered,
        wrong_notices=accounts.wrong_notices,
        undecodable=accounts.undecodable,
        faults=accounts.faults[:20],
    )


def _publishing(plan: Plan, outcome: Outcome) -> Publishing | None:
    if plan.publish_rate is None or outcome.lateness is None:
        return None
    return Publishing(
        outcome.scheduled, outcome.published, outcome.closing, latency_of(outcome.lateness)
    )


def _server(
    plan: Plan, recorder: RunRecorder, moments: Sequence[SecondFigures]
) -> ServerUsage | None:
    used = recorder.samples[: len(moments) + 1]
    usages = [sample.server for sample in used if sample.server is not None]
    if not plan.pids or len(usages) < 2 or len(usages) < len(used):
        return None
    span_s = used[-1].at_s - used[0].at_s
    cpu_s = usages[-1].cpu_s - usages[0].cpu_s
    ticks = total(moments, "ticks")
    return ServerUsage(
        pids=list(plan.pids),
        cpu_percent_mean=_ratio(cpu_s * 100, span_s, 1),
        cpu_us_per_tick=_ratio(cpu_s * 1e6, ticks, 3) if ticks else None,
        rss_begin_bytes=usages[0].rss_bytes,
        rss_end_bytes=usages[-1].rss_bytes,
        rss_max_bytes=max(usage.rss_bytes for usage in usages),
    )


def _tester(
    plan: Plan, recorder: RunRecorder, moments: Sequence[SecondFigures], accounts: Accounts
) -> Tester:
    busiest = [_worker_share(moment) * 100 for moment in moments] or [0.0]
    own = [
        share * 100
        for number in range(len(moments))
        if (share := cpu_share(recorder.samples, number)[1]) is not None
    ]
    late_ms = [moment.loop_late_us / 1000 for moment in moments] or [0.0]
    return Tester(
        processes=plan.processes,
        worker_cpu_percent_mean=round(statistics.fmean(busiest), 1),
        worker_cpu_percent_max=round(max(busiest), 1),
        parent_cpu_percent_mean=round(statistics.fmean(own), 1) if own else 0.0,
        loop_lateness_p50_ms=round(statistics.median(late_ms), 3),
        loop_lateness_max_ms=round(max(late_ms), 3),
        worker_rss_bytes=accounts.rss_bytes,
    )


def _worker_share(moment: SecondFigures) -> float:
    return max(
        (
            cpu_s / span_s
            for cpu_s, span_s in zip(moment.worker_cpu_s, moment.spans_s, strict=True)
            if span_s > 0
        ),
        default=0.0,
    )


def _point(moment: SecondFigures, recorder: RunRecorder, has_heartbeats: bool) -> Point:
    span_s = moment.span_s
    latency = latency_of(moment.latency())
    slow = latency_of(merged(moment.slow_parts))
    server, own = cpu_share(recorder.samples, moment.number)
    after = recorder.samples[moment.number + 1 : moment.number + 2]
    usage = after[0].server if after else None
    return Point(
        second=moment.number,
        connections=moment.connected,
        ticks_per_s=_ratio(moment.ticks, span_s, 1),
        frames_per_s=_ratio(moment.frames, span_s, 1),
        bytes_per_s=_ratio(moment.bytes, span_s, 1),
        p50_ms=latency.p50_ms if latency else None,
        p99_ms=latency.p99_ms if latency else None,
        max_ms=latency.max_ms if latency else None,
        slow_p99_ms=slow.p99_ms if slow else None,
        queue_max_bytes=moment.queue_bytes_max if has_heartbeats else None,
        queue_mean_bytes=(
            _ratio(moment.queue_bytes_sum, moment.connected, 1) if has_heartbeats else None
        ),
        lag_max_ms=moment.lag_ms_max if has_heartbeats else None,
        server_cpu_percent=_percent(server),
        server_rss_bytes=usage.rss_bytes if usage else None,
        worker_cpu_percent=round(_worker_share(moment) * 100, 1),
        parent_cpu_percent=_percent(own),
        loop_lateness_ms=round(moment.loop_late_us / 1000, 3),
        problems=moment.problems,
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else round(share * 100, 1)
