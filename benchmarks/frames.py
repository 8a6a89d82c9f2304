"""Measure `publish_frame`: ticks per second into a store, and the processor time of a tick.

A table of trades over some symbols is published into an empty store. The publisher runs on the
first core, and the store on the second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import uvloop
from processes import LOAD_CORE, SERVER_CORE, cpu_s, descendants

from tickcast import Publisher
from tickcast.broker.embedded import provided_store
from tickcast.settings import Settings

START_NS = 1_767_623_400_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--symbols", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", choices=("polars", "pandas", "pyarrow"), default="polars")
    options = parser.parse_args()
    frame = make_frame(options.rows, options.symbols, options.kind)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for _ in range(options.rounds):
            runner.run(measure(frame, options.rows))


def make_frame(rows: int, symbols: int, kind: str) -> Any:
    times = pl.Series(range(START_NS, START_NS + rows * 1000, 1000), dtype=pl.Int64)
    frame = pl.DataFrame(
        {
            "symbol": [f"SYM{n % symbols}" for n in range(rows)],
            "price": [100 + n % 500 / 100 for n in range(rows)],
            "size": [1 + n % 100 for n in range(rows)],
            "time": times.cast(pl.Datetime("ns", "UTC")),
        }
    )
    if kind == "pandas":
        return frame.to_pandas()
    return pa.table(frame) if kind == "pyarrow" else frame


async def measure(frame: Any, rows: int) -> None:
    with tempfile.TemporaryDirectory(prefix="tc", dir="/tmp") as directory:
        settings = Settings(runtime_dir=str(Path(directory) / "rt"))
        async with provided_store(settings) as url:
            own = os.getpid()
            store = list(descendants(own))
            for pid in store:
                os.sched_setaffinity(pid, {LOAD_CORE})
            os.sched_setaffinity(own, {SERVER_CORE})
            began, spent = time.monotonic(), time.process_time()
            store_before = sum(map(cpu_s, store))
            async with Publisher(redis=url) as publisher:
                await publisher.publish_frame(frame)
            took_s, spent_s = time.monotonic() - began, time.process_time() - spent
            store_s = sum(map(cpu_s, store)) - store_before
            assert publisher.stats().published == rows
    print(
        f"{rows / took_s:,.0f} ticks/s; publisher {spent_s / rows * 1e6:.2f} µs a tick,"
        f" so {rows / spent_s:,.0f} ticks per second of its core;"
        f" store {store_s / rows * 1e6:.2f} µs"
    )


if __name__ == "__main__":
    main()
