from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from feed.fanout.hub import Hub
from feed.ingest.live_ticks import Flusher
from tests.conftest import until
from tickcast.wire.times import Instant


class BusyHub(Hub):
    """A hub without clients, whose flushes take a given time."""

    def __init__(self, flush_s: float = 0.0) -> None:
        super().__init__()
        self.flush_s = flush_s
        self.began: list[float] = []
        self.ended: list[float] = []
        self.due: float | None = None
        self.before_next: Callable[[], None] | None = None

    def flush(self, now: Instant) -> None:
        self.began.append(time.perf_counter())
        before, self.before_next = self.before_next, None
        if before is not None:
            before()
        time.sleep(self.flush_s)
        self.ended.append(time.perf_counter())
        if self.due is not None and self.due <= now.monotonic_s:
            self.due = None

    def due_s(self) -> float | None:
        return self.due


async def test_an_idle_flusher_flushes_once_in_the_same_turn() -> None:
    hub = BusyHub()
    flusher = Flusher(hub, pace=1.0, window_s=10.0)
    for _ in range(3):
        flusher.wake()
    assert hub.began == []
    await asyncio.sleep(0)
    assert len(hub.began) == 1
    # A flush shorter than a millisecond is followed by no pause; on a busy machine some take
    # longer.
    immediate = 0
    for _ in range(20):
        before = len(hub.began)
        flusher.wake()
        await asyncio.sleep(0)
        immediate += len(hub.began) == before + 1
        await until(lambda before=before: len(hub.began) == before + 1)  # type: ignore[misc]
    assert immediate > 0


async def test_the_pause_is_proportional_to_the_last_flush() -> None:
    hub = BusyHub(flush_s=0.02)
    flusher = Flusher(hub, pace=2.0, window_s=10.0)
    flusher.wake()
    await asyncio.sleep(0)
    flusher.wake()
    await asyncio.sleep(0)
    assert len(hub.began) == 1
    await until(lambda: len(hub.began) == 2)
    took = hub.ended[0] - hub.began[0]
    # Allow two milliseconds less: a timer rounds down, and so does the loop's clock.
    assert hub.began[1] - hub.ended[0] >= 2 * took - 0.002


async def test_without_pace_there_is_no_pause() -> None:
    hub = BusyHub(flush_s=0.02)
    flusher = Flusher(hub, pace=0.0, window_s=10.0)
    for count in (1, 2, 3):
        flusher.wake()
        await asyncio.sleep(0)
        assert len(hub.began) == count


async def test_the_window_limits_the_pause() -> None:
    hub = BusyHub(flush_s=0.05)
    flusher = Flusher(hub, pace=10.0, window_s=0.005)
    flusher.wake()
    await asyncio.sleep(0)
    flusher.wake()
    await until(lambda: len(hub.began) == 2)
    assert hub.began[1] - hub.ended[0] < 5 * (hub.ended[0] - hub.began[0])


async def test_conflated_ticks_are_flushed_when_they_are_due() -> None:
    hub = BusyHub()
    flusher = Flusher(hub, pace=0.0, window_s=0.0)
    hub.due = due = time.monotonic() + 0.03
    flusher.wake()
    await asyncio.sleep(0)
    assert len(hub.began) == 1
    await until(lambda: hub.due is None)
    assert time.monotonic() >= due
    assert len(hub.began) == 2


async def test_flushes_continue_after_one_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub = BusyHub()
    flusher = Flusher(hub, pace=1.0, window_s=0.01)

    def fail() -> None:
        raise ValueError("a bug")

    hub.due = Instant.now().monotonic_s + 0.05
    hub.before_next = fail
    flusher.wake()
    await until(lambda: "ValueError: a bug" in caplog.text)
    await until(lambda: hub.due is None)
    assert len(hub.ended) == 1
