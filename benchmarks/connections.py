"""Measure the cost of connections: time to connect, and memory of 5,000 clients in one worker.

Each client subscribes to 20 of 200 symbols. In the first run, each client chooses at random. In the
second, all choose the same. Then one tick per symbol is published, and each client must get its 20.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

import peers
from load import Step, Swarm, Way
from measure import connected, running
from peers.tickcast import STORE
from processes import set_up_load_process
from workloads import Workload

from tickcast.broker.client import make_client
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.ticks import Trade
from tickcast.wire.times import Time

_AT_ONCE = 50
_SERVE_TIMEOUT_S = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=5000)
    parser.add_argument("--symbols", type=int, default=200)
    parser.add_argument("--each", type=int, default=20)
    options = parser.parse_args()
    set_up_load_process()
    own = Workload("connections", options.clients, options.symbols, options.each, 1)
    print(f"{options.clients} clients of {options.each} of {options.symbols} symbols")
    print(
        f"{'sets':8}{'connect s':>10}{'idle kB':>9}{'subscr. s':>10}{'subscr. kB':>11}{'served':>8}"
    )
    run("own", own.wanted(), own.symbol_names())
    run("same", [own.symbol_names()[: options.each]] * options.clients, own.symbol_names())


def run(name: str, wanted: list[list[str]], symbols: list[str]) -> None:
    """Connect, subscribe and serve these clients, and print the time and memory used."""
    peer = peers.load("tickcast")
    with running(peer) as (server, port, directory), connected() as swarm:
        empty_kb = server.resident_kb()
        (greeted, _), (_, _) = peer.steps([])
        began = time.monotonic()
        swarm.connect(port, [Way(peer.hello(), [Step(greeted)])] * len(wanted), _AT_ONCE)
        connect_s = time.monotonic() - began
        idle_kb = (server.resident_kb() - empty_kb) / len(wanted)

        began = time.monotonic()
        subscribe(peer, swarm, wanted)
        subscribe_s = time.monotonic() - began
        subscribed_kb = (server.resident_kb() - empty_kb) / len(wanted)

        began = time.monotonic()
        asyncio.run(publish_each(directory, symbols))
        due = sum(map(len, wanted))
        swarm.settle(due, _SERVE_TIMEOUT_S)
        served_s = time.monotonic() - began
        unserved = sum(
            swarm.count(client) != len(symbols)
            for client, symbols in zip(swarm.clients, wanted, strict=True)
        )
        served = f"{len(wanted) - unserved} in {served_s:.2f} s"
        print(
            f"{name:8}{connect_s:10.2f}{idle_kb:9.1f}{subscribe_s:10.2f}{subscribed_kb:11.1f}",
            f" {served}",
            flush=True,
        )
        if unserved or swarm.cut_off:
            print(f"! {unserved} clients were not served, {swarm.cut_off} were cut off")


def subscribe(peer: peers.Peer, swarm: Swarm, wanted: list[list[str]]) -> None:
    """Subscribe each client to its symbols."""
    for start in range(0, len(wanted), _AT_ONCE):
        for number in range(start, min(start + _AT_ONCE, len(wanted))):
            (_, wish), (confirmed, _) = peer.steps(wanted[number])
            swarm.say(swarm.clients[number], wish, confirmed)
        swarm.finish_steps()


async def publish_each(directory: Path, symbols: list[str]) -> None:
    """Publish one tick of each symbol."""
    settings = Settings(runtime_dir=str(directory / STORE))
    client = make_client(f"unix://{directory / STORE}/store.sock")
    async with FeedPublisher(client, "live", settings) as publisher:
        now = Time.now()
        await publisher.publish(Trade(symbol=each, price=1.5, size=1, time=now) for each in symbols)
    await client.aclose()


if __name__ == "__main__":
    main()
