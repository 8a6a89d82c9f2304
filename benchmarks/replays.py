"""Run many private replays of one tape on one server that also serves a live feed.

Each client replays the same part of the tape at ten times the original speed. Prints how far each
tick was from its due time, how late live ticks were meanwhile, and whether each client got every
tick of the part, in order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from websockets.asyncio.client import ClientConnection, connect

from producers.recordings.csv import CsvRecording
from tickcast.tapes import TapeWriter
from tickcast.wire.ticks import Tick
from tickcast.wire.times import NS_PER_SECOND, Time

LIVE_RATE = 500
FLUSH_NS = NS_PER_SECOND


class Seen(NamedTuple):
    """One client's data: the start of the replay, and the frames with their times of arrival."""

    began_s: float
    frames: list[tuple[float, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path, help="a CSV file of trades")
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--speed", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--skip", type=int, default=350_000, help="trades before the part")
    options = parser.parse_args()
    ticks = list(islice(CsvRecording(options.recording, "ES"), options.skip, None))
    with tempfile.TemporaryDirectory(prefix="tc", dir="/tmp") as directory:
        part = write_tape(Path(directory) / "tapes", ticks, options.seconds * options.speed)
        with running(Path(directory)) as url:
            uvloop.run(measure(url, part, options.clients, options.speed))


def write_tape(directory: Path, ticks: list[Tick], seconds: float) -> list[Tick]:
    """Write ticks to a tape as a recorder would. Returns those of the first `seconds`."""
    directory.mkdir()
    end = ticks[0].time + seconds * NS_PER_SECOND
    writer = TapeWriter(directory / "es.jsonl.zst", "live", "benchmark")
    due = ticks[0].time + FLUSH_NS
    for seq, tick in enumerate(ticks, 1):
        tick.seq = seq
        if tick.time >= due:
            writer.flush()
            due = Time(tick.time + FLUSH_NS)
        if tick.time > end + 60 * NS_PER_SECOND:
            break
        writer.append_tick(tick)
    writer.close()
    return [tick for tick in ticks if tick.time <= end]


@contextmanager
def running(directory: Path) -> Iterator[str]:
    """Run a server with the tape and a live synthetic market. Yields its address."""
    tickcast = [sys.executable, "-m", "tickcast"]
    environment = {"TICKCAST_RUNTIME_DIR": str(directory / "rt"), "PYTHONUNBUFFERED": "1"}
    server = subprocess.Popen(
        [*tickcast, "serve", "--port", "0", "--tapes", str(directory / "tapes")],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    market = None
    try:
        found = next(filter(None, (re.search(r"http(://\S+)", line) for line in server.stdout)))
        market = subprocess.Popen(
            [*tickcast, "synth", "--rate", str(LIVE_RATE)], env=environment,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        yield f"ws{found[1]}/stream"
    finally:
        for process in (market, server):
            if process is not None:
                process.terminate()
                process.wait()


async def measure(url: str, part: list[Tick], clients: int, speed: float) -> None:
    """Replay to all clients, and print the results."""
    late_ms: list[float] = []
    live = asyncio.create_task(watch_live(url, late_ms))
    asked = {"action": "replay", "id": 1, "tape": "es", "trades": ["*"], "speed": speed,
             "start": int(part[0].time), "end": int(part[-1].time)}  # fmt: skip
    seen = await asyncio.gather(*(see(url, asked) for _ in range(clients)))
    live.cancel()
    errors_ms: list[float] = []
    seqs = [tick.seq for tick in part]
    for each in seen:
        found = []
        for arrived_s, frame in each.frames:
            for tick in json.loads(frame):
                if tick["T"] != "t":
                    continue
                due_s = (Time.parse(tick["t"]) - part[0].time) / NS_PER_SECOND / speed
                errors_ms.append(1000 * (arrived_s - each.began_s - due_s))
                found.append(tick["seq"])
        assert found == seqs, "a client did not get every tick in order"
    print(f"{clients} clients got all of {len(part):,} ticks each, in order")
    tell("from its place", errors_ms)
    tell("live", late_ms)


async def see(url: str, asked: dict[str, Any]) -> Seen:
    """Run one client until the end of its replay."""
    frames: list[tuple[float, str]] = []
    async with connect(url, compression=None, max_size=None, max_queue=None) as socket:
        await socket.recv()
        await socket.send(json.dumps(asked))
        said = str(await socket.recv())
        assert '"playing"' in said, said
        began_s = time.monotonic()
        while '"ended"' not in (frame := str(await socket.recv())):
            frames.append((time.monotonic(), frame))
    return Seen(began_s, frames)


async def watch_live(url: str, late_ms: list[float]) -> None:
    """Record how late live ticks are, until cancelled."""
    async with connect(url, compression=None) as socket:
        await ask(socket, {"action": "configure", "stamps": True})
        await ask(socket, {"action": "subscribe", "trades": ["*"], "quotes": ["*"]})
        while True:
            messages = json.loads(await socket.recv())
            now_us = time.time_ns() // 1000
            late_ms += [(now_us - each["tr"]) / 1000 for each in messages if "tr" in each]


async def ask(socket: ClientConnection, message: dict[str, Any]) -> None:
    await socket.recv()
    await socket.send(json.dumps(message))


def tell(what: str, values_ms: list[float]) -> None:
    """Print the median, the 99th percentile and the worst value."""
    cuts = statistics.quantiles(values_ms, n=100)
    worst = max(values_ms)
    print(f"{what:16} p50 {cuts[49]:6.1f} ms   p99 {cuts[98]:6.1f} ms   worst {worst:6.1f} ms")


if __name__ == "__main__":
    main()
