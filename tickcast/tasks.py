"""Background tasks that are logged, restarted and ended; when to try again after a failure."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

from tickcast.wire.errors import TickcastError, log_level_of

_CANCEL_AGAIN_S: Final = 0.1
_RESTART_FIRST_S: Final = 0.1
_RESTART_MAX_S: Final = 5.0
# After running for this long, a task that fails is restarted with the shortest delay again.
_STEADY_S: Final = 30.0
_LOG_AGAIN_FIRST_S: Final = 10.0
_LOG_AGAIN_MAX_S: Final = 600.0

Work = Coroutine[Any, Any, None]


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until all have ended, with or without an error.

    Cancelling once may not be enough. Before Python 3.12, `asyncio.wait_for` loses a cancellation
    that arrives together with the result, and redis-py uses it for every command.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_AGAIN_S)


class BackgroundTasks:
    """Tasks that nothing awaits: their failures are logged, and they end with their owner.

    `start` runs work once. `supervise` is for tasks that all clients depend on: when one fails, the
    traceback is logged and the task is restarted.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        # asyncio itself keeps only weak references to tasks.
        self._tasks: set[asyncio.Task[None]] = set()
        # The supervised tasks that wait to be restarted.
        self._down: set[str] = set()
        # How often each supervised task has failed, by name.
        self.restarts: dict[str, int] = {}

    @property
    def down(self) -> list[str]:
        """Names of the supervised tasks that have failed and wait to be restarted."""
        return sorted(self._down)

    def start(self, work: Work) -> asyncio.Task[None]:
        """Run work once, in a task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def supervise(self, name: str, run: Callable[[], Work]) -> None:
        """Run `run` in a task, and again whenever it raises, until `cancel_all`.

        A task that returns has nothing left to do and is not started again. Restarts are delayed
        by 0.1 s, doubled up to 5 s while the task keeps failing.

        Args:
            name: what logs and metrics call it.
        """
        self.restarts[name] = 0
        self.start(self._keep_running(name, run)).set_name(name)

    async def cancel_all(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        await cancel_and_wait(list(self._tasks))

    async def _keep_running(self, name: str, run: Callable[[], Work]) -> None:
        backoff = ExponentialBackoff(_RESTART_FIRST_S, _RESTART_MAX_S, lambda: 1.0)
        while True:
            began_s = time.monotonic()
            try:
                await run()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # Not this task was cancelled, but something that it awaited: that is a failure.
                failure: BaseException = error
            except Exception as error:
                failure = error
            else:
                return
            if time.monotonic() - began_s > _STEADY_S:
                backoff.reset()
            delay_s = backoff.next_delay_s()
            self._logger.error(
                "the %s failed and starts again in %.1f s", name, delay_s, exc_info=failure
            )
            self.restarts[name] += 1
            self._down.add(name)
            try:
                await asyncio.sleep(delay_s)
            finally:
                self._down.discard(name)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, TickcastError):
            self._logger.log(log_level_of(error), "gave up for now: %s", error)
        else:
            self._logger.error("a bug in a background task", exc_info=error)


def stop_signals() -> list[signal.Signals]:
    """The signals that end a program gracefully: Ctrl-C, `kill`, and closing the terminal.

    The last one, SIGHUP, is excluded if it is ignored, as `nohup` does.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


class ExponentialBackoff:
    """Exponential back-off with full jitter.

    Each delay is random below a bound, which doubles from `first_s` to `max_s`. Clients that were
    disconnected at the same time therefore reconnect at different times.

    Args:
        first_s, max_s: the first and the largest bound, in seconds.
        jitter: returns random numbers from 0 to 1, by which the bounds are multiplied.
    """

    def __init__(
        self, first_s: float, max_s: float, jitter: Callable[[], float] = random.random
    ) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._jitter = jitter
        self._bound_s = first_s

    @property
    def is_first(self) -> bool:
        """Whether the next delay is the first one, initially or after a success."""
        return self._bound_s == self._first_s

    def reset(self) -> None:
        """Return to the first bound, after a success."""
        self._bound_s = self._first_s

    def next_delay_s(self) -> float:
        """Return the next delay, in seconds."""
        delay_s = self._bound_s * self._jitter()
        self._bound_s = min(2 * self._bound_s, self._max_s)
        return delay_s


class OutageLog:
    """Decides which failures of an outage to report: the first, then fewer and fewer.

    The intervals are 10 s, 20 s, 40 s and so on, up to ten minutes. An exception type that has not
    been reported yet is reported immediately, so that a change in the nature of an outage shows.

    >>> outages = OutageLog()
    >>> [second for second in range(0, 100, 5) if outages.should_log(second, OSError())]
    [0, 10, 30, 70]
    """

    def __init__(self) -> None:
        self._interval_s = 0.0
        self._next_s = 0.0
        self._kinds: set[type[Exception]] = set()

    def should_log(self, now_s: float, error: Exception) -> bool:
        """Whether to report a failure that happened now.

        Args:
            now_s: seconds on a monotonic clock.
        """
        is_known = type(error) in self._kinds
        if is_known and now_s < self._next_s:
            return False
        if is_known or not self._kinds:
            self._interval_s = min(2 * self._interval_s or _LOG_AGAIN_FIRST_S, _LOG_AGAIN_MAX_S)
            self._next_s = now_s + self._interval_s
        self._kinds.add(type(error))
        return True

    def reset(self) -> None:
        """End the outage. The next failure is reported immediately."""
        self._interval_s = 0.0
        self._kinds.clear()
