"""Decide whether a run passed, and warn of anything that affects its figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from clients.load.messages import Accounts
from clients.load.report import LoadReport, RunVerdict

BUSY_PERCENT: Final = 85.0
"""A process that uses more of a core than this is likely to delay what it measures."""
LOOP_LATE_MS: Final = 50.0
PUBLISHER_LATE_MS: Final = 20.0


def judge(report: LoadReport, trouble: Sequence[str], accounts: Accounts) -> RunVerdict:
    """Return the verdict on a report, ignoring the one it contains.

    Args:
        trouble: problems in running the load that are not part of the report.
    """
    problems = [*trouble, *_problems(report)]
    return RunVerdict(
        not problems, problems, list(_warnings(report, accounts)), list(_notes(report, accounts))
    )


def _problems(report: LoadReport) -> Iterator[str]:
    accounts, connections = report.accounts, report.connections
    kinds = (
        (accounts.missing, "missing"), (accounts.repeated, "repeated"),
        (accounts.reordered, "out of order"),
    )  # fmt: skip
    found = ", ".join(f"{count:,} {words}" for count, words in kinds if count)
    if found:
        yield f"unexplained ticks: {found}"
    if accounts.wrong_notices:
        yield f"{accounts.wrong_notices:,} skipped or gap notices that do not fit"
    if accounts.undecodable:
        yield f"{accounts.undecodable:,} frames that are no messages"
    if accounts.ends_compared and accounts.accounted_ticks < accounts.expected_ticks and not found:
        lacking = accounts.expected_ticks - accounts.accounted_ticks
        yield f"{lacking:,} published ticks are not accounted for"
    if not connections.opened:
        yield "no connection could be opened"
    elif connections.refused:
        yield f"{connections.refused:,} connections refused: {_counts(connections.refusals)}"
    if connections.dropped:
        yield (
            f"{connections.dropped:,} reading connections closed by the server:"
            f" {_counts(connections.closes, 'code ')}"
        )
    other = {code: n for code, n in connections.slow_closes.items() if code not in {"4102", "1006"}}
    if other:
        yield f"slow connections closed for another reason: {_counts(other, 'code ')}"
    if report.publishing and report.publishing.published_ticks < report.publishing.scheduled_ticks:
        short = report.publishing.scheduled_ticks - report.publishing.published_ticks
        yield f"{short:,} ticks could not be published in time"


def _warnings(report: LoadReport, accounts: Accounts) -> Iterator[str]:
    tester, publishing = report.tester, report.publishing
    if tester.worker_cpu_percent_mean > BUSY_PERCENT:
        yield (
            f"the load tester was the bottleneck: a process used"
            f" {tester.worker_cpu_percent_mean:.0f}% of a core; latencies are partly its own."
            " Use --processes, or another machine"
        )
    if tester.loop_lateness_p50_ms > LOOP_LATE_MS:
        yield (
            f"the load tester came late to its sockets, by {tester.loop_lateness_p50_ms:.0f} ms in"
            f" half of the seconds, by {tester.loop_lateness_max_ms:.0f} ms at worst: latencies"
            " are partly its own"
        )
    if tester.parent_cpu_percent_mean > BUSY_PERCENT:
        yield (
            f"the publishing process used {tester.parent_cpu_percent_mean:.0f}% of a core: it may"
            " not have kept to its schedule"
        )
    lateness = publishing.lateness if publishing else None
    if lateness and lateness.p99_ms > PUBLISHER_LATE_MS:
        yield (
            f"the publisher was late: 1 % of the ticks by more than {lateness.p99_ms:.0f} ms;"
            " latency from tick time includes that"
        )
    if accounts.early:
        yield (
            f"{accounts.early:,} ticks came before their time: the clocks of this machine and the"
            " producer's differ, and latencies from tick time are off by as much"
        )


def _notes(report: LoadReport, accounts: Accounts) -> Iterator[str]:
    summary, connections = report.accounts, report.connections
    if report.interrupted:
        yield "interrupted: figures are of the time until then"
    if not summary.checked:
        yield "the server's ticks carry no seq: order and completeness could not be checked"
    elif not summary.delivered:
        yield "no tick arrived"
    elif not summary.ends_compared:
        yield "order was checked, but not whether the last ticks came: nothing to compare with"
    if report.throughput.ticks and report.latency.from_tick_time is None:
        yield "tick times are not of today: no latency from tick time"
    if connections.opened and "stamps" not in connections.granted:
        yield "no stamps: latency from publish time is not known"
    if connections.opened and "heartbeat_ms" not in connections.granted:
        yield "no heartbeats: the server's queues are not known"
    elif report.timeline and not any(point.queue_max_bytes for point in report.timeline):
        yield "at every heartbeat the server's queues were empty"
    workload = report.workload
    for asked, name in ((workload.conflate_ms, "conflate_ms"), (workload.slow_policy, "slow")):
        if asked is not None and connections.opened and name not in connections.granted:
            yield f"the server refused the option {name}; it was left out"
    if connections.slow_closed:
        yield (
            f"slow connections closed by the server: {connections.slow_closed:,}"
            f" ({_counts(connections.slow_closes, 'code ')}); {connections.returned:,} came back"
        )


def _counts(counts: dict[str, int], prefix: str = "") -> str:
    ordered = sorted(counts.items(), key=lambda each: -each[1])
    shown = ", ".join(f"{count:,} × {prefix}{name}" for name, count in ordered[:4])
    return shown + (", …" if len(ordered) > 4 else "")
