"""Shared counters of the clients of one process, second by second."""

from __future__ import annotations

from typing import Final

from clients.load.histogram import LatencyHistogram
from clients.load.messages import Second, Timings
from clients.load.payload import LatencySample, Summary

_PLAUSIBLE_US: Final = 3600 * 1_000_000
"""Ticks more than an hour old or ahead come from a recording, so their age is meaningless."""
_EARLY_US: Final = -2000


class Clocks:
    """Latencies of one kind of client, from each possible starting point."""

    __slots__ = ("early", "far", "publish", "server", "tick")

    def __init__(self) -> None:
        self.tick = LatencyHistogram()
        self.publish = LatencyHistogram()
        self.server = LatencyHistogram()
        self.early = 0
        self.far = 0

    def record(self, sample: LatencySample, now_ns: int) -> int:
        """Count one tick and those it represents; return its age in µs, negative if unknown."""
        now_us = now_ns // 1000
        if sample.tr_us:
            self.publish.record(now_us - sample.tr_us, sample.weight)
        if sample.tw_us:
            self.server.record(now_us - sample.tw_us, sample.weight)
        age_us = (now_ns - sample.t_ns) // 1000
        if not -_PLAUSIBLE_US < age_us < _PLAUSIBLE_US:
            self.far += sample.weight
            return -1
        if age_us < _EARLY_US:
            self.early += sample.weight
        self.tick.record(age_us, sample.weight)
        return max(age_us, 0)

    def pack(self) -> Timings:
        """Pack the latencies to send them to the parent."""
        return Timings(self.tick.pack(), self.publish.pack(), self.server.pack())


class Meter:
    """Counters that are reset every second. `timing` tells whether latencies are recorded."""

    def __init__(self) -> None:
        self.timing = False
        self.early = 0
        self.far = 0
        self._reset()

    def _reset(self) -> None:
        self.ticks = self.slow_ticks = self.merged = self.frames = self.bytes = self.problems = 0
        self.reading = Clocks()
        self.slow = Clocks()

    def count(self, summary: Summary, slow: bool) -> None:
        """Count the ticks of a payload."""
        self.ticks += summary.ticks
        self.merged += summary.merged
        if slow:
            self.slow_ticks += summary.ticks

    def pop_second(self, number: int, span_s: float) -> Second:
        """Return the figures since the last call; the caller fills in the rest of the `Second`."""
        second = Second(
            number=number, span_s=span_s, ticks=self.ticks,
            slow_ticks=self.slow_ticks, merged=self.merged, frames=self.frames, bytes=self.bytes,
            problems=self.problems, reading=self.reading.pack(), slow=self.slow.pack(),
        )  # fmt: skip
        self.early += self.reading.early + self.slow.early
        self.far += self.reading.far + self.slow.far
        self._reset()
        return second
