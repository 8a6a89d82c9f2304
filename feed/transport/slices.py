"""Runs long work for single clients in short steps, so that other work need not wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

SLICE_S: Final = 0.005
"""Time that this work may hold the event loop before other work runs."""
STEP_STREAMS = 100
"""Streams handled in one step, which takes a few tenths of a millisecond."""

_SHORT_STEPS: Final = 5
"""Work with more steps than this counts as long."""

Steps = Iterator[None]
"""Work in short steps: each step is the code between two `yield`s of a generator."""

Item = TypeVar("Item")
logger = logging.getLogger("tickcast.slices")


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Split items into lists of the size that one step should handle."""
    remaining = iter(items)
    while batch := list(islice(remaining, STEP_STREAMS)):
        yield batch


async def paced(items: Iterable[Item]) -> AsyncIterator[list[Item]]:
    """Split items as `batches` does, and let other tasks run between two lists."""
    for batch in batches(items):
        yield batch
        await asyncio.sleep(0)


def run_all(steps: Steps) -> None:
    """Run all steps at once, for use when nothing else would be delayed."""
    for _ in steps:
        pass


class TimeSlices:
    """Runs the work of many clients, one step at a time.

    The work of one client runs in the order in which it was added. Short work of different clients
    runs round-robin. Long work runs one client after the other, because it holds memory while it
    lasts. After every slice the event loop is free for as long as the slice took, so this work
    takes at most half of the loop's time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._queues: dict[Hashable, _Queue] = {}
        self._short: deque[_Queue] = deque()
        self._long: deque[_Queue] = deque()
        self._news = asyncio.Event()

    def start(self, owner: Hashable, steps: Steps) -> None:
        """Add work after the owner's earlier work, without waiting for it."""
        self._add(owner, steps, None)

    async def run(self, owner: Hashable, steps: Steps) -> None:
        """Run work after the owner's earlier work, and return when it is done.

        Exceptions of the work are raised here. Work that `forget` ends early counts as done.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(owner, steps, done)
        await done

    def forget(self, owner: Hashable) -> None:
        """Abandon all work of an owner."""
        queue = self._queues.pop(owner, None)
        while queue is not None and queue.work:
            steps, done = queue.work.popleft()
            _close(steps)
            _finish(done, None)

    async def serve(self) -> None:
        """Run added work until cancelled."""
        while True:
            if not self._queues:
                self._news.clear()
                await self._news.wait()
            took_s = self.work_for(SLICE_S)
            await asyncio.sleep(took_s)

    def work_for(self, budget_s: float) -> float:
        """Run steps until the budget is used up; return the time it took, in seconds."""
        began_s = self._clock()
        took_s = 0.0
        while took_s < budget_s and (self._short or self._long):
            if self._short:
                queue = self._short.popleft()
                if self._take_step(queue):
                    (self._short if queue.steps < _SHORT_STEPS else self._long).append(queue)
            if self._long and not self._take_step(self._long[0]):
                self._long.popleft()
            took_s = self._clock() - began_s
        return took_s

    def _add(self, owner: Hashable, steps: Steps, done: asyncio.Future[None] | None) -> None:
        queue = self._queues.get(owner)
        if queue is None:
            queue = self._queues[owner] = _Queue(owner)
            self._short.append(queue)
        queue.work.append((steps, done))
        self._news.set()

    def _take_step(self, queue: _Queue) -> bool:
        """Run one step of an owner's work; return whether there is more."""
        if not queue.work:
            return False
        queue.steps += 1
        steps, done = queue.work[0]
        ended = False
        failure: Exception | None = None
        if done is not None and done.cancelled():
            _close(steps)
            ended = True
        else:
            try:
                next(steps)
            except StopIteration:
                ended = True
            except Exception as error:
                ended, failure = True, error
        if ended:
            queue.work.popleft()
            _finish(done, failure)
            if not queue.work:
                del self._queues[queue.owner]
        return bool(queue.work)


class _Queue:
    """The work of one owner.

    Attributes:
        steps: number of steps that have run.
    """

    __slots__ = ("owner", "steps", "work")

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.steps = 0
        self.work: deque[tuple[Steps, asyncio.Future[None] | None]] = deque()


def _close(steps: Steps) -> None:
    close = getattr(steps, "close", None)
    if close is not None:
        close()


def _finish(done: asyncio.Future[None] | None, failure: Exception | None) -> None:
    if done is None:
        if failure is not None:
            logger.error("a bug in sliced work", exc_info=failure)
    elif not done.done():
        if failure is not None:
            done.set_exception(failure)
        else:
            done.set_result(None)
