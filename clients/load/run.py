"""A whole run: connect, measure, settle, report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol, TypeVar

from clients.load.crew import WorkerPool, employed
from clients.load.findings import Outcome, build_report
from clients.load.gauges import read_usage
from clients.load.messages import Streams
from clients.load.plan import Plan, streams_of
from clients.load.publishing import LoadProducer, PublishSchedule
from clients.load.recorder import RunRecorder, UsageSample
from clients.load.report import LoadReport
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store
from tickcast.wire.errors import TickcastError
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import NS_PER_SECOND, Time

_CLOSING_ROUNDS: Final = 3
_LAST_SAMPLE_S: Final = 0.03
Result = TypeVar("Result")


class ProgressDisplay(Protocol):
    """Shows the progress of the run."""

    def show(self, phase: str, recorder: RunRecorder, elapsed_s: float, of_s: float) -> None:
        """Show the progress; called a few times per second."""


class PublishSource:
    """Where the run publishes: a publisher, and the store that knows stream positions."""

    def __init__(self, publisher: FeedPublisher, store: Store, feed: str) -> None:
        self.publisher = publisher
        self._store = store
        self._feed = feed
        self._epoch = ""

    async def positions(self, streams: Sequence[tuple[str, str]]) -> Streams | None:
        """Return the last `seq` of each stream; None if the epoch changed since the last call."""
        epoch = await self._store.epoch(self._feed)
        heads = await self._store.heads([StreamKey(self._feed, *stream) for stream in streams])
        is_same = self._epoch in {"", epoch}
        self._epoch = epoch
        if not is_same:
            return None
        # A stream enters a new epoch with its next tick, which then has number 1.
        return [
            (*stream, head.seq if head.epoch == epoch else 0)
            for stream, head in zip(streams, heads, strict=True)
        ]


class Load:
    """One run of a plan."""

    def __init__(self, plan: Plan, source: PublishSource | None, stop: asyncio.Event) -> None:
        self._plan = plan
        self._source = source
        self._stop = stop
        self._streams = streams_of(plan, plan.published)
        self._producer: LoadProducer | None = None
        self._schedule: PublishSchedule | None = None
        if source is not None and plan.publish_rate is not None:
            schedule = PublishSchedule(self._streams, plan.publish_rate, plan.burst, plan.seed)
            self._producer = LoadProducer(source.publisher, schedule, plan.burst)
        self._trouble: list[str] = []
        self._measured_s = 0.0
        self._ends_compared = False
        self._closing = 0
        self._phase = ("starting", 0.0, 0.0)
        self.recorder = RunRecorder(plan.processes)

    async def run(self, stage: ProgressDisplay) -> LoadReport:
        """Run the plan and return the report, early and partial if told to stop.

        Raises:
            TickcastError: nothing could be measured; the text says why.
        """
        started = Time.now()
        showing = asyncio.create_task(self._show_forever(stage))
        try:
            async with employed(self._plan.processes, self.recorder.add) as crew:
                await self._work(crew)
                self._enter("closing", 0.0)
                accounts = await crew.finish()
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing
        producer = self._producer
        outcome = Outcome(
            started=started, ended=Time.now(), measured_s=self._measured_s,
            interrupted=self._stop.is_set(), ends_compared=self._ends_compared, accounts=accounts,
            lateness=producer.lateness if producer else None,
            scheduled=producer.scheduled if producer else 0,
            published=producer.published if producer else 0,
            closing=self._closing, trouble=self._trouble,
        )  # fmt: skip
        return build_report(self._plan, self.recorder, outcome)

    async def _work(self, crew: WorkerPool) -> None:
        plan = self._plan
        bases = await self._positions() or []
        self._enter("connecting", plan.connections / plan.ramp_rate)
        connecting = asyncio.create_task(crew.connect(plan, bases))
        if await self._unless_stopped(connecting) is None:
            return
        sampling: asyncio.Task[None] | None = None
        try:
            begin_ns = time.time_ns() + round(plan.warmup_s * NS_PER_SECOND)
            publishing = self._start_publishing()
            self._enter("warming up", plan.warmup_s)
            crew.measure(begin_ns)
            await self._sleep((begin_ns - time.time_ns()) / NS_PER_SECOND)
            sampling = asyncio.create_task(self._sample_forever())
            self._enter("measuring", plan.duration_s)
            if publishing is not None:
                await self._guard(publishing)
            # Wait for the end of the last second, not just for its last tick.
            left_s = plan.duration_s - (time.time_ns() - begin_ns) / NS_PER_SECOND
            await self._sleep(left_s + _LAST_SAMPLE_S if not self._trouble else 0.0)
            measured_s = (time.time_ns() - begin_ns) / NS_PER_SECOND
            self._measured_s = max(0.0, min(measured_s, plan.duration_s))
            self._enter("settling", plan.settle_s)
            await self._settle(crew)
        finally:
            if sampling is not None:
                sampling.cancel()

    def _start_publishing(self) -> asyncio.Task[None] | None:
        if self._producer is None:
            return None
        plan = self._plan
        work = self._producer.run(plan.warmup_s + plan.duration_s, self._stop, plan.warmup_s)
        return asyncio.create_task(work)

    async def _guard(self, publishing: Awaitable[Any]) -> bool:
        """Wait for an operation that may fail with Redis; the run is still reported if it does."""
        try:
            await publishing
        except TickcastError as error:
            self._trouble.append(f"publishing failed: {error}")
            return False
        return True

    async def _settle(self, crew: WorkerPool) -> None:
        """Wait for ticks in flight, and find out whether any are missing."""
        ends = await self._ends()
        lagging = await crew.await_ticks(ends, self._plan.settle_s, last=False)
        # A server may report skipped ticks only before the stream's next tick, so publish one.
        for _ in range(_CLOSING_ROUNDS):
            if not (lagging and self._producer and not self._trouble):
                break
            if await self._guard(self._producer.close_streams()):
                self._closing += len(self._streams)
            ends = await self._ends()
            lagging = await crew.await_ticks(ends, self._plan.settle_s, last=True)
        self._ends_compared = bool(ends)

    async def _ends(self) -> Streams:
        if self._trouble:
            return []
        try:
            ends = await self._positions()
        except TickcastError as error:
            self._trouble.append(f"the store does not tell where streams end: {error}")
            return []
        if ends is None:
            self._trouble.append("the numbering started over: the store was lost during the run")
        return ends or []

    async def _positions(self) -> Streams | None:
        if self._source is None or self._producer is None:
            return []
        return await self._source.positions(self._streams)

    # -- time

    def _enter(self, phase: str, of_s: float) -> None:
        self._phase = (phase, time.monotonic(), of_s)

    async def _sleep(self, seconds: float) -> None:
        """Sleep for a time, or until the run must stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, seconds)):
                await self._stop.wait()

    async def _unless_stopped(self, task: asyncio.Task[Result]) -> Result | None:
        """Return the task's result, or None if told to stop first."""
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            stopping.cancel()
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    async def _sample_forever(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            usage = read_usage(self._plan.pids) if self._plan.pids else None
            at_s = loop.time() - began
            self.recorder.samples.append(UsageSample(at_s, time.process_time(), usage))
            await asyncio.sleep(len(self.recorder.samples) - (loop.time() - began))

    async def _show_forever(self, stage: ProgressDisplay) -> None:
        while True:
            phase, since, of_s = self._phase
            stage.show(phase, self.recorder, time.monotonic() - since if since else 0.0, of_s)
            await asyncio.sleep(0.25)
