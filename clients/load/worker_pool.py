"""The parent's side of the worker processes: start them, send orders, collect answers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, TypeVar

import msgspec

from clients.load.client_pool import StreamPositions
from clients.load.measurements import Second, WorkerResult, merge
from clients.load.plan import Plan
from clients.load.worker import (
    LINE_MAX_BYTES,
    Answer,
    AwaitTicks,
    Connect,
    Done,
    Failed,
    Finish,
    Measure,
    Order,
)
from tickcast.wire.errors import TickcastError

_END_S: Final = 3.0
# -P: don't import a directory `clients` that happens to be in the working directory.
_MODULE: Final = ("-P", "-m", "clients.load.worker")
_MESSAGES: Final[msgspec.json.Decoder[Answer | Second]] = msgspec.json.Decoder(Answer | Second)

Expected = TypeVar("Expected", Done, WorkerResult)


class _WorkerProcess:
    """One process, and the answers received from it."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.process = process
        self._answers: asyncio.Queue[Answer] = asyncio.Queue()

    def send(self, order: Order) -> None:
        """Send an order. If the process is gone, the missing answer will show it."""
        assert self.process.stdin is not None
        with suppress(OSError, RuntimeError):
            self.process.stdin.write(msgspec.json.encode(order) + b"\n")

    async def answer(self, kind: type[Expected]) -> Expected:
        """Return its next answer of a kind, skipping answers to orders that were abandoned."""
        while True:
            answer = await self._answers.get()
            if isinstance(answer, Failed):
                raise TickcastError(answer.reason)
            if isinstance(answer, kind):
                return answer

    async def listen(self, on_second: Callable[[int, Second], None]) -> None:
        """Receive messages until the process ends."""
        assert self.process.stdout is not None
        with suppress(ConnectionError):
            while line := await self.process.stdout.readline():
                message = _MESSAGES.decode(line)
                if isinstance(message, Second):
                    on_second(self.number, message)
                else:
                    self._answers.put_nowait(message)
        code = await self.process.wait()
        reason = f"load process {self.number} ended unexpectedly, exit code {code}"
        self._answers.put_nowait(Failed(reason))


class WorkerPool:
    """All worker processes of a run. Each method raises TickcastError if one of them failed."""

    def __init__(self, workers: list[_WorkerProcess]) -> None:
        self._workers = workers

    async def connect(self, plan: Plan, bases: StreamPositions) -> None:
        """Open all connections."""
        for worker in self._workers:
            worker.send(Connect(plan, worker.number, bases))
        await self._gather(Done)

    async def measure(self, begin_ns: int) -> None:
        """Start the measurement at a given time."""
        self._send(Measure(begin_ns))
        await self._gather(Done)

    async def await_ticks(self, ends: StreamPositions, timeout_s: float, closing: bool) -> int:
        """Wait for ticks in flight; return how many clients still lack some."""
        self._send(AwaitTicks(ends, timeout_s, closing))
        return sum(done.clients for done in await self._gather(Done))

    async def finish(self) -> WorkerResult:
        """Close all connections and return the totals."""
        self._send(Finish())
        total = WorkerResult()
        for result in await self._gather(WorkerResult):
            merge(total, result)
        return total

    def _send(self, order: Order) -> None:
        for worker in self._workers:
            worker.send(order)

    async def _gather(self, kind: type[Expected]) -> list[Expected]:
        # Wait for all at once, to notice the failure of any of them.
        return list(await asyncio.gather(*(each.answer(kind) for each in self._workers)))


@asynccontextmanager
async def start_workers(
    processes: int, on_second: Callable[[int, Second], None]
) -> AsyncIterator[WorkerPool]:
    """Start worker processes, which are always ended when the block exits.

    Args:
        on_second: called with a process's number and each of its seconds.
    """
    workers: list[_WorkerProcess] = []
    listening: list[asyncio.Task[None]] = []
    try:
        for number in range(processes):
            process = await asyncio.create_subprocess_exec(
                sys.executable, *_MODULE,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, limit=LINE_MAX_BYTES,
                # Ctrl-C in the terminal must reach only the parent.
                start_new_session=True,
            )  # fmt: skip
            worker = _WorkerProcess(number, process)
            workers.append(worker)
            listening.append(asyncio.create_task(worker.listen(on_second)))
        yield WorkerPool(workers)
    finally:
        await _end(workers)
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)


async def _end(workers: list[_WorkerProcess]) -> None:
    for worker in workers:
        if worker.process.stdin is not None:
            worker.process.stdin.close()
    try:
        async with asyncio.timeout(_END_S):
            for worker in workers:
                await worker.process.wait()
    except (TimeoutError, asyncio.CancelledError):
        for worker in workers:
            with suppress(ProcessLookupError):
                worker.process.kill()
        for worker in workers:
            await worker.process.wait()
