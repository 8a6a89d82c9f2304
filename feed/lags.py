"""How late ticks are on their way from the publisher, and how far a client is behind. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from feed.counters import Counters
from feed.times import Moment

_QUIET_S: Final = 1.0
"""Redis may say nothing for so long: a heartbeat takes its way twice a second."""


class Arrivals:
    """What was published since the last flush, and how long it was on its way.

    Attributes:
        add: takes when a batch was published, microseconds since the Unix epoch (0 if unknown), and
            how many ticks it has.
    """

    __slots__ = ("_at_s", "_batches", "_counters", "_lag_us", "add")

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._batches: list[tuple[int, int]] = []
        # The list's own method: it is called for each batch.
        self.add: Callable[[tuple[int, int]], None] = self._batches.append
        self._at_s = 0.0
        self._lag_us = 0

    def flush(self, now: Moment) -> None:
        """All that has arrived is sent: note how late that is."""
        if not self._batches:
            return
        lags = self._counters.lag_s
        lag_us = 0
        for published_us, ticks in self._batches:
            if published_us:
                lag_us = max(0, now.wall_us - published_us)
                lags.observe(lag_us / 1e6, ticks)
        self._at_s, self._lag_us = now.steady_s, lag_us
        self._counters.flush_ticks.observe(sum([ticks for _, ticks in self._batches]))
        self._batches.clear()

    def lag_ms(self, now: Moment) -> int:
        """How long the ticks sent in the last second have been on their way from the publisher."""
        return self._lag_us // 1000 if now.steady_s - self._at_s <= 1 else 0


class Stall:
    """How long a client has received nothing new: because it does not read, or Redis is silent."""

    __slots__ = ("_heard_s", "_read_s")

    def __init__(self) -> None:
        self._heard_s = self._read_s = 0.0

    def look(self, now_s: float, *, broker_heard_s: float, all_taken: bool) -> None:
        """Note how things are now, on a steady clock.

        Args:
            broker_heard_s: when the last word came from Redis; 0 if none ever came. The stall is
                counted from there, or else from the first look.
            all_taken: whether the client has taken everything. At the first look it counts as so.
        """
        self._heard_s = broker_heard_s or self._heard_s or now_s
        if all_taken or not self._read_s:
            self._read_s = now_s

    def lasts_ms(self, now_s: float) -> int:
        """How long it lasts by now; 0 where all is well."""
        silent_s = now_s - self._heard_s
        return int(1000 * max(now_s - self._read_s, silent_s if silent_s > _QUIET_S else 0.0))
