"""Measure how fast `tickcast replay --speed max` is, and whether the replay or Redis limits it.

    .venv/bin/python benchmarks/replaying.py es-trades.csv.gz

The command replays the same trades of one symbol from a CSV file, a tape and a Parquet file into an
embedded store. A bare publisher then publishes ticks from memory, without reading a file. Prints
medians. `begins` is the CPU time until the first tick is published, which includes the start of the
program and the scan of the file. The other CPU times are per tick after that, of the replay and of
Valkey. `busy` is the share of time that Valkey works. If Valkey were the limit, `busy` would be
near 100 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import uvloop
from processes import cpu_s

from tickcast.broker.client import make_client
from tickcast.broker.embedded import provided_store
from tickcast.broker.publish_buffer import BATCH_TICKS_MAX
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.ticks import DEFAULT_FEED, Trade
from tickcast.wire.times import Time

TICKCAST = [sys.executable, "-m", "tickcast"]


class Run(NamedTuple):
    """One run of a program: its CPU time, Valkey's CPU time, and the elapsed time."""

    cpu_s: float
    store_s: float
    took_s: float


class Figures(NamedTuple):
    """The figures of one round.

    Attributes:
        begin_s: CPU time before the first tick.
        rate: ticks per second from then on.
        cpu_us, store_us: CPU time per tick of the replay and of Valkey.
        busy: the share of time that Valkey used its core.
    """

    begin_s: float
    rate: float
    cpu_us: float
    store_us: float
    busy: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path, help="a CSV file of trades of one symbol")
    parser.add_argument("--rounds", type=int, default=5, help="show medians of so many")
    parser.add_argument("--publish", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        ticks = int(str(options.recording))
        uvloop.run(publish(options.publish, ticks))
        return
    with tempfile.TemporaryDirectory(prefix="tc", dir="/tmp") as directory:
        files = prepare(options.recording, Path(directory))
        uvloop.run(measure(files, Path(directory), options.rounds))


def prepare(recording: Path, directory: Path) -> dict[str, Path]:
    """Convert the recording to each format."""
    tape = directory / "es.jsonl.zst"
    command([*TICKCAST, "tape", "import", str(recording), "--symbol", "ES", "-o", str(tape)])
    command([*TICKCAST, "tape", "export", str(tape), "-o", str(directory)])
    return {"CSV": recording, "tape": tape, "Parquet": directory / "es-trades.parquet"}


def command(words: Sequence[str]) -> str:
    """Run a command and return its standard error. Exit if the command fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    return done.stderr


async def measure(files: dict[str, Path], directory: Path, rounds: int) -> None:
    """Replay the files in turn, and print the medians."""
    found: dict[str, list[Figures]] = {name: [] for name in [*files, "none"]}
    settings = Settings(runtime_dir=str(directory / "rt"))
    async with provided_store(settings) as url:
        client = make_client(url)
        store = (await client.info("server"))["process_id"]
        await client.aclose()
        for _ in range(rounds):
            for name, file in files.items():
                ticks, figures = replayed(file, url, store)
                found[name].append(figures)
            found["none"].append(published(ticks, url, store))
    print(f"{ticks:,} ticks, medians of {rounds} rounds")
    print(f"{'source':10}{'begins':>10}{'ticks/s':>12}{'replay':>12}{'Valkey':>12}{'busy':>8}")
    for name, each in found.items():
        begin_s, rate, cpu_us, store_us, busy = map(statistics.median, zip(*each, strict=True))
        print(
            f"{name:10}{begin_s:>8.2f} s{rate:>12,.0f}{cpu_us:>9.2f} µs{store_us:>9.2f} µs"
            f"{busy:>8.0%}"
        )


def replayed(file: Path, url: str, store: int) -> tuple[int, Figures]:
    """Replay a file with the command. Returns the number of ticks and the figures."""
    words = [*TICKCAST, "replay", str(file), "--symbol", "ES", "--speed", "max", "--redis", url]
    first, _ = timed([*words, "--limit", "1"], store)
    whole, said = timed(words, store)
    match = re.search(r"replayed ([\d,]+) ticks", said)
    assert match is not None, said
    ticks = int(match[1].replace(",", ""))
    # The command only prints its time in tenths of a second. Instead, use the time between start
    # and end, minus the time of a run with one tick.
    return ticks, figures(ticks, first, whole)


def published(ticks: int, url: str, store: int) -> Figures:
    """Publish ticks from memory in another program, which reports its CPU time."""
    before_s = cpu_s(store)
    said = command([sys.executable, __file__, str(ticks), "--publish", url])
    begin_s, whole_s, took_s = json.loads(said)
    whole = Run(whole_s, cpu_s(store) - before_s, took_s)
    return figures(ticks, Run(begin_s, 0.0, 0.0), whole)


def figures(ticks: int, first: Run, whole: Run) -> Figures:
    """Compute the difference between a run of one tick and a run of all ticks."""
    took_s = whole.took_s - first.took_s
    store_s = whole.store_s - first.store_s
    return Figures(
        begin_s=first.cpu_s,
        rate=ticks / took_s,
        cpu_us=(whole.cpu_s - first.cpu_s) / ticks * 1e6,
        store_us=store_s / ticks * 1e6,
        busy=store_s / took_s,
    )


def timed(words: Sequence[str], store: int) -> tuple[Run, str]:
    """Run a program. Returns its cost and its standard error."""
    before_s, began_s = cpu_s(store), time.monotonic()
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(words)}: {said}")
    took_s = time.monotonic() - began_s
    return Run(usage.ru_utime + usage.ru_stime, cpu_s(store) - before_s, took_s), said


async def publish(url: str, count: int) -> None:
    """Create ticks, publish them, and print the cost to stderr. Runs in the other program."""
    now = Time.now()
    ticks = [
        Trade(symbol="ES", price=1640.25, size=3.0, time=Time(now + each * 1000))
        for each in range(count)
    ]
    client = make_client(url)
    async with FeedPublisher(client, DEFAULT_FEED, Settings(), waits=True) as publisher:
        begin_s, began_s = time.process_time(), time.monotonic()
        for start in range(0, count, BATCH_TICKS_MAX):
            await publisher.publish(ticks[start : start + BATCH_TICKS_MAX], checked=True)
            await asyncio.sleep(0)
        await publisher.flush()
        took_s = time.monotonic() - began_s
        cost = [begin_s, time.process_time(), took_s]
    await client.aclose()
    print(json.dumps(cost), file=sys.stderr)


if __name__ == "__main__":
    main()
