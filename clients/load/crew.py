"""The parent's side of the worker processes: start them, send orders, collect news."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from clients.load.messages import (
    Accounts,
    AwaitTicks,
    Connect,
    Failed,
    Finish,
    Measure,
    News,
    Order,
    Progress,
    Ready,
    Second,
    Streams,
    TicksArrived,
    pack,
    read_news,
)
from clients.load.plan import Plan
from tickcast.wire.errors import TickcastError

_END_S = 3.0
# -P: don't import a directory `clients` that happens to be in the working directory.
_MODULE = ("-P", "-m", "clients.load.worker")
Answer = TypeVar("Answer", Ready, TicksArrived, Accounts)


class _Worker:
    """One process, and the answers expected from it."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.process = process
        self.answers: asyncio.Queue[News | TickcastError] = asyncio.Queue()

    def send(self, order: Order) -> None:
        """Send an order. If the process is gone, the missing answer will show it."""
        assert self.process.stdin is not None
        with suppress(OSError, RuntimeError):
            self.process.stdin.write(pack(order))

    async def answer(self, kind: type[Answer]) -> Answer:
        """Return its next answer of a kind, skipping answers to orders that were abandoned."""
        while True:
            answer = await self.answers.get()
            if isinstance(answer, TickcastError):
                raise answer
            if isinstance(answer, kind):
                return answer

    async def listen(self, on_second: Callable[[int, Second], None]) -> None:
        """Receive news until the process ends."""
        assert self.process.stdout is not None
        try:
            while True:
                news = await read_news(self.process.stdout)
                if isinstance(news, Progress):
                    on_second(self.number, news.second)
                elif isinstance(news, Failed):
                    self.answers.put_nowait(TickcastError(news.text))
                else:
                    self.answers.put_nowait(news)
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await self.process.wait()
            text = f"load process {self.number} ended unexpectedly, exit code {code}"
            self.answers.put_nowait(TickcastError(text))


class WorkerPool:
    """All worker processes of a run. Each method raises TickcastError if one of them failed."""

    def __init__(self, workers: list[_Worker]) -> None:
        self._workers = workers

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers."""
        return [worker.process.pid for worker in self._workers]

    async def connect(self, plan: Plan, bases: Streams) -> int:
        """Open all connections; return how many succeeded."""
        for worker in self._workers:
            worker.send(Connect(plan, worker.number, bases))
        return sum(ready.connected for ready in await self._gather(Ready))

    def measure(self, begin_ns: int) -> None:
        """Start the measurement at a given time."""
        self._tell(Measure(begin_ns))

    async def await_ticks(self, ends: Streams, timeout_s: float, last: bool) -> int:
        """Wait for ticks in flight; return how many clients still lack some."""
        self._tell(AwaitTicks(ends, timeout_s, last))
        return sum(settled.lagging for settled in await self._gather(TicksArrived))

    async def finish(self) -> list[Accounts]:
        """Close all connections and return the accounts."""
        self._tell(Finish())
        return await self._gather(Accounts)

    def _tell(self, order: Order) -> None:
        for worker in self._workers:
            worker.send(order)

    async def _gather(self, kind: type[Answer]) -> list[Answer]:
        # Wait for all at once, to notice the failure of any of them.
        return list(await asyncio.gather(*(each.answer(kind) for each in self._workers)))


@asynccontextmanager
async def employed(
    processes: int, on_second: Callable[[int, Second], None]
) -> AsyncIterator[WorkerPool]:
    """Start worker processes, which are always ended when the block exits.

    Args:
        on_second: called with a process's number and each of its seconds.
    """
    workers: list[_Worker] = []
    listening: list[asyncio.Task[None]] = []
    try:
        for number in range(processes):
            process = await asyncio.create_subprocess_exec(
                sys.executable, *_MODULE,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                # Ctrl-C in the terminal must reach only the parent.
                start_new_session=True,
            )  # fmt: skip
            worker = _Worker(number, process)
            workers.append(worker)
            listening.append(asyncio.create_task(worker.listen(on_second)))
        yield WorkerPool(workers)
    finally:
        await _end(workers)
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)


async def _end(workers: list[_Worker]) -> None:
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
