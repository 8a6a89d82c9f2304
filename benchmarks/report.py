"""Format the output: the table of figures, and Tickcast's ratios with the required ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from measure import Figures

P99_MAX_MS = 40.0
TOO_BUSY = 0.85
NOISY = 0.10
LATE_MS = 10.0

Results = Mapping[tuple[str, str], Figures | str]
"""Figures by workload and row, or a text that says why there are none."""


class Requirement(NamedTuple):
    """The highest allowed ratio of Tickcast's figure to a peer's."""

    workload: str
    figure: str
    peer: str
    at_most: float


REQUIREMENTS = (
    Requirement("W1@1000", "cpu_us", "bun", 0.75),
    Requirement("W2@5000", "cpu_us", "bun", 0.75),
    Requirement("W3", "cpu_us", "bun", 0.5),
    Requirement("W1@100", "cpu_us", "bun", 1.3),
    Requirement("W2@200", "p50_ms", "bun", 2.0),
    *(Requirement(name, "cpu_us", "nats", 1.0) for name in ("W1@1000", "W2@5000", "W3", "W1@100")),
)

HEADER = (
    f"{'workload':10}{'server':20}{'µs/tick':>9}{'p50 ms':>9}{'p99 ms':>9}{'RSS MB':>8}"
    f"{'kB/conn':>9}{'core %':>8}{'clients %':>11}{'publ. %':>9}"
)


def median(runs: Sequence[Figures | str]) -> Figures | str:
    """Return the median of each figure, or the reason if a run failed."""
    for run in runs:
        if isinstance(run, str):
            return run
    figures = [run for run in runs if isinstance(run, Figures)]
    return Figures(*(statistics.median(column) for column in zip(*figures, strict=True)))


def row(workload: str, server: str, result: Figures | str) -> str:
    """Format one line of the table."""
    start = f"{workload:10}{server:20}"
    if isinstance(result, str):
        return f"{start}  {result}"
    line = (
        f"{start}{result.cpu_us:9.3f}{result.p50_ms:9.2f}{result.p99_ms:9.2f}"
        f"{result.server_mb:8.0f}{result.connection_kb:9.1f}"
        f"{result.server_load * 100:8.0f}{result.client_load * 100:11.0f}"
        f"{result.publisher_load * 100:9.0f}"
    )
    return "  ".join((line, *remarks(result)))


def remarks(result: Figures) -> list[str]:
    """Return warnings about a line."""
    found = []
    if result.delivered < 1:
        found.append(f"falls behind: {result.delivered:.0%} delivered")
    if result.client_load + result.publisher_load > TOO_BUSY:
        found.append("! the clients were the bottleneck")
    elif result.late_ms > LATE_MS and result.delivered == 1:
        found.append(f"! the publisher was {result.late_ms:.0f} ms late")
    if result.others_load > NOISY:
        found.append(f"! others used {result.others_load:.0%} of a core")
    return found


def table(results: Results) -> str:
    """Format the table of all figures."""
    return "\n".join([HEADER, *(row(*key, result) for key, result in results.items())])


def verdicts(results: Results, subject: str) -> str:
    """Format the required ratios, and whether they are met."""
    lines = []
    for workload, figure, peer, at_most in REQUIREMENTS:
        ours, theirs = results.get((workload, subject)), results.get((workload, peer))
        if ours is None or theirs is None:
            continue
        what = f"{workload:10}{'CPU' if figure == 'cpu_us' else 'p50':5}/ {peer:8}"
        ratio = _ratio(ours, theirs, figure)
        if math.isnan(ratio):
            lines.append(f"{what}    -     no figures")
        else:
            word = "pass" if ratio <= at_most else "FAIL"
            lines.append(f"{what}{ratio:6.2f}  at most {at_most:4.2f}  {word}")
    for (workload, server), result in results.items():
        if server == subject and isinstance(result, Figures):
            word = "pass" if result.p99_ms < P99_MAX_MS and result.delivered == 1 else "FAIL"
            lines.append(f"{workload:10}p99 ms       {result.p99_ms:6.1f}  below    40    {word}")
    return "\n".join(lines)


def _ratio(ours: Figures | str, theirs: Figures | str, figure: str) -> float:
    if isinstance(ours, str) or isinstance(theirs, str):
        return math.nan
    if ours.delivered < 1:
        return math.inf
    mine: float = getattr(ours, figure)
    return mine / float(getattr(theirs, figure))
