"""A worker process, which runs a share of the connections, and its messages.

It takes orders on stdin and answers each of them on stdout; in between, it sends the figures of
each second. Messages are lines of JSON.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import Final

import msgspec
import uvloop
from msgspec import Struct

from clients.load.client_pool import ClientPool, StreamPositions
from clients.load.measurements import Second, WorkerResult
from clients.load.plan import Plan
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import TickcastError
from tickcast.wire.times import NS_PER_SECOND

LINE_MAX_BYTES: Final = 1 << 30
_TIMER_S: Final = 0.02
_CONNECTING_REPORT_S: Final = 0.5


class Connect(Struct, tag=True, frozen=True):
    """The first order: open this process's connections. `bases` are the streams' positions."""

    plan: Plan
    process: int
    bases: StreamPositions


class Measure(Struct, tag=True, frozen=True):
    """Measure from this time on, in nanoseconds of the wall clock."""

    begin_ns: int


class AwaitTicks(Struct, tag=True, frozen=True):
    """Publishing has stopped: end stalls and churn, and wait for ticks up to `ends`."""

    ends: StreamPositions
    timeout_s: float
    # Whether the latest ticks were published only to find the ends, and so are not measured.
    closing: bool


class Finish(Struct, tag=True, frozen=True):
    """Close all connections; the answer is a `WorkerResult`."""


class Done(Struct, tag=True):
    """The answer to other orders: how many clients are connected, or still lack ticks."""

    clients: int = 0


class Failed(Struct, tag=True):
    """This process can't continue; the reason is for the user."""

    reason: str


Order = Connect | Measure | AwaitTicks | Finish
Answer = Done | WorkerResult | Failed
_ORDERS: Final[msgspec.json.Decoder[Order]] = msgspec.json.Decoder(Order)


class Worker:
    """The worker's side of the run."""

    def __init__(self, orders: asyncio.StreamReader, answers: asyncio.WriteTransport) -> None:
        self._orders = orders
        self._answers = answers
        self._pool: ClientPool
        self._ends: StreamPositions = []
        self._tasks: list[asyncio.Task[None]] = []
        self._loop_late_us = 0
        self._cpu_s = time.process_time()

    def _send(self, message: Answer | Second) -> None:
        self._answers.write(msgspec.json.encode(message) + b"\n")

    async def run(self) -> None:
        """Carry out orders until the last one, or until the parent is gone."""
        timing = asyncio.create_task(self._time_loop())
        while line := await self._orders.readline():
            order = _ORDERS.decode(line)
            if isinstance(order, Connect):
                self._pool = ClientPool(order.plan, order.process, order.bases)
                # In a task, so that an order to finish can come in between.
                self._tasks.append(asyncio.create_task(self._connect()))
                self._tasks.append(asyncio.create_task(self._report_connecting()))
            elif isinstance(order, Measure):
                await cancel_and_wait(self._tasks)
                self._tasks = [asyncio.create_task(self._report_seconds(order.begin_ns))]
                self._send(Done())
            elif isinstance(order, AwaitTicks):
                self._ends = order.ends
                if order.closing:
                    self._pool.state.timing = False
                self._send(Done(await self._pool.await_ticks(order.ends, order.timeout_s)))
            else:
                await cancel_and_wait([*self._tasks, timing])
                result = await self._pool.close(self._ends)
                result.rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                self._send(result)
                return

    async def _connect(self) -> None:
        try:
            await self._pool.connect_all()
        except TickcastError as error:
            self._send(Failed(str(error)))
        else:
            self._send(Done(len(self._pool.clients)))

    async def _report_connecting(self) -> None:
        while True:
            await asyncio.sleep(_CONNECTING_REPORT_S)
            self._report_second(-1, _CONNECTING_REPORT_S)

    async def _report_seconds(self, begin_ns: int) -> None:
        """Report at each full second of the measurement, so that all processes' seconds match."""
        await asyncio.sleep(max(0.0, (begin_ns - time.time_ns()) / NS_PER_SECOND))
        self._report_second(-1, 0.0)
        self._pool.start_measuring()
        number, last_ns = 0, time.time_ns()
        try:
            while True:
                due_ns = begin_ns + (number + 1) * NS_PER_SECOND
                await asyncio.sleep(max(0.0, (due_ns - time.time_ns()) / NS_PER_SECOND))
                now_ns = time.time_ns()
                self._report_second(number, (now_ns - last_ns) / NS_PER_SECOND)
                number, last_ns = number + 1, now_ns
        finally:
            self._report_second(number, (time.time_ns() - last_ns) / NS_PER_SECOND)

    def _report_second(self, number: int, span_s: float) -> None:
        """Send the figures since the last call."""
        pool, cpu_s = self._pool, time.process_time()
        second, pool.state.second = pool.state.second, Second()
        second.number, second.span_s = number, span_s
        second.cpu_share = (cpu_s - self._cpu_s) / span_s if span_s else 0.0
        second.loop_late_us, self._loop_late_us, self._cpu_s = self._loop_late_us, 0, cpu_s
        second.connected, second.attempted = len(pool.clients), pool.attempted
        for client in pool.clients:
            second.queue_sum_bytes += client.queue_bytes
            second.queue_max_bytes = max(second.queue_max_bytes, client.queue_bytes)
            second.lag_max_ms = max(second.lag_max_ms, client.lag_ms)
            second.heartbeats += client.heartbeats
        self._send(second)

    async def _time_loop(self) -> None:
        """Measure the delay of this process's timers; incoming data waits as long."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TIMER_S
            await asyncio.sleep(_TIMER_S)
            self._loop_late_us = max(self._loop_late_us, round((loop.time() - due) * 1e6))


async def main() -> None:
    """Connect the pipes and run the worker."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=LINE_MAX_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin.buffer)
    answers, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout.buffer)
    try:
        await Worker(orders, answers).run()
    except TickcastError as error:
        answers.write(msgspec.json.encode(Failed(str(error))) + b"\n")
    finally:
        answers.close()


if __name__ == "__main__":
    # The parent ends this process through its pipe. Signals from a terminal are for the parent.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except ConnectionError:
        os._exit(1)
