"""What a delivered tick costs the server: CPU, delay and memory under four workloads.

The server runs pinned to one core with its embedded store; publisher and clients share the other.
Most clients only count what arrives, so that they can keep up; a few decode every tick and note how
long it took.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import uvloop

from feed.broker.client import make_client
from feed.broker.publisher import Publisher
from feed.frames import split_frames
from feed.settings import Settings
from feed.ticks import Trade
from feed.times import Time

WARM_UP_S = 1.5
PROBES = 5
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
HANDSHAKE = (
    b"GET /stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class Workload(NamedTuple):
    """Who wants what, and how much of it is published."""

    name: str
    clients: int
    symbols: int
    symbols_each: int
    rate: int
    burst: int = 1


WORKLOADS = (
    Workload("W1 slow", 1000, 1, 1, 100),
    Workload("W1", 1000, 1, 1, 1000),
    Workload("W2", 500, 100, 20, 5000),
    Workload("W3", 1000, 1, 1, 1000, burst=100),
)


class Figures(NamedTuple):
    """The result: means over the run, and ticks that never arrived."""

    cpu_us: float
    p50_ms: float
    p99_ms: float
    connection_kb: float
    lost: int


class Client(asyncio.Protocol):
    """Subscribes, then counts ticks by their first bytes; a probe decodes them as well."""

    def __init__(self, symbols: Sequence[str], delays_ms: list[float] | None) -> None:
        self.ready = asyncio.Event()
        self.ticks = 0
        self._symbols = symbols
        self._delays_ms = delays_ms
        self._received = b""
        self._subscribing = False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(HANDSHAKE)

    def data_received(self, data: bytes) -> None:
        if not self.ready.is_set():
            self._set_up(data)
            return
        self.ticks += data.count(b'"T":"t"')
        if self._delays_ms is not None:
            self._probe(data)

    def _set_up(self, data: bytes) -> None:
        self._received += data
        if not self._subscribing and b"connected" in self._received:
            self._subscribing = True
            action = msgspec.json.encode({"action": "subscribe", "trades": self._symbols})
            header = bytes((0x81, 0xFE)) + len(action).to_bytes(2, "big")
            self._transport.write(header + bytes(4) + action)
        elif b"subscription" in self._received:
            self._received = b""
            self.ready.set()

    def _probe(self, data: bytes) -> None:
        now = time.time_ns()
        self._received += data
        whole = self._received.rfind(b"]") + 1
        frames, self._received = self._received[:whole], self._received[whole:]
        for _, payload in split_frames(frames):
            for tick in msgspec.json.decode(payload):
                self._delays_ms.append((now - Time.parse(tick["t"])) / 1e6)  # type: ignore[union-attr]


def pass_on(client: Client) -> Client:
    """The factory of a protocol that exists already."""
    return client


class ServerProcess:
    """A `tickcast serve` on the first core."""

    def __init__(self, runtime_dir: str, pace: float) -> None:
        self.runtime_dir = runtime_dir
        self._environment = {
            **os.environ,
            "TICKCAST_RUNTIME_DIR": runtime_dir,
            "TICKCAST_FLUSH_PACE": str(pace),
            "TICKCAST_LOG_LEVEL": "warning",
        }

    async def start(self) -> int:
        """Returns the port."""
        self._process = await asyncio.create_subprocess_exec(
            *("taskset", "-c", "0", sys.executable, "-m", "feed.cli", "serve", "--port", "0"),
            stdout=subprocess.PIPE,
            env=self._environment,
        )
        assert self._process.stdout is not None
        return int((await self._process.stdout.readline()).rsplit(b":", 1)[1])

    def cpu_s(self) -> float:
        """Processor time spent so far, the store's not included."""
        with open(f"/proc/{self._process.pid}/stat") as file:  # noqa: PTH123
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def resident_kb(self) -> int:
        """Memory in use."""
        with open(f"/proc/{self._process.pid}/status") as file:  # noqa: PTH123
            return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

    async def stop(self) -> None:
        self._process.terminate()
        await self._process.wait()


async def measure(work: Workload, pace: float, seconds: float) -> Figures:
    """Run one workload against a server of its own."""
    with tempfile.TemporaryDirectory(prefix="tc", dir="/tmp") as directory:
        server = ServerProcess(f"{directory}/store", pace)
        port = await server.start()
        try:
            return await _measure(work, server, port, seconds)
        finally:
            await server.stop()


async def _measure(work: Workload, server: ServerProcess, port: int, seconds: float) -> Figures:
    dice = random.Random(1)
    symbols = [f"SYM{number}" for number in range(work.symbols)]
    empty_kb = server.resident_kb()
    delays_ms: list[float] = []
    clients: list[Client] = []
    for number in range(work.clients):
        wanted = dice.sample(symbols, work.symbols_each)
        client = Client(wanted, delays_ms if number < PROBES else None)
        await asyncio.get_running_loop().create_connection(
            partial(pass_on, client), "127.0.0.1", port
        )
        clients.append(client)
    for client in clients:
        await client.ready.wait()
    connection_kb = (server.resident_kb() - empty_kb) / work.clients

    settings = Settings(runtime_dir=server.runtime_dir)
    redis = make_client(f"unix://{server.runtime_dir}/store.sock")
    async with Publisher(redis, "live", settings) as publisher:
        counts = await publish(publisher, work, symbols, dice, WARM_UP_S)
        await settle(clients)
        delays_ms.clear()
        cpu_s, before = server.cpu_s(), sum(client.ticks for client in clients)
        measured = await publish(publisher, work, symbols, dice, seconds)
        await settle(clients)
        cpu_s = server.cpu_s() - cpu_s
    await redis.aclose()
    delivered = sum(client.ticks for client in clients) - before
    for symbol, count in measured.items():
        counts[symbol] = counts.get(symbol, 0) + count
    expected = sum(counts.get(symbol, 0) for client in clients for symbol in client._symbols)
    cuts = statistics.quantiles(delays_ms, n=100)
    lost = expected - sum(client.ticks for client in clients)
    return Figures(cpu_s / delivered * 1e6, cuts[49], cuts[98], connection_kb, lost)


async def publish(
    publisher: Publisher, work: Workload, symbols: list[str], dice: random.Random, seconds: float
) -> dict[str, int]:
    """Publish on a fixed schedule; returns how many ticks of each symbol."""
    counts: dict[str, int] = {}
    loop = asyncio.get_running_loop()
    began = loop.time()
    for turn in range(round(seconds * work.rate / work.burst)):
        ahead = began + turn * work.burst / work.rate - loop.time()
        if ahead > 0:
            await asyncio.sleep(ahead)
        chosen = [dice.choice(symbols) for _ in range(work.burst)]
        now = Time.now()
        await publisher.publish(
            Trade(symbol=symbol, price=1640.25, size=3, time=now) for symbol in chosen
        )
        for symbol in chosen:
            counts[symbol] = counts.get(symbol, 0) + 1
    await publisher.drain()
    return counts


async def settle(clients: list[Client]) -> None:
    """Wait until nothing more arrives."""
    total = -1
    while total != (total := sum(client.ticks for client in clients)):
        await asyncio.sleep(0.3)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=1, help="show medians of so many")
    parser.add_argument("--pace", type=float, action="append", help="flush_pace, repeatable")
    parser.add_argument("--only", help="one workload, by name")
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})
    print("workload    pace  µs CPU/tick   p50 ms   p99 ms  kB/conn  lost")
    for work in WORKLOADS:
        if options.only not in (None, work.name):
            continue
        for pace in options.pace or [Settings().flush_pace]:
            runs = [await measure(work, pace, options.seconds) for _ in range(options.rounds)]
            medians = Figures(*(statistics.median(column) for column in zip(*runs, strict=True)))
            print(
                f"{work.name:10}{pace:6.2f}{medians.cpu_us:13.2f}{medians.p50_ms:9.1f}"
                f"{medians.p99_ms:9.1f}{medians.connection_kb:9.1f}  {medians.lost:.0f}",
                flush=True,
            )


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
