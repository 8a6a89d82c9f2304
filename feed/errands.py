"""Tasks that nobody waits for: what goes wrong in them is logged, and they end with their owner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from feed.broker.client import level_of
from feed.errors import TickcastError
from feed.tasks import end_tasks


class Errands:
    """The errands of one owner, told in its log."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Have it done."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, TickcastError):
            self._logger.log(level_of(error), "gave up for now: %s", error)
        else:
            self._logger.error("a bug in an errand", exc_info=error)

    async def close(self) -> None:
        """End all that is under way."""
        await end_tasks(self._tasks)
