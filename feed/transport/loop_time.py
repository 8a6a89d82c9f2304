"""Shares the time of the event loop between clients, so that ticks need not wait for their work.

`TurnBudget` is for what clients send: one turn of the loop reads from every socket that is ready,
and a thousand clients that send at once would make a turn last for seconds. `TimeSlices` is for
what they ask for: an action that concerns thousands of streams runs in short steps.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from itertools import islice
from time import perf_counter
from typing import Final, NamedTuple, TypeVar

_TURN_S: Final = 0.005
# Time spent on one client's messages before the next client's.
_CLIENT_S: Final = 0.001
# A request runs for about a millisecond before it first waits for something.
_STARTS_PER_TURN: Final = 4

# Time that steps may hold the event loop before other work runs.
SLICE_S: Final = 0.005
# Streams handled in one step, which takes a few tenths of a millisecond.
STEP_STREAMS = 100
# Work with more steps than this counts as long.
_SHORT_STEPS: Final = 5

# Works until a deadline on the clock of `perf_counter`; returns whether work is left.
Work = Callable[[float], bool]
# Work in short steps: each step is the code between two `yield`s of a generator.
Steps = Iterator[None]
Item = TypeVar("Item")

logger = logging.getLogger("tickcast")


class TurnBudget:
    """Runs work at once while the current turn has time left, and in later turns otherwise.

    All clients share one object. Waiting work is run round-robin.

    Args:
        turn_s: time that one turn of the loop may spend on work, in seconds.
        starts: number of coroutines that may pass `wait_for_start` in one turn.
    """

    def __init__(self, turn_s: float = _TURN_S, starts: int = _STARTS_PER_TURN) -> None:
        self._turn_s = turn_s
        self._starts_max = starts
        # What the current turn has spent, and how many coroutines it has started.
        self._spent_s = 0.0
        self._started = 0
        self._is_scheduled = False
        self._waiting: deque[Work] = deque()
        self._starting: deque[asyncio.Future[None]] = deque()

    def run(self, work: Work) -> bool:
        """Run work for as long as this turn allows; return whether some of it is left.

        The rest runs in later turns. Do not pass the same work again before it has finished.
        """
        self._schedule()
        if self._waiting or self._spent_s >= self._turn_s:
            self._waiting.append(work)
            return True
        began_s = perf_counter()
        is_left = work(began_s + self._turn_s - self._spent_s)
        self._spent_s += perf_counter() - began_s
        if is_left:
            self._waiting.append(work)
        return is_left

    async def wait_for_start(self, *, urgent: bool = False) -> None:
        """Wait for a turn of the loop that has started only a few requests.

        Args:
            urgent: go first. If a probe waited behind a crowd of handshakes, a supervisor could
                restart a server that is only busy.
        """
        self._schedule()
        if self._started < self._starts_max and (urgent or not self._starting):
            self._started += 1
            return
        future = asyncio.get_running_loop().create_future()
        if urgent:
            self._starting.appendleft(future)
        else:
            self._starting.append(future)
        await future

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._is_scheduled = False
        self._started = 0
        while self._starting and self._started < self._starts_max:
            future = self._starting.popleft()
            if not future.done():
                future.set_result(None)
                self._started += 1
        began_s = now_s = perf_counter()
        end_s = began_s + self._turn_s
        while self._waiting and now_s < end_s:
            work = self._waiting.popleft()
            try:
                if work(min(end_s, now_s + _CLIENT_S)):
                    self._waiting.append(work)
            except Exception:
                logger.exception("a bug in the work on a client's messages")
            now_s = perf_counter()
        self._spent_s = now_s - began_s
        if self._waiting or self._starting or self._started:
            self._schedule()


class TimeSlices:
    """Runs the work of many clients, one step at a time.

    The work of one client runs in the order in which it was added. Short work of different clients
    runs round-robin. Long work runs one client after the other, because it holds memory while it
    lasts. After every slice the event loop is free for as long as the slice took, so this work
    takes at most half of the loop's time.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._queues: dict[Hashable, _Queue] = {}
        self._short: deque[_Queue] = deque()
        self._long: deque[_Queue] = deque()
        self._has_work = asyncio.Event()

    def start(self, owner: Hashable, steps: Steps) -> None:
        """Add work after the owner's earlier work, without waiting for it."""
        self._add(_Job(steps, None), owner)

    async def run(self, owner: Hashable, steps: Steps) -> None:
        """Run work after the owner's earlier work, and return when it is done.

        Exceptions of the work are raised here. Work that `discard` ends early counts as done.
        """
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(_Job(steps, done), owner)
        await done

    def discard(self, owner: Hashable) -> None:
        """Abandon all work of an owner."""
        queue = self._queues.pop(owner, None)
        while queue is not None and queue.jobs:
            queue.jobs.popleft().finish(None)  # Freeing a generator closes it.

    async def serve_forever(self) -> None:
        """Run added work until cancelled."""
        while True:
            if not self._queues:
                self._has_work.clear()
                await self._has_work.wait()
            took_s = self.work_for(SLICE_S)
            await asyncio.sleep(took_s)

    def work_for(self, budget_s: float) -> float:
        """Run steps until the budget is used up; return the time it took, in seconds."""
        began_s = self._clock()
        took_s = 0.0
        while took_s < budget_s and (self._short or self._long):
            if self._short:
                queue = self._short.popleft()
                if self._run_step(queue):
                    (self._short if queue.steps < _SHORT_STEPS else self._long).append(queue)
            if self._long and not self._run_step(self._long[0]):
                self._long.popleft()
            took_s = self._clock() - began_s
        return took_s

    def _add(self, job: _Job, owner: Hashable) -> None:
        queue = self._queues.get(owner)
        if queue is None:
            queue = self._queues[owner] = _Queue(owner)
            self._short.append(queue)
        queue.jobs.append(job)
        self._has_work.set()

    def _run_step(self, queue: _Queue) -> bool:
        """Run one step of an owner's work; return whether there is more."""
        if not queue.jobs:
            return False
        queue.steps += 1
        job = queue.jobs[0]
        error: Exception | None = None
        try:
            if job.done is None or not job.done.cancelled():
                next(job.steps)
                return True
        except StopIteration:
            pass
        except Exception as failure:
            error = failure
        queue.jobs.popleft()
        job.finish(error)
        if not queue.jobs:
            del self._queues[queue.owner]
        return bool(queue.jobs)


class _Job(NamedTuple):
    """Steps, and the future of the caller that waits for them."""

    steps: Steps
    done: asyncio.Future[None] | None

    def finish(self, error: Exception | None) -> None:
        if self.done is None:
            if error is not None:
                logger.error("a bug in sliced work", exc_info=error)
        elif not self.done.done():
            if error is not None:
                self.done.set_exception(error)
            else:
                self.done.set_result(None)


class _Queue:
    """The work of one owner, and the number of its steps that have run."""

    __slots__ = ("jobs", "owner", "steps")

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.steps = 0
        self.jobs: deque[_Job] = deque()


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
