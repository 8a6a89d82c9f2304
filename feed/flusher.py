"""Decides when the hub flushes."""

from __future__ import annotations

import asyncio
import time

from feed.hub import Hub


class Flusher:
    """Flushes at the end of the loop turn in which ticks came, and less often under load.

    After a flush that took `d` seconds the next one starts no sooner than `pace * d` later, or
    `window_s` where that is less. So an idle server adds no delay, and a busy one keeps time for
    reading and sends more ticks with each write.
    """

    def __init__(self, hub: Hub, pace: float, window_s: float) -> None:
        self._hub = hub
        self._pace = pace
        self._window_s = window_s
        self._not_before = 0.0
        self._next: asyncio.Handle | None = None

    def wake(self) -> None:
        """Make sure that a flush is coming; cheap to call often."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            rest = self._not_before - loop.time()
            self._next = (
                loop.call_later(rest, self._flush) if rest > 0 else loop.call_soon(self._flush)
            )

    def _flush(self) -> None:
        self._next = None
        began = time.perf_counter()
        self._hub.flush()
        took = time.perf_counter() - began
        self._not_before = asyncio.get_running_loop().time() + min(
            self._pace * took, self._window_s
        )
