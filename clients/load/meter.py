"""What the clients of one process count together, second by second."""

from __future__ import annotations

from typing import Final

from clients.load.histogram import Histogram
from clients.load.messages import Second, Timings
from clients.load.payload import Sample, Summary

_PLAUSIBLE_US: Final = 3600 * 1_000_000
"""Ticks older than an hour, or as far ahead, are a recording's: their time says nothing."""
_EARLY_US: Final = -2000


class Clocks:
    """Latencies of one kind of clients, from all that they can be counted from."""

    __slots__ = ("early", "far", "publish", "server", "tick")

    def __init__(self) -> None:
        self.tick = Histogram()
        self.publish = Histogram()
        self.server = Histogram()
        self.early = 0
        self.far = 0

    def record(self, sample: Sample, now_ns: int) -> int:
        """Count one tick, and those it stands for; returns its age in µs, below 0 if unknown."""
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
        """As sent to the parent."""
        return Timings(self.tick.pack(), self.publish.pack(), self.server.pack())


class Meter:
    """Counters that start anew every second. `timing` says whether latencies are recorded."""

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

    def take(self, number: int, span_s: float) -> Second:
        """The figures since the last call; the rest of a `Second` is left to others."""
        second = Second(
            number=number, span_s=span_s, ticks=self.ticks,
            slow_ticks=self.slow_ticks, merged=self.merged, frames=self.frames, bytes=self.bytes,
            problems=self.problems, reading=self.reading.pack(), slow=self.slow.pack(),
        )  # fmt: skip
        self.early += self.reading.early + self.slow.early
        self.far += self.reading.far + self.slow.far
        self._reset()
        return second
