"""A whole run: connect, measure, wait for the last ticks, report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final

from clients.load.client_pool import StreamPositions
from clients.load.measurements import WorkerResult, merge
from clients.load.plan import Plan
from clients.load.publishing import LoadProducer, PublishSchedule
from clients.load.report import LoadReport
from clients.load.results import RunRecorder, UsageSample, build_report, read_usage
from clients.load.workers import AwaitTicks, Connect, Done, Finish, Measure, WorkerPool
from tickcast.wire.errors import TickcastError
from tickcast.wire.times import NS_PER_SECOND, Time

_CLOSING_ROUNDS: Final = 3
_LAST_SAMPLE_S: Final = 0.03
_SHOW_S: Final = 0.25

# Called with the phase, the figures so far, and the seconds that the phase has taken and takes.
ShowProgress = Callable[[str, RunRecorder, float, float], None]


class Load:
    """One run of a plan, which ends early when `stop` is set."""

    def __init__(self, plan: Plan, producer: LoadProducer | None, stop: asyncio.Event) -> None:
        self._plan = plan
        self._producer = producer
        self._stop = stop
        self._schedule = PublishSchedule(
            plan.published_streams, plan.publish_ticks_per_s or 1, plan.burst_ticks, plan.seed
        )
        self._problems: list[str] = []
        self._measured_s = 0.0
        self._ends_compared = False
        # The current phase, when it began, and how long it takes.
        self._phase = ("starting", 0.0, 0.0)
        self._recorder = RunRecorder(plan.processes)

    async def run(self, show: ShowProgress) -> LoadReport:
        """Run the plan and return the report. Raises TickcastError."""
        started = Time.now()
        showing = asyncio.create_task(self._show_forever(show))
        try:
            async with aclosing(WorkerPool(self._recorder.add_second)) as workers:
                await workers.start_processes(self._plan.processes)
                await self._connect_and_measure(workers)
                self._enter("closing")
                result = WorkerResult()
                for part in await workers.request(Finish(), WorkerResult):
                    merge(result, part)
        finally:
            showing.cancel()
            await asyncio.wait([showing])
        accounts = result.accounts
        accounts.ends_compared = self._ends_compared and accounts.whole_run_clients > 0
        return build_report(
            self._plan, self._recorder, result, self._producer, self._problems,
            started=started, measured_s=self._measured_s, interrupted=self._stop.is_set(),
        )  # fmt: skip

    async def _connect_and_measure(self, workers: WorkerPool) -> None:
        plan = self._plan
        bases = await self._fetch_positions() or []
        self._enter("connecting", plan.connections / plan.ramp_per_s)
        connecting = asyncio.create_task(workers.request(Connect(plan, bases), Done))
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait([connecting, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not connecting.done():
            connecting.cancel()
            return
        connecting.result()
        sampling: asyncio.Task[None] | None = None
        publishing: asyncio.Task[None] | None = None
        try:
            begin_ns = time.time_ns() + round(plan.warmup_s * NS_PER_SECOND)
            if self._producer is not None:
                work = self._producer.publish_on_schedule(
                    self._schedule, plan.warmup_s, plan.duration_s, self._stop
                )
                publishing = asyncio.create_task(self._try_to_publish(work))
            self._enter("warming up", plan.warmup_s)
            await workers.request(Measure(begin_ns), Done)
            await self._sleep((begin_ns - time.time_ns()) / NS_PER_SECOND)
            sampling = asyncio.create_task(self._sample_forever())
            self._enter("measuring", plan.duration_s)
            if publishing is not None:
                await publishing
            if not self._problems:
                # Wait for the end of the last second, not just for its last tick.
                left_s = plan.duration_s - (time.time_ns() - begin_ns) / NS_PER_SECOND
                await self._sleep(left_s + _LAST_SAMPLE_S)
            measured_s = (time.time_ns() - begin_ns) / NS_PER_SECOND
            self._measured_s = max(0.0, min(measured_s, plan.duration_s))
            self._enter("settling", plan.timeout_s)
            await self._await_ticks(workers)
        finally:
            if sampling is not None:
                sampling.cancel()

    async def _try_to_publish(self, publishing: Awaitable[None]) -> None:
        """Wait for an operation that may fail with Redis; the run is still reported if it does."""
        try:
            await publishing
        except TickcastError as error:
            self._problems.append(f"publishing failed: {error}")

    async def _await_ticks(self, workers: WorkerPool) -> None:
        """Wait for ticks in flight, and find out whether any are missing."""
        ends = await self._fetch_ends()
        lagging = await self._count_lagging(workers, ends, closing=False)
        # A server may report skipped ticks only before the stream's next tick, so publish one.
        for _ in range(_CLOSING_ROUNDS):
            if not lagging or self._producer is None or self._problems:
                break
            await self._try_to_publish(self._producer.publish_closing_ticks(self._schedule))
            ends = await self._fetch_ends()
            lagging = await self._count_lagging(workers, ends, closing=True)
        self._ends_compared = bool(ends)

    async def _count_lagging(
        self, workers: WorkerPool, ends: StreamPositions, closing: bool
    ) -> int:
        order = AwaitTicks(ends, self._plan.timeout_s, closing)
        return sum(done.clients for done in await workers.request(order, Done))

    async def _fetch_ends(self) -> StreamPositions:
        if self._problems:
            return []
        try:
            ends = await self._fetch_positions()
        except TickcastError as error:
            self._problems.append(f"the store did not return the ends of streams: {error}")
            return []
        if ends is None:
            self._problems.append("the numbering started over: the store was lost during the run")
        return ends or []

    async def _fetch_positions(self) -> StreamPositions | None:
        if self._producer is None:
            return []
        return await self._producer.fetch_positions(self._schedule.streams)

    # -- time

    def _enter(self, phase: str, duration_s: float = 0.0) -> None:
        self._phase = (phase, time.monotonic(), duration_s)

    async def _sleep(self, seconds: float) -> None:
        """Sleep for a time, or until the run must stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._stop.wait()

    async def _sample_forever(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        samples = self._recorder.samples
        while True:
            usage = read_usage(self._plan.pids) if self._plan.pids else None
            samples.append(UsageSample(loop.time() - began, time.process_time(), usage))
            await asyncio.sleep(len(samples) - (loop.time() - began))

    async def _show_forever(self, show: ShowProgress) -> None:
        while True:
            phase, since, duration_s = self._phase
            elapsed_s = time.monotonic() - since if since else 0.0
            show(phase, self._recorder, elapsed_s, duration_s)
            await asyncio.sleep(_SHOW_S)
