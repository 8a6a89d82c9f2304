"""Compute when each tick of a recording is due, and publish ticks on that schedule."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from tickcast.broker.publisher import FeedPublisher
from tickcast.wire.ticks import Tick
from tickcast.wire.times import NS_PER_SECOND

_BATCH_TICKS_MAX: Final = 500


class Pacer:
    """Converts the times of ticks to seconds since the start of the replay. Reads no clock.

    Args:
        speed: 1 keeps the recorded spacing, 10 divides it by ten, None ignores it.
        max_rate: the maximum number of ticks per second, evenly spaced; None means no limit.
    """

    def __init__(self, speed: float | None = 1.0, max_rate: float | None = None) -> None:
        self._speed = speed
        self._gap_s = 1 / max_rate if max_rate else 0.0
        self._first_ns: int | None = None
        self._due_s = 0.0

    def due(self, tick: Tick) -> float:
        """Return when the next tick is due, in seconds; never earlier than the one before."""
        if self._first_ns is None:
            self._first_ns = tick.time
            return 0.0
        due = self._due_s + self._gap_s
        if self._speed:
            due = max(due, (tick.time - self._first_ns) / NS_PER_SECOND / self._speed)
        self._due_s = due
        return due


async def play(
    ticks: Iterable[Tick],
    publisher: FeedPublisher,
    pacer: Pacer,
    on_progress: Callable[[Tick, int], None] = lambda tick, count: None,
    stamp: Callable[[Tick], Tick] = lambda tick: tick,
) -> int:
    """Publish ticks when they are due and return their number.

    The schedule is fixed at the start: after a delay, the following ticks catch up with it.

    Args:
        on_progress: called after each batch with its last tick and the count so far.
        stamp: returns the tick to publish in place of a tick. The original tick's time determines
            when it is due.
    """
    clock = asyncio.get_running_loop().time
    began = clock()
    count = 0
    batch: list[Tick] = []

    async def flush() -> None:
        if batch:
            await publisher.publish(batch)
            on_progress(batch[-1], count)
            batch.clear()

    for tick in ticks:
        ahead = pacer.due(tick) - (clock() - began)
        if ahead > 0 or len(batch) >= _BATCH_TICKS_MAX:
            await flush()
            await asyncio.sleep(max(0.0, ahead))
        batch.append(stamp(tick))
        count += 1
    await flush()
    await publisher.flush()
    return count
