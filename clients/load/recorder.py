"""Combine the figures of all processes into one timeline during the run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import Struct

from clients.load.gauges import ProcessUsage
from clients.load.histogram import LatencyHistogram, merged
from clients.load.messages import Packed, Second, Timings

_SOURCES: Final = ("tick", "publish", "server")


class SecondFigures(Struct):
    """One second of the run, over all processes.

    Attributes:
        spans_s: the actual length of the second in each process that reported it.
        parts, slow_parts: packed latencies from tick time in each of these processes, of clients
            that always read and of slow ones.
        worker_cpu_s: the CPU time that each process used.
    """

    number: int
    spans_s: list[float]
    connected: int = 0
    ticks: int = 0
    slow_ticks: int = 0
    frames: int = 0
    bytes: int = 0
    problems: int = 0
    queue_bytes_max: int = 0
    queue_bytes_sum: int = 0
    lag_ms_max: float = 0.0
    loop_late_us: int = 0
    worker_cpu_s: list[float] = []
    parts: list[Packed] = []
    slow_parts: list[Packed] = []

    @property
    def span_s(self) -> float:
        """The mean length of the second."""
        return sum(self.spans_s) / len(self.spans_s) if self.spans_s else 0.0

    def latency(self) -> LatencyHistogram:
        """Return the latencies from tick time of clients that always read."""
        return merged(self.parts)


class UsageSample(Struct, frozen=True):
    """CPU time of the server and this process, at a time in seconds since the start."""

    at_s: float
    own_cpu_s: float
    server: ProcessUsage | None


class RunRecorder:
    """The figures of the run so far.

    Attributes:
        moments: the figures by second, from the start of the measurement.
        connected, settled: the latest numbers by process.
        reading, slow: latencies of the whole run by their starting point.
        samples: one sample of CPU time per second.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self.moments: dict[int, SecondFigures] = {}
        self.connected: dict[int, int] = {}
        self.settled: dict[int, int] = {}
        self.problems = 0
        self.heartbeats: dict[int, int] = {}
        self.reading = {source: LatencyHistogram() for source in _SOURCES}
        self.slow = {source: LatencyHistogram() for source in _SOURCES}
        self.samples: list[UsageSample] = []

    def add(self, process: int, second: Second) -> None:
        """Add the figures of one process for one second."""
        self.connected[process] = second.connected
        self.settled[process] = second.settled
        self.heartbeats[process] = second.heartbeats
        self.problems += second.problems
        if second.number < 0:
            return
        _merge_timings(self.reading, second.reading)
        _merge_timings(self.slow, second.slow)
        moment = self.moments.setdefault(second.number, SecondFigures(second.number, []))
        moment.spans_s.append(second.span_s)
        moment.worker_cpu_s.append(second.cpu_s)
        moment.parts.append(second.reading.tick)
        moment.slow_parts.append(second.slow.tick)
        for name in (
            "connected", "ticks", "slow_ticks", "frames", "bytes", "problems", "queue_bytes_sum",
        ):  # fmt: skip
            setattr(moment, name, getattr(moment, name) + getattr(second, name))
        for name in ("queue_bytes_max", "lag_ms_max", "loop_late_us"):
            setattr(moment, name, max(getattr(moment, name), getattr(second, name)))

    def last_moment(self) -> SecondFigures | None:
        """Return the latest second that every process has reported."""
        whole = (
            moment for moment in self.moments.values() if len(moment.spans_s) >= self._processes
        )
        return max(whole, key=lambda moment: moment.number, default=None)

    def measured(self, duration_s: float) -> list[SecondFigures]:
        """Return the full seconds of the measurement, or the first, partial one if it has none."""
        found = [self.moments[number] for number in sorted(self.moments) if number >= 0]
        full = [moment for moment in found if moment.number + 1 <= duration_s + 1e-6]
        return full or found[:1]


def _merge_timings(into: dict[str, LatencyHistogram], timings: Timings) -> None:
    for source in _SOURCES:
        into[source].merge(getattr(timings, source))


def cpu_share(samples: Sequence[UsageSample], number: int) -> tuple[float | None, float | None]:
    """Return the CPU use of the server and this process in a second; 1: one core, None: unknown."""
    if number + 1 >= len(samples):
        return None, None
    before, after = samples[number], samples[number + 1]
    span_s = after.at_s - before.at_s
    if span_s <= 0:
        return None, None
    own = (after.own_cpu_s - before.own_cpu_s) / span_s
    if before.server is None or after.server is None:
        return None, own
    return (after.server.cpu_s - before.server.cpu_s) / span_s, own


def total(moments: Iterable[SecondFigures], name: str) -> int:
    """Return the sum of one count over some seconds."""
    return sum(getattr(moment, name) for moment in moments)
