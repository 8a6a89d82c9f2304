"""Measure `POST /v1/publish`: ticks per second and core, and what it costs the other clients.

A server with authentication runs on the first core. On the second one, its store, posters that send
requests of 1,000 ticks, and a probe: a client of a stream that gets 50 ticks a second from another
publisher. Prints the ticks posted per second, the server's CPU per tick, and the probe's delay.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from processes import LOAD_CORE, ServerProcess, cpu_s, descendants, pin, set_up_load_process

from feed.access.key_file import add_key
from feed.access.keys import Key, hash_secret, make_key_id, make_secret
from tickcast import Publisher, Stream, Time, Trade, connect

PROBE = "PROBE"
PROBE_INTERVAL_S = 0.02
WARM_UP_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--ticks", type=int, default=1000, help="per request")
    parser.add_argument("--symbols", type=int, default=100)
    parser.add_argument("--posters", type=int, default=4)
    parser.add_argument("--rate", type=float, help="ticks a second to offer; default: all that go")
    options = parser.parse_args()
    set_up_load_process()
    with tempfile.TemporaryDirectory(prefix="tc", dir="/tmp") as directory:
        secret = make_key(Path(directory) / "keys.toml")
        os.environ |= {
            "TICKCAST_RUNTIME_DIR": directory,
            "TICKCAST_PUBLISH_TICKS_PER_S": "1e9",
            "TICKCAST_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "tickcast", "serve", "--port", "0",
                   "--auth", f"{directory}/keys.toml"]  # fmt: skip
        server = ServerProcess(command, dict(os.environ))
        try:
            port = server.wait_for_port()
            for store in descendants(server.pid):
                pin(store, LOAD_CORE)
            asyncio.run(measure(server.pid, port, secret, options))
        finally:
            server.stop()


def make_key(file: Path) -> str:
    key_id = make_key_id()
    secret = make_secret(key_id)
    add_key(file, key_id, Key(name="benchmark", hash=hash_secret(secret), publish=True))
    return secret


async def measure(pid: int, port: int, secret: str, options: argparse.Namespace) -> None:
    delays: list[float] = []
    async with (
        connect(f"ws://127.0.0.1:{port}/stream", token=secret) as stream,
        Publisher(feed="live") as publisher,
    ):
        await stream.subscribe(trades=[PROBE])
        probe = asyncio.create_task(read_probe(stream, delays))
        ticker = asyncio.create_task(publish_probe(publisher))
        await asyncio.sleep(WARM_UP_S)
        print("posting       ticks/s   CPU µs/tick   ticks/s/core   probe p50 / p99 / max, ms")
        for name, posters in (("nothing", 0), (f"{options.ticks} a request", options.posters)):
            delays.clear()
            start_s, cpu = time.perf_counter(), cpu_s(pid)
            posts = [post(port, secret, options, n) for n in range(posters)]
            counts = await asyncio.gather(*posts, asyncio.sleep(options.seconds, 0))
            took_s, cpu = time.perf_counter() - start_s, cpu_s(pid) - cpu
            ticks = sum(counts)
            ms = sorted(1e3 * each for each in delays)
            costs = f"{1e6 * cpu / ticks:11.2f} {ticks / cpu:14,.0f}" if ticks else f"{'':26}"
            print(f"{name:14}{ticks / took_s:7,.0f} {costs}   {statistics.median(ms):.1f} /"
                  f" {ms[int(0.99 * len(ms))]:.1f} / {ms[-1]:.1f}")  # fmt: skip
        probe.cancel()
        ticker.cancel()


async def post(port: int, secret: str, options: argparse.Namespace, number: int) -> int:
    """Send requests one after the other; return the number of ticks published."""
    ticks = [
        {"T": "t", "S": f"S{n % options.symbols}", "p": 100 + n / 100, "s": 1,
         "t": f"2026-01-05T14:30:00.{n:09}Z"}
        for n in range(options.ticks)
    ]  # fmt: skip
    body = json.dumps(ticks).encode()
    head = (
        f"POST /v1/publish HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    loop, count = asyncio.get_running_loop(), 0
    start_s = loop.time()
    interval_s = options.posters * options.ticks / options.rate if options.rate else 0.0
    due_s = start_s + number * interval_s / options.posters
    while loop.time() < start_s + options.seconds:
        await asyncio.sleep(max(0.0, due_s - loop.time()))
        due_s += interval_s
        writer.write(head + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        size = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        count += json.loads(await reader.readexactly(size))["published"]
    writer.close()
    return count


async def publish_probe(publisher: Publisher) -> None:
    while True:
        await publisher.publish(Trade(PROBE, 1.0, 1.0))
        await asyncio.sleep(PROBE_INTERVAL_S)


async def read_probe(stream: Stream, delays: list[float]) -> None:
    async for tick in stream:
        delays.append((Time.now() - tick.time) / 1e9)  # noqa: PERF401 - read while it grows


if __name__ == "__main__":
    main()
