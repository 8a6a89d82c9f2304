"""Decide when the hub flushes."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from feed.fanout.hub import Hub
from tickcast.wire.times import Instant

# Timers have a resolution of 1 ms. This margin keeps them from firing before the due time.
_TIMER_MARGIN_S: Final = 0.001


class Flusher:
    """Flushes at the end of the loop turn in which ticks arrived, and less often under load.

    After a flush that took `d` seconds, the next one starts no sooner than `pace * d` later, or
    `window_s` later if that is less. An idle server therefore adds no delay, while a busy one has
    time left for reading and sends more ticks with each write.
    """

    def __init__(self, hub: Hub, pace: float, window_s: float) -> None:
        self._hub = hub
        self._pace = pace
        self._window_s = window_s
        self._not_before_s = 0.0
        self._next: asyncio.Handle | None = None
        # Wakes the flusher when conflated ticks are due.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0

    def wake(self) -> None:
        """Schedule a flush if none is scheduled. Cheap to call often."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            # Rounded down to the resolution of timers: a pause of 0.5 ms would take 1 ms, for
            # little gain.
            pause_ms = int((self._not_before_s - time.perf_counter()) * 1000)
            self._next = (
                loop.call_later(pause_ms / 1000, self._flush)
                if pause_ms > 0
                else loop.call_soon(self._flush)
            )

    def _flush(self) -> None:
        self._next = None
        began_s = time.perf_counter()
        now = Instant.now()
        try:
            self._hub.flush(now)
        finally:
            # Do this even after a bug, which the loop logs. Otherwise conflation would stop.
            ended_s = time.perf_counter()
            took_s = ended_s - began_s
            self._hub.counters.flush_s.observe(took_s)
            self._not_before_s = ended_s + min(self._pace * took_s, self._window_s)
            self._set_timer(now)

    def _set_timer(self, now: Instant) -> None:
        """Schedule the next flush of conflated ticks."""
        due_s = self._hub.due_s()
        if due_s is None or (self._timer and self._timer_due_s <= due_s):
            return
        if self._timer:
            self._timer.cancel()
        delay_s = max(0.0, due_s - now.monotonic_s) + _TIMER_MARGIN_S
        self._timer_due_s = due_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.wake()
