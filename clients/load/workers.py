"""Worker processes, which share the connections: their messages, the child's and the parent's side.

A worker takes orders on stdin and answers each of them on stdout; in between, it sends the figures
of each second. Messages are lines of JSON.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

import msgspec
import uvloop
from msgspec import Struct

from clients.load.client_pool import ClientPool, StreamPositions
from clients.load.measurements import Second, WorkerResult
from clients.load.plan import Plan
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import TickcastError
from tickcast.wire.times import NS_PER_SECOND

_LINE_MAX_BYTES: Final = 1 << 30
_TIMER_S: Final = 0.02
_CONNECTING_REPORT_S: Final = 0.5
_EXIT_S: Final = 3.0


class Connect(Struct, tag=True, frozen=True):
    """The first order: open this process's connections. `bases` are the streams' positions."""

    plan: Plan
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
Expected = TypeVar("Expected", Done, WorkerResult)
_ORDERS: Final[msgspec.json.Decoder[Order]] = msgspec.json.Decoder(Order)
_ANSWERS: Final[msgspec.json.Decoder[Answer | Second]] = msgspec.json.Decoder(Answer | Second)


def _encode(message: Order | Answer | Second) -> bytes:
    return msgspec.json.encode(message) + b"\n"


# -- the child's side


class Worker:
    """Carries out the orders of a process."""

    def __init__(self, orders: asyncio.StreamReader, answers: asyncio.WriteTransport) -> None:
        self._orders = orders
        self._answers = answers
        self._pool: ClientPool
        self._ends: StreamPositions = []
        self._tasks: list[asyncio.Task[None]] = []
        self._loop_late_us = 0
        self._cpu_s = time.process_time()

    def _send(self, message: Answer | Second) -> None:
        self._answers.write(_encode(message))

    async def serve_orders(self) -> None:
        """Carry out orders until the last one, or until the parent is gone."""
        timing = asyncio.create_task(self._time_loop())
        while line := await self._orders.readline():
            order = _ORDERS.decode(line)
            if isinstance(order, Connect):
                self._pool = ClientPool(order.plan, int(sys.argv[1]), order.bases)
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
                result = await self._pool.close_all(self._ends)
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
        second, cpu_s = self._pool.pop_second(), time.process_time()
        second.number, second.span_s = number, span_s
        second.cpu_share = (cpu_s - self._cpu_s) / span_s if span_s else 0.0
        second.loop_late_us, self._loop_late_us, self._cpu_s = self._loop_late_us, 0, cpu_s
        self._send(second)

    async def _time_loop(self) -> None:
        """Measure the delay of this process's timers; incoming data waits as long."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _TIMER_S
            await asyncio.sleep(_TIMER_S)
            self._loop_late_us = max(self._loop_late_us, round((loop.time() - due) * 1e6))


async def _run_worker() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=_LINE_MAX_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin.buffer)
    answers, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout.buffer)
    try:
        await Worker(orders, answers).serve_orders()
    except TickcastError as error:
        answers.write(_encode(Failed(str(error))))
    finally:
        answers.close()


# -- the parent's side


class WorkerPool:
    """The processes of a run, and the answers received from each.

    Args:
        on_second: called with a process's number and each of its seconds.
    """

    def __init__(self, on_second: Callable[[int, Second], None]) -> None:
        self._on_second = on_second
        self._processes: list[asyncio.subprocess.Process] = []
        self._answers: list[asyncio.Queue[Answer]] = []
        self._listening: list[asyncio.Task[None]] = []

    async def start_processes(self, count: int) -> None:
        """Start the processes, which must be ended with `aclose`."""
        for number in range(count):
            process = await asyncio.create_subprocess_exec(
                # -P: don't import a folder `clients` that happens to be in the working directory.
                sys.executable, "-P", "-m", "clients.load.workers", str(number),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=_LINE_MAX_BYTES,
                # Ctrl-C in the terminal must reach only the parent.
                start_new_session=True,
            )  # fmt: skip
            self._processes.append(process)
            self._answers.append(asyncio.Queue())
            self._listening.append(asyncio.create_task(self._listen(number)))

    async def _listen(self, number: int) -> None:
        process, answers = self._processes[number], self._answers[number]
        assert process.stdout is not None
        with suppress(ConnectionError):
            while line := await process.stdout.readline():
                message = _ANSWERS.decode(line)
                if isinstance(message, Second):
                    self._on_second(number, message)
                else:
                    answers.put_nowait(message)
        code = await process.wait()
        answers.put_nowait(Failed(f"load process {number} ended unexpectedly, exit code {code}"))

    async def request(self, order: Order, kind: type[Expected]) -> list[Expected]:
        """Send an order to all processes; return their answers of a kind. Raises TickcastError."""
        for process in self._processes:
            assert process.stdin is not None
            # If the process is gone, the missing answer will show it.
            with suppress(OSError, RuntimeError):
                process.stdin.write(_encode(order))
        # Wait for all at once, to notice the failure of any of them.
        return list(await asyncio.gather(*(self._next(each, kind) for each in self._answers)))

    async def _next(self, answers: asyncio.Queue[Answer], kind: type[Expected]) -> Expected:
        """Return the next answer of a kind, skipping answers to orders that were abandoned."""
        while True:
            answer = await answers.get()
            if isinstance(answer, Failed):
                raise TickcastError(answer.reason)
            if isinstance(answer, kind):
                return answer

    async def aclose(self) -> None:
        """End all processes."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        try:
            async with asyncio.timeout(_EXIT_S):
                for process in self._processes:
                    await process.wait()
        except (TimeoutError, asyncio.CancelledError):
            for process in self._processes:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        await cancel_and_wait(self._listening)


if __name__ == "__main__":
    # The parent ends this process through its pipe. Signals from a terminal are for the parent.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run_worker())
    except ConnectionError:
        os._exit(1)
