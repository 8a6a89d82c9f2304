"""Measure the cost of receiving a pub/sub message: redis-py's reader and a bare hiredis parser.

    .venv/bin/python benchmarks/readers.py

Starts a store, a publisher in a separate process, and one reader after the other in this process.
The readers only count messages. Shows medians of this process's CPU time per message, and the
ratio to redis-py's time. `ours` is the server's reader, `RespReader`. `stream` parses
in bulk as well, but awaits redis-py's stream for every read. A message is a batch of ten trades.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis
import uvloop

from tickcast.broker.client import make_client
from tickcast.broker.connection import READ_BYTES, RespReader
from tickcast.broker.embedded import provided_store
from tickcast.settings import Settings
from tickcast.wire.encoding import pack
from tickcast.wire.ticks import Trade
from tickcast.wire.times import Time

CHANNELS = [f"tickcast:{{live/trades/SYM{number}}}:ticks" for number in range(1000)]
LOADS = {"1,000/s": (1_000, 1), "10,000/s": (10_000, 10), "flood": (10**9, 500)}
"""Messages per second, and how many of them are sent to Redis at once."""


async def by_redis_py(connection: Any, count: int) -> None:
    """Read with one await per message."""
    while count:
        reply = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
        count -= reply[0] == b"message"


async def by_stream(connection: Any, count: int) -> None:
    """Read with one await per socket read."""
    parser = hiredis.Reader()
    while count > 0:
        parser.feed(await connection._reader.read(READ_BYTES))
        while (reply := parser.gets()) is not False:
            count -= reply[0] == b"message"


async def by_us(connection: Any, count: int) -> None:
    """Read without any await."""
    done = asyncio.Event()

    def take(reply: Any) -> None:
        nonlocal count
        count -= reply[0] == b"message"
        if not count:
            done.set()

    reader = RespReader(connection._writer.transport, take)
    await done.wait()
    reader.ended.cancel()


READERS = {"redis-py": by_redis_py, "stream": by_stream, "ours": by_us}


async def measure(
    url: str, load: str, count: int, read: Callable[[Any, int], Awaitable[None]]
) -> float:
    """Return the CPU time per message in µs."""
    client = make_client(url)
    connection: Any = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    await connection.connect()
    await connection.send_command("SUBSCRIBE", *CHANNELS)
    for _ in CHANNELS:
        await connection.read_response()
    publisher = await asyncio.create_subprocess_exec(
        *(sys.executable, __file__, "--publish", url, "--load", load, "--count", str(count))
    )
    began = time.process_time()
    await read(connection, count)
    took = time.process_time() - began
    await publisher.wait()
    await connection.disconnect(nowait=True)
    await client.aclose()
    return took / count * 1e6


def publish(url: str, load: str, count: int) -> None:
    """Publish messages. Runs in the other process."""
    rate, together = LOADS[load]
    ticks = [Trade(symbol="SYM1", price=1640.25, size=3, time=Time.now()) for _ in range(10)]
    message = b"06436c1d9b3a00-0a1b2c 123456789 1700000000000000\n" + pack(ticks)
    commands = [hiredis.pack_command(("PUBLISH", channel, message)) for channel in CHANNELS]
    redis = socket.socket(socket.AF_UNIX)
    redis.connect(url.removeprefix("unix://"))
    began = time.monotonic()
    for start in range(0, count, together):
        time.sleep(max(0, began + start / rate - time.monotonic()))
        at = start % len(commands)
        redis.sendall(b"".join(commands[at : at + together]))
        answers = 0
        while answers < together:
            answers += redis.recv(65_536).count(b"\n")


async def main(options: argparse.Namespace) -> None:
    print("µs CPU a message " + "".join(f"{name:>17}" for name in READERS))
    with tempfile.TemporaryDirectory(prefix="tc") as directory:
        async with provided_store(Settings(runtime_dir=directory)) as url:
            for load, (rate, together) in LOADS.items():
                count = min(rate * options.seconds, 50_000) // together * together
                taken: dict[str, list[float]] = {name: [] for name in READERS}
                for _ in range(options.rounds):
                    for name, read in READERS.items():
                        taken[name].append(await measure(url, load, count, read))
                medians = {name: statistics.median(each) for name, each in taken.items()}
                whole = medians["redis-py"]
                cells = (f"{each:9.2f} ({each / whole:4.0%})" for each in medians.values())
                print(f"{load:>16} " + " ".join(cells), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="show medians of so many")
    parser.add_argument("--publish", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        publish(options.publish, options.load, options.count)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(options))
