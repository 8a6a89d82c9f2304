"""Decides when the hub flushes."""

from __future__ import annotations

import asyncio
import time

from feed.fanout.hub import Hub
from tickcast.wire.times import Instant

_EARLY_S = 0.001
"""Timers have a resolution of 1 ms. This margin keeps them from firing before the due time."""


class Flusher:
    """Flushes at the end of the loop turn in which ticks arrived, and less often under load.

    After a flush that took `d` seconds, the next one starts no sooner than `pace * d` later, or
    `window_s` later if that is less. An idle server therefore adds no delay, while a busy one has
    time left for reading and sends more ticks with each write. Pauses are rounded down to whole
    milliseconds, the resolution of timers: a pause of 0.5 ms would take 1 ms, for little gain.
    """

    def __init__(self, hub: Hub, pace: float, window_s: float) -> None:
        self._hub = hub
        self._pace = pace
        self._window_s = window_s
        self._not_before = 0.0
        self._next: asyncio.Handle | None = None
        self._conflated: asyncio.TimerHandle | None = None
        self._conflated_s = 0.0

    def wake(self) -> None:
        """Schedule a flush if none is scheduled. Cheap to call often."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            rest_ms = int((self._not_before - time.perf_counter()) * 1000)
            self._next = (
                loop.call_later(rest_ms / 1000, self._flush)
                if rest_ms > 0
                else loop.call_soon(self._flush)
            )

    def _flush(self) -> None:
        self._next = None
        began = time.perf_counter()
        now = Instant.now()
        try:
            self._hub.flush(now)
        finally:
            # Do this even after a bug, which the loop logs. Otherwise conflation would stop.
            ended = time.perf_counter()
            self._hub.counters.flush_s.observe(ended - began)
            self._not_before = ended + min(self._pace * (ended - began), self._window_s)
            self._come_back(now)

    def _come_back(self, now: Instant) -> None:
        """Schedule the next flush of conflated ticks."""
        due_s = self._hub.due_s()
        if due_s is None or (self._conflated and self._conflated_s <= due_s):
            return
        if self._conflated:
            self._conflated.cancel()
        delay_s = max(0.0, due_s - now.monotonic_s) + _EARLY_S
        self._conflated_s = due_s
        self._conflated = asyncio.get_running_loop().call_later(delay_s, self._flush_conflated)

    def _flush_conflated(self) -> None:
        self._conflated = None
        self.wake()
