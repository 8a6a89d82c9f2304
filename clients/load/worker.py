"""A worker process: takes orders on stdin, runs its connections and sends news on stdout."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import time
from contextlib import suppress
from typing import Final

import uvloop

from clients.load.fleet import ClientPool
from clients.load.messages import (
    AwaitTicks,
    Connect,
    Failed,
    Finish,
    Measure,
    News,
    Progress,
    Ready,
    Second,
    Streams,
    TicksArrived,
    pack,
    read_order,
)
from tickcast.wire.errors import TickcastError
from tickcast.wire.times import NS_PER_SECOND

_BEAT_S: Final = 0.02


class Worker:
    """The worker's side of the run."""

    def __init__(self, orders: asyncio.StreamReader, news: asyncio.WriteTransport) -> None:
        self._orders = orders
        self._news = news
        self._late_us = 0
        self._cpu_s = time.process_time()
        self._telling: asyncio.Task[None] | None = None
        self._ends: Streams = []
        self._fleet: ClientPool

    def _tell(self, news: News) -> None:
        self._news.write(pack(news))

    async def run(self) -> None:
        """Carry out orders until the last one, or until the parent is gone."""
        beating = asyncio.create_task(self._beat_forever())
        try:
            while True:
                order = await read_order(self._orders)
                if isinstance(order, Connect):
                    self._fleet = ClientPool(order.plan, order.process, order.bases)
                    self._fleet.start_task(self._connect())
                elif isinstance(order, Measure):
                    self._start_telling(order.begin_ns)
                elif isinstance(order, AwaitTicks):
                    await self._settle(order)
                elif isinstance(order, Finish):
                    await self._finish()
                    return
        finally:
            beating.cancel()

    async def _connect(self) -> None:
        try:
            self._telling = asyncio.create_task(self._tell_connecting())
            await self._fleet.connect_all()
        except TickcastError as error:
            self._tell(Failed(str(error)))
        else:
            self._tell(Ready(len(self._fleet.clients)))

    async def _settle(self, order: AwaitTicks) -> None:
        self._ends = order.ends
        if order.last:
            # Ticks published only to determine the ends of streams are not part of the load.
            self._fleet.meter.timing = False
        lagging = await self._fleet.await_ticks(order.ends, order.timeout_s)
        self._tell(TicksArrived(lagging))

    async def _finish(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.wait([self._telling])
        accounts = await self._fleet.finish(self._ends)
        accounts.rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._tell(accounts)

    # -- seconds

    async def _tell_connecting(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self._tell_second(-1, 0.5)

    def _start_telling(self, begin_ns: int) -> None:
        if self._telling is not None:
            self._telling.cancel()
        self._telling = asyncio.create_task(self._tell_seconds(begin_ns))

    async def _tell_seconds(self, begin_ns: int) -> None:
        """Report at each full second of the measurement, so that all processes' seconds match."""
        await asyncio.sleep(max(0.0, (begin_ns - time.time_ns()) / NS_PER_SECOND))
        self._tell_second(-1, 0.0)
        self._fleet.meter.timing = True
        self._fleet.begin_churn()
        number, last_ns = 0, time.time_ns()
        try:
            while True:
                due_ns = begin_ns + (number + 1) * NS_PER_SECOND
                await asyncio.sleep(max(0.0, (due_ns - time.time_ns()) / NS_PER_SECOND))
                now_ns = time.time_ns()
                self._tell_second(number, (now_ns - last_ns) / NS_PER_SECOND)
                number, last_ns = number + 1, now_ns
        finally:
            self._tell_second(number, (time.time_ns() - last_ns) / NS_PER_SECOND)

    def _tell_second(self, number: int, span_s: float) -> None:
        fleet = self._fleet
        second: Second = fleet.meter.pop_second(number, span_s)
        cpu_s = time.process_time()
        second.cpu_s, self._cpu_s = cpu_s - self._cpu_s, cpu_s
        second.loop_late_us, self._late_us = self._late_us, 0
        second.connected, second.settled = len(fleet.clients), fleet.settled
        for client in fleet.clients:
            second.queue_bytes_sum += client.queue_bytes
            second.queue_bytes_max = max(second.queue_bytes_max, client.queue_bytes)
            second.lag_ms_max = max(second.lag_ms_max, client.lag_ms)
            second.heartbeats += client.heartbeats
        self._tell(Progress(second))

    async def _beat_forever(self) -> None:
        """Measure the delay of this process's timers; incoming data waits as long."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + _BEAT_S
            await asyncio.sleep(_BEAT_S)
            self._late_us = max(self._late_us, round((loop.time() - due) * 1e6))


async def main() -> None:
    """Connect the pipes and run the worker."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin.buffer)
    news, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout.buffer)
    worker = Worker(orders, news)
    try:
        await worker.run()
    except TickcastError as error:
        news.write(pack(Failed(str(error))))
    finally:
        news.close()


def _raise_limits() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    # The parent ends this process through its pipe. Signals from a terminal are for the parent.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _raise_limits()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except (asyncio.IncompleteReadError, ConnectionError, BrokenPipeError):
        os._exit(1)
