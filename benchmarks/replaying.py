"""How fast `tickcast replay --speed max` goes, and who is the bound: the replay or Redis.

    .venv/bin/python benchmarks/replaying.py es-trades.csv.gz

The same trades of one symbol as a CSV file, a tape and a Parquet file, each replayed into an
embedded store by the command itself; and once more by a bare publisher, out of memory, with nothing
to read. Shown are medians. `begins` is the CPU time until the first tick is out: the start of the
program and the look through the file. The other CPU times are those of a tick from there on, of the
replay and of Valkey; `busy` is how much of the time Valkey spends on it. Were it the bound, that
would be near 100 %.
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

from feed.broker.client import make_client
from feed.broker.embedded import provided_store
from feed.broker.publisher import Publisher
from feed.broker.waiting import BATCH_TICKS_MAX
from feed.settings import Settings
from feed.ticks import DEFAULT_FEED, Trade
from feed.times import Time

TICKCAST = [sys.executable, "-m", "feed.cli"]


class Run(NamedTuple):
    """One program's run: its CPU time, Valkey's, and how long the ticks took it."""

    cpu_s: float
    store_s: float
    took_s: float


class Figures(NamedTuple):
    """Of one round.

    Attributes:
        begin_s: CPU time before the first tick.
        rate: ticks per second from then on.
        cpu_us, store_us: CPU time of a tick, the replay's and Valkey's.
        busy: how much of the time Valkey used its core.
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
    """The recording in each form."""
    tape = directory / "es.jsonl.zst"
    command([*TICKCAST, "tape", "import", str(recording), "--symbol", "ES", "-o", str(tape)])
    command([*TICKCAST, "tape", "export", str(tape), "-o", str(directory)])
    return {"CSV": recording, "tape": tape, "Parquet": directory / "es-trades.parquet"}


def command(words: Sequence[str]) -> str:
    """What a command that succeeds says on its standard error."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: {done.stderr}")
    return done.stderr


async def measure(files: dict[str, Path], directory: Path, rounds: int) -> None:
    """Run them in turn, and tell."""
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
    """The ticks of a file by the command: their number, and what they cost."""
    words = [*TICKCAST, "replay", str(file), "--symbol", "ES", "--speed", "max", "--redis", url]
    first, _ = timed([*words, "--limit", "1"], store)
    whole, said = timed(words, store)
    match = re.search(r"replayed ([\d,]+) ticks", said)
    assert match is not None, said
    ticks = int(match[1].replace(",", ""))
    # The command tells the time to a tenth of a second. So it is that between start and end, less
    # what the first tick took.
    return ticks, figures(ticks, first, whole)


def published(ticks: int, url: str, store: int) -> Figures:
    """So many ticks out of memory; the program itself tells what they cost it."""
    before_s = cpu_s(store)
    said = command([sys.executable, __file__, str(ticks), "--publish", url])
    begin_s, whole_s, took_s = json.loads(said)
    whole = Run(whole_s, cpu_s(store) - before_s, took_s)
    return figures(ticks, Run(begin_s, 0.0, 0.0), whole)


def figures(ticks: int, first: Run, whole: Run) -> Figures:
    """What lies between a run of one tick and one of all."""
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
    """Run a program; returns what that cost, and what it said."""
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
    """The other program: make ticks, publish them, and print on standard error what that cost."""
    now = Time.now()
    ticks = [
        Trade(symbol="ES", price=1640.25, size=3.0, time=Time(now + each * 1000))
        for each in range(count)
    ]
    client = make_client(url)
    async with Publisher(client, DEFAULT_FEED, Settings(), waits=True) as publisher:
        begin_s, began_s = time.process_time(), time.monotonic()
        for start in range(0, count, BATCH_TICKS_MAX):
            await publisher.publish(ticks[start : start + BATCH_TICKS_MAX], checked=True)
            await asyncio.sleep(0)
        await publisher.drain()
        took_s = time.monotonic() - began_s
        cost = [begin_s, time.process_time(), took_s]
    await client.aclose()
    print(json.dumps(cost), file=sys.stderr)


if __name__ == "__main__":
    main()
