"""Background tasks: failures are logged and counted, and the tasks are restarted."""

from __future__ import annotations

import asyncio
import logging

import pytest

from tests.conftest import until
from tickcast.tasks import BackgroundTasks

logger = logging.getLogger("tickcast.test")


async def test_a_supervised_task_is_started_again(caplog: pytest.LogCaptureFixture) -> None:
    tasks = BackgroundTasks(logger)
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise ValueError(f"failure {runs}")
        await asyncio.sleep(3600)

    tasks.supervise("poller", run)
    assert tasks.restarts == {"poller": 0}
    await until(lambda: tasks.down == ["poller"])
    await until(lambda: runs == 3)
    assert tasks.restarts == {"poller": 2}
    assert not tasks.down
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [record.getMessage() for record in failures] == [
        "the poller failed and starts again in 0.1 s",
        "the poller failed and starts again in 0.2 s",
    ]
    assert "ValueError: failure 1" in caplog.text
    await tasks.close()


async def test_a_cancellation_from_within_is_a_failure_and_one_from_outside_the_end() -> None:
    tasks = BackgroundTasks(logger)
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if runs == 1:
            future.cancel()
        await future

    tasks.supervise("poller", run)
    await until(lambda: runs == 2)
    assert tasks.restarts == {"poller": 1}
    await tasks.close()
    assert runs == 2


async def test_a_task_that_returns_is_done() -> None:
    tasks = BackgroundTasks(logger)
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1

    tasks.supervise("poller", run)
    await until(lambda: not tasks._tasks)
    assert runs == 1
    assert tasks.restarts == {"poller": 0}


async def test_work_that_fails_once_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    tasks = BackgroundTasks(logger)

    async def fail() -> None:
        raise ValueError("once")

    await asyncio.wait([tasks.start(fail())])
    await until(lambda: "ValueError: once" in caplog.text)
    await tasks.close()
