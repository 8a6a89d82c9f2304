"""Test whether one worker keeps up with 100,000 ticks/s, in batches of ten over 1,000 symbols.

Ten clients subscribe to `*`, conflated to one second, so nearly all of the work is ingesting ticks.
The lag of a tick is its age when a client receives it. Up to 100 ms of it come from the schedule,
because each symbol is published ten times a second. The lag must not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import peers
import uvloop
from load import Receipt, Refused, Step, Swarm, Way
from measure import connected, running
from peers import frame
from peers.tickcast import STORE
from processes import LOAD_CORE, SERVER_CORE, cpu_s, descendants, set_up_load_process

from tickcast.broker.client import make_client
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.ticks import Trade
from tickcast.wire.times import Time

BATCH = 10
SYMBOLS = 1000
CLIENTS = 10
CONFLATE_MS = 1000
TURN_S = 0.01
GROWTH_MAX_MS = 100.0
_SETTLE_S = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=int, default=100_000, help="ticks per second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--store", choices=("load", "server"), default="server", help="whose core the store is on"
    )
    parser.add_argument("--publish", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(publish(options.publish, options.rate, options.seconds))
        return
    set_up_load_process()
    store_core = SERVER_CORE if options.store == "server" else LOAD_CORE
    peer = peers.load("tickcast")
    with running(peer, store_core) as (server, port, directory), connected() as swarm:
        try:
            swarm.connect(port, [subscription(peer)] * CLIENTS)
        except Refused as error:
            sys.exit(f"the server can't conflate: {error}")
        swarm.choose_probes(CLIENTS)
        store_pids = list(descendants(server.pid))
        before, store_before = server.cpu_s(), sum(map(cpu_s, store_pids))
        began_ns = time.time_ns()
        published, publisher_s = flow(swarm, directory, options.rate, options.seconds)
        took_s = (time.time_ns() - began_ns) / 1e9 - _SETTLE_S
        receipts = swarm.receipts()
        cpu = (server.cpu_s() - before) / published * 1e6
        print(f"published {published} ticks, {published / options.seconds:,.0f} a second")
        print(
            f"server {cpu:.2f} µs a tick, {cpu * published / 1e6 / took_s:.0%} of its core;",
            end=" ",
        )
        store_s = sum(map(cpu_s, store_pids)) - store_before
        print(f"store {store_s / took_s:.0%}; publisher {publisher_s / took_s:.0%} of its core")
        tell(receipts[0], published, began_ns)


def subscription(peer: peers.Peer) -> Way:
    """Return the steps of a client that subscribes to all symbols, conflated."""
    wish = {"action": "subscribe", "trades": ["*"], "conflate_ms": CONFLATE_MS}
    (greeted, _), (confirmed, _) = peer.steps([])
    return Way(peer.hello(), [Step(greeted, frame(json.dumps(wish).encode())), Step(confirmed)])


def flow(swarm: Swarm, directory: Path, rate: int, seconds: float) -> tuple[int, float]:
    """Receive while a separate process publishes. Return the tick count and that process's CPU."""
    command = [sys.executable, __file__, "--publish", str(directory)]
    command += ["--rate", str(rate), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as publisher:
        deadline = time.monotonic() + 2 * seconds + 10
        while publisher.poll() is None:
            swarm.pump(time.monotonic() + 0.1)
            if time.monotonic() > deadline:
                publisher.kill()
                sys.exit("the publisher is stuck")
        swarm.pump(time.monotonic() + _SETTLE_S)
        assert publisher.stdout is not None
        report = json.loads(publisher.stdout.read())
    if report["late_s"] > 1:
        print(f"! the publisher could not keep the rate: {report['late_s']:.1f} s late at the end")
    return report["published"], report["cpu_s"]


async def publish(directory: Path, rate: int, seconds: float) -> None:
    """Publish batches on a schedule and print a report as JSON."""
    gc.disable()
    with suppress(PermissionError):
        os.nice(-5)
    settings = Settings(runtime_dir=str(directory / STORE))
    client = make_client(f"unix://{directory / STORE}/store.sock")
    symbols = [f"SYM{number}" for number in range(SYMBOLS)]
    batches = round(rate / BATCH * TURN_S)
    turns = round(seconds / TURN_S)
    at = 0
    async with FeedPublisher(client, "live", settings) as publisher:
        began = time.monotonic()
        wall_ns = time.time_ns()
        for turn in range(turns):
            ahead = began + turn * TURN_S - time.monotonic()
            await asyncio.sleep(max(0.0, ahead))
            due = Time(wall_ns + round(turn * TURN_S * 1e9))
            for _ in range(batches):
                symbol = symbols[at % SYMBOLS]
                at += 1
                await publisher.publish(
                    [Trade(symbol=symbol, price=1640.25, size=3, time=due) for _ in range(BATCH)]
                )
        await publisher.flush()
        late_s = time.monotonic() - began - turns * TURN_S
    await client.aclose()
    spent = time.process_time()
    print(json.dumps({"published": turns * batches * BATCH, "late_s": late_s, "cpu_s": spent}))


def tell(receipts: list[Receipt], published: int, began_ns: int) -> None:
    """Print one client's lag over time, and whether any tick is missing."""
    by_second: dict[int, list[float]] = {}
    for each in receipts:
        by_second.setdefault((each.at_ns - began_ns) // 10**9, []).append(each.delay_ms)
    print("second  ticks  median lag ms  worst ms")
    for second, delays in sorted(by_second.items()):
        print(f"{second:6}{len(delays):7}{statistics.median(delays):15.0f}{max(delays):10.0f}")
    accounted = sum(1 + each.merged for each in receipts)
    print(f"delivered {len(receipts)} + merged = {accounted} of {published}", end=": ")
    print("exact" if accounted == published else "NOT exact")
    medians = [statistics.median(delays) for _, delays in sorted(by_second.items())]
    third = len(medians) // 3
    if not third:
        sys.exit("too short to tell whether the lag grows")
    growth = statistics.median(medians[-third:]) - statistics.median(medians[:third])
    word = "does not grow" if growth < GROWTH_MAX_MS else "GROWS"
    print(f"the lag {word}: {growth:+.0f} ms from the first third to the last")


if __name__ == "__main__":
    main()
