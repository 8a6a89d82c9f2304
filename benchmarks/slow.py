"""Measure how slow clients affect the others, and what happens to them.

1,000 clients subscribe to ten symbols, with 2,000 ticks/s in bursts. First, all clients read. Then
every tenth client stops reading for 20 s, and then reads again. Prints the delay of ticks to the
other clients and the server's memory. For the slow clients, prints how soon they have the latest
tick of every stream again, and whether delivered, merged (`cf`) and skipped ticks add up.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from typing import NamedTuple

import msgspec
import peers
from load import Client, Step, Swarm, Way, decode
from measure import connected, running, way
from peers import handshake
from processes import set_up_load_process
from publishing import Publishing
from workloads import SLOW

from tickcast.settings import Settings

SEED = 5
WARM_UP_S = 2.0
CALM_S = 10.0
AFTER_S = 6.0
EVERY = 10
RECEIVE_BUFFER = 64 * 1024
Kept = list[tuple[int, bytes]]
_MESSAGE = re.compile(rb'\{"T":"(?:t|skipped)"[^}]*\}')
_SLOW_CLIENT = b'"code":407'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stall", type=float, default=20.0, help="seconds without reading")
    parser.add_argument("--timeline", action="store_true", help="also the others' worst by second")
    options = parser.parse_args()
    set_up_load_process()
    peer = peers.load("tickcast")
    with running(peer) as (server, port, directory), connected() as swarm:
        swarm.connect(port, [stream(peer, number) for number in range(SLOW.clients)])
        stalled = swarm.clients[EVERY // 2 :: EVERY]
        others = [client for number, client in enumerate(swarm.clients) if number % EVERY == 0]
        probes = others[:: len(others) // 5]
        for client in (*probes, *stalled):
            swarm.probe(client)
        publishing = Publishing(peer.name, SLOW.name, directory)
        try:
            seconds = WARM_UP_S + CALM_S + options.stall + AFTER_S
            begin = time.monotonic() - time.time() + publishing.start(seconds, SEED)
            swarm.pump(begin + WARM_UP_S)
            swarm.forget()
            swarm.pump(begin + WARM_UP_S + CALM_S)
            # Decode at the end. Doing it now would stop our own reading, which looks like delay.
            calm = [swarm.take(client) for client in probes]

            before_kb = server.resident_kb()
            for client in stalled:
                swarm.pause(client)
            stop = WARM_UP_S + CALM_S + options.stall
            swarm.pump(begin + stop)
            disturbed = [swarm.take(client) for client in probes]
            peak_kb = server.peak_kb()

            for client in stalled:
                swarm.resume(client)
            resumed_ns = time.time_ns()
            # Ignore the delays from now on: the slow clients' backlog keeps our own core busy.
            swarm.pump(begin + seconds + 2.0)
            publishing.report()
        finally:
            publishing.stop()
        tell_delays("all read", calm)
        tell_delays(f"{len(stalled)} do not", disturbed)
        if options.timeline:
            tell_timeline(disturbed)
        tell_memory(before_kb, peak_kb, len(stalled))
        tell_stalled(swarm, stalled, stop, seconds, resumed_ns)


def stream(peer: peers.Peer, number: int) -> Way:
    """Return a client's setup. Clients that will stall get a small receive buffer."""
    usual = way(peer, SLOW.symbol_names())
    if number % EVERY != EVERY // 2:
        return usual
    steps = [Step(*step) for step in usual.steps]
    return Way(handshake("/stream", "tickcast.v1.json"), steps, RECEIVE_BUFFER)


def tell_delays(what: str, probes: list[Kept]) -> None:
    """Print the delays of ticks to the clients that read."""
    delays = [each.delay_ms for kept in probes for each in decode(kept)]
    cuts = statistics.quantiles(delays, n=100)
    print(f"{what:16} p50 {cuts[49]:6.1f} ms   p99 {cuts[98]:6.1f} ms", flush=True)


def tell_timeline(probes: list[Kept]) -> None:
    """Print the worst delay of each second to the clients that read."""
    worst: dict[int, float] = {}
    for kept in probes:
        for each in decode(kept):
            second = each.at_ns // 10**9
            worst[second] = max(worst.get(second, 0.0), each.delay_ms)
    print("worst ms of each second:", *(f"{worst[second]:.0f}" for second in sorted(worst)))


def tell_memory(before_kb: int, peak_kb: int, stalled: int) -> None:
    """Print the server's memory, and whether the slow clients' queues stayed within bounds."""
    bound_mb = stalled * Settings().outbox_max_bytes / 2**20
    grown_mb = (peak_kb - before_kb) / 1024
    word = "within" if grown_mb <= bound_mb * 1.1 else "OVER"
    print(f"server memory    {before_kb / 1024:.0f} MB, {peak_kb / 1024:.0f} at its peak,", end=" ")
    print(f"{word} the queues' bounds of {bound_mb:.0f} MB in all")


class Account(NamedTuple):
    """What one slow client received.

    Attributes:
        caught_up_ms: the time until it had the latest tick of every stream; None if it never did.
        delivered, merged, skipped: numbers of ticks, from the first one that it received.
        is_exact: whether these account for every tick up to the last one published.
    """

    caught_up_ms: float | None
    delivered: int
    merged: int
    skipped: int
    is_exact: bool


def tell_stalled(
    swarm: Swarm, stalled: list[Client], stop: float, seconds: float, resumed_ns: int
) -> None:
    """Print what happened to the slow clients."""
    closed = sum(
        _SLOW_CLIENT in b"".join(chunk for _, chunk in swarm.kept(client)) for client in stalled
    )
    if closed or swarm.cut_off:
        print(f"{swarm.cut_off} of {len(swarm.clients)} connections were cut;", end=" ")
        print(f"{closed} of the {len(stalled)} slow ones could still read error 407")
        return
    at_resume: dict[str, int] = {}
    published: dict[str, int] = {}
    for due, symbol in SLOW.schedule(seconds, SEED):
        published[symbol] = published.get(symbol, 0) + 1
        if due <= stop:
            at_resume[symbol] = published[symbol]
    accounts = [account(swarm.kept(client), at_resume, published, resumed_ns) for client in stalled]
    caught_up = [each.caught_up_ms for each in accounts if each.caught_up_ms is not None]
    print(
        f"{len(caught_up)} of {len(stalled)} slow clients had the latest of every stream", end=" "
    )
    if caught_up:
        print(
            f"after {statistics.median(caught_up):.0f} ms, the last after {max(caught_up):.0f} ms"
        )
    else:
        print("at no time")
    exact = sum(each.is_exact for each in accounts)
    print(
        f"delivered + merged + skipped is exact for {exact} of {len(accounts)}; together", end=" "
    )
    print(f"{sum(a.delivered for a in accounts)} + {sum(a.merged for a in accounts)}", end=" ")
    print(f"+ {sum(a.skipped for a in accounts)} ticks")


def account(
    kept: Kept,
    at_resume: dict[str, int],
    published: dict[str, int],
    resumed_ns: int,
) -> Account:
    """Process everything that one client received, in order."""
    data = b"".join(chunk for _, chunk in kept)
    ends = iter(kept)
    end, at_ns = 0, 0
    last: dict[str, int] = {}
    missing = dict(at_resume)
    caught_up_ms = None
    delivered = merged = skipped = 0
    is_exact = True
    for match in _MESSAGE.finditer(data):
        while end < match.end():
            at_ns, chunk = next(ends)
            end += len(chunk)
        message = msgspec.json.decode(match[0])
        symbol = message["S"]
        if message["T"] == "skipped":
            covered, upto = message["n"], message["to"]
            skipped += covered
        else:
            covered, upto = 1 + message.get("cf", 0), message["seq"]
            delivered += 1
            merged += covered - 1
        if symbol in last and last[symbol] + covered != upto:
            is_exact = False
        last[symbol] = upto
        if upto >= missing.get(symbol, upto + 1) and message["T"] == "t":
            del missing[symbol]
            if not missing and caught_up_ms is None:
                caught_up_ms = (at_ns - resumed_ns) / 1e6
    return Account(caught_up_ms, delivered, merged, skipped, is_exact and last == published)


if __name__ == "__main__":
    main()
