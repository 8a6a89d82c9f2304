"""A program whose threads publish numbered ticks over many streams until SIGTERM.

It writes a report, one JSON object a line: the beginning and the end of an outage; after a flush,
the last number of a thread; at the end, the last number that each thread passed to the publisher,
and the publisher's counts. The lines survive a SIGKILL of the program.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

from tickcast import Trade
from tickcast.blocking import Publisher

_FLUSH_BATCHES: Final = 10


class Plan(NamedTuple):
    """What one program publishes."""

    # The prefix of the threads' names, which are the venues of their ticks.
    name: str
    on_full: Literal["drop", "wait"]
    threads: int
    # Each thread publishes into all streams in turn.
    streams: int
    # Ticks in a call, and the pause of a thread before it.
    batch: int
    pause_s: float


class ProgramReport:
    """What a program has written so far."""

    def __init__(self, path: Path) -> None:
        text = path.read_text("utf-8") if path.exists() else ""
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        self.outages = sum("outage" in line for line in lines)
        self.recoveries = sum("recovered" in line for line in lines)
        # The last number of each thread that was flushed.
        self.flushed: dict[str, int] = {
            line["thread"]: line["id"] for line in lines if "thread" in line
        }
        self.stats: dict[str, Any] = lines[-1].get("stats", {}) if lines else {}


def main() -> None:
    redis_url, path, name, on_full, threads, streams, batch, pause_s = sys.argv[1:]
    plan = Plan(name, cast("Any", on_full), int(threads), int(streams), int(batch), float(pause_s))
    report = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(**line: Any) -> None:
        os.write(report, json.dumps(line).encode() + b"\n")

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    publisher = Publisher(
        redis=redis_url,
        on_full=plan.on_full,
        on_outage=lambda error: write(outage=str(error)),
        on_recovered=lambda stats: write(recovered=stats.outages),
    )

    def publish(thread: str) -> int:
        last = 0
        while not stop.wait(plan.pause_s):
            ids = range(last + 1, last + plan.batch + 1)
            publisher.publish(
                Trade(f"S{id_ % plan.streams}", 100 + id_ % 50, 1, id=id_, venue=thread)
                for id_ in ids
            )
            last = ids[-1]
            # A live source can't wait, and a flush waits for the end of an outage.
            if plan.on_full == "wait" and last // plan.batch % _FLUSH_BATCHES == 0:
                publisher.flush()
                write(thread=thread, id=last)
        return last

    names = [f"{plan.name}-{number}" for number in range(plan.threads)]
    with publisher, ThreadPoolExecutor(plan.threads) as pool:
        last_ids = list(pool.map(publish, names))
    for thread, last in zip(names, last_ids, strict=True):
        write(thread=thread, id=last)
    write(stats=asdict(publisher.stats()))


if __name__ == "__main__":
    main()
