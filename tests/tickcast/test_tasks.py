"""Background tasks: failures are logged and counted, and the tasks are restarted."""

from __future__ import annotations

import asyncio
import logging
from itertools import pairwise

import pytest

from tests.conftest import until
from tickcast.tasks import BackgroundTasks, ExponentialBackoff, OutageLog

logger = logging.getLogger("tickcast.test")


async def test_a_supervised_task_is_restarted(caplog: pytest.LogCaptureFixture) -> None:
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
    await tasks.cancel_all()


async def test_a_cancellation_from_within_is_a_failure_but_one_from_outside_is_the_end() -> None:
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
    await tasks.cancel_all()
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
    await tasks.cancel_all()


def test_the_bound_doubles_up_to_its_maximum_until_a_reset() -> None:
    backoff = ExponentialBackoff(0.5, 3.0, lambda: 1.0)
    assert backoff.is_first
    assert [backoff.next_delay_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert not backoff.is_first
    backoff.reset()
    assert backoff.is_first
    assert backoff.next_delay_s() == 0.5


def test_a_delay_lies_anywhere_below_its_bound() -> None:
    assert ExponentialBackoff(8.0, 8.0, lambda: 0.25).next_delay_s() == 2.0
    assert all(0 <= ExponentialBackoff(1.0, 1.0).next_delay_s() <= 1 for _ in range(100))


def test_a_long_outage_is_reported_less_and_less_often() -> None:
    reminders = OutageLog()
    day = [second * 0.7 for second in range(round(86_400 / 0.7))]
    reported = [now_s for now_s in day if reminders.should_log(now_s, OSError())]
    assert len(reported) < 160
    assert [round(now_s) for now_s in reported[:5]] == [0, 10, 31, 71, 152]
    assert max(later - now for now, later in pairwise(reported)) < 601


def test_a_new_kind_of_error_and_a_new_outage_are_reported_at_once() -> None:
    reminders = OutageLog()
    assert reminders.should_log(0, ConnectionRefusedError())
    assert not reminders.should_log(1, ConnectionRefusedError("again"))
    assert reminders.should_log(2, TimeoutError())
    assert not any(
        reminders.should_log(3, error()) for error in (ConnectionRefusedError, TimeoutError)
    )
    assert reminders.should_log(10, ConnectionRefusedError())
    reminders.reset()
    assert reminders.should_log(11, TimeoutError())
    assert not reminders.should_log(12, TimeoutError())
