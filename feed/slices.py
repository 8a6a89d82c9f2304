"""Long work for single clients, a little at a time, so that nothing else waits for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

SLICE_S: Final = 0.005
"""How long the work of all clients may keep the event loop before other work has its turn."""
STEP_STREAMS = 100
"""Streams that one step of work handles: a few tenths of a millisecond."""

_SHORT_STEPS: Final = 5
"""Work of more steps is long."""

Steps = Iterator[None]
"""Work cut into short steps: the code between two `yield`s of a generator."""

Item = TypeVar("Item")
logger = logging.getLogger("tickcast.slices")


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Items in lists, each as long as one step should handle."""
    remaining = iter(items)
    while batch := list(islice(remaining, STEP_STREAMS)):
        yield batch


async def paced(items: Iterable[Item]) -> AsyncIterator[list[Item]]:
    """The same with other work between two of them, for loops of shells."""
    for batch in batches(items):
        yield batch
        await asyncio.sleep(0)


def run_all(steps: Steps) -> None:
    """Carry work out at once, where nothing else could be delayed by it."""
    for _ in steps:
        pass


class TimeSlices:
    """Carries out the work of many clients, each for one step at a time.

    The work of one client is done in the order in which it was given. Short work comes in turn.
    Work that turns out to be long goes on one after the other: it holds memory while it lasts.
    After every slice the event loop is free for as long as the slice took, so all work together has
    at most half of the loop.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._queues: dict[Hashable, _Queue] = {}
        self._short: deque[_Queue] = deque()
        self._long: deque[_Queue] = deque()
        self._news = asyncio.Event()

    def start(self, owner: Hashable, steps: Steps) -> None:
        """Carry work out after what the owner has given before, without waiting for it."""
        self._add(owner, steps, None)

    async def run(self, owner: Hashable, steps: Steps) -> None:
        """Carry work out after what the owner has given before; returns when it is done.

        What the work raises is raised here. Work that `forget` ends early counts as done.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(owner, steps, done)
        await done

    def forget(self, owner: Hashable) -> None:
        """End the owner's work where it is."""
        queue = self._queues.pop(owner, None)
        while queue is not None and queue.work:
            steps, done = queue.work.popleft()
            _close(steps)
            _finish(done, None)

    async def serve(self) -> None:
        """Carry out what comes until cancelled."""
        while True:
            if not self._queues:
                self._news.clear()
                await self._news.wait()
            took_s = self.work_for(SLICE_S)
            await asyncio.sleep(took_s)

    def work_for(self, budget_s: float) -> float:
        """Carry out steps until the budget is used up; returns how long it took, in seconds."""
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
        """Carry out one step of an owner's work. True if there is more of it."""
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
        steps: how many of it were carried out.
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
