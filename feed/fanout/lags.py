"""Measures the delay of ticks since their publication, and how far a client is behind. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from feed.fanout.counters import Counters
from tickcast.wire.times import Instant

_QUIET_S: Final = 1.0
"""Silence from Redis that is still normal: heartbeats pass through it twice a second."""


class Arrivals:
    """The batches published since the last flush, and their delay.

    Attributes:
        add: takes a pair: when a batch was published, in microseconds since the Unix epoch (0 if
            unknown), and its number of ticks.
    """

    __slots__ = ("_at_s", "_batches", "_counters", "_lag_us", "add")

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._batches: list[tuple[int, int]] = []
        # Bound directly to the list's method, because it is called for each batch.
        self.add: Callable[[tuple[int, int]], None] = self._batches.append
        self._at_s = 0.0
        self._lag_us = 0

    def flush(self, now: Instant) -> None:
        """Record the delay of all batches that have just been sent."""
        if not self._batches:
            return
        lags = self._counters.lag_s
        lag_us = 0
        for published_us, ticks in self._batches:
            if published_us:
                lag_us = max(0, now.wall_us - published_us)
                lags.observe(lag_us / 1e6, ticks)
        self._at_s, self._lag_us = now.monotonic_s, lag_us
        self._counters.flush_ticks.observe(sum([ticks for _, ticks in self._batches]))
        self._batches.clear()

    def lag_ms(self, now: Instant) -> int:
        """The delay of the last ticks since publication; 0 if none were sent in the last second."""
        return self._lag_us // 1000 if now.monotonic_s - self._at_s <= 1 else 0


class Staleness:
    """How long a client has been stalled, because it does not read or because Redis is silent."""

    __slots__ = ("_heard_s", "_read_s")

    def __init__(self) -> None:
        self._heard_s = self._read_s = 0.0

    def update(self, now_s: float, *, broker_heard_s: float, all_taken: bool) -> None:
        """Record the current state.

        Args:
            now_s: time on a steady clock.
            broker_heard_s: when the last message came from Redis; 0 if none ever came. The stall
                counts from then, or from the first call.
            all_taken: whether the client has taken everything; assumed True at the first call.
        """
        self._heard_s = broker_heard_s or self._heard_s or now_s
        if all_taken or not self._read_s:
            self._read_s = now_s

    def lasts_ms(self, now_s: float) -> int:
        """The duration of the stall in ms; 0 if there is none."""
        silent_s = now_s - self._heard_s
        return int(1000 * max(now_s - self._read_s, silent_s if silent_s > _QUIET_S else 0.0))
