"""Run one measurement: start a server and its clients, warm up, run, and compute the figures."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import processes
from load import Receipt, Step, Swarm, Way
from peers import Peer
from processes import (
    LOAD_CORE,
    SERVER_CORE,
    CannotStart,
    ServerProcess,
    core_busy_s,
    descendants,
    pin,
)
from publishing import Publishing
from workloads import Workload

WARM_UP_S = 1.5
SETTLE_S = 4.0
PROBES = 5
_SEEDS = (11, 12)


class Failed(Exception):
    """The measurement failed; the message says why."""


class Figures(NamedTuple):
    """The result of a measurement.

    Attributes:
        cpu_us: the server's processor time per delivered tick.
        p50_ms, p99_ms: the delay from the tick's time to its receipt by a probe.
        server_mb: the server's memory after the run.
        connection_kb: the memory that each subscribed connection added before the run.
        delivered: the share of due ticks that arrived. Below 1, the server fell behind.
        server_load: the share of its core that the server used.
        client_load: the share of the other core that the clients used.
        publisher_load: the share of that core that the publisher used, plus the server's store if
            it runs there.
        others_load: the share of a core that other processes used, on the core where it is higher.
        late_ms: how late the publisher was, 99th percentile.
    """

    cpu_us: float
    p50_ms: float
    p99_ms: float
    server_mb: float
    connection_kb: float
    delivered: float
    server_load: float
    client_load: float
    publisher_load: float
    others_load: float
    late_ms: float


def measure(peer: Peer, work: Workload, seconds: float, store_core: int = LOAD_CORE) -> Figures:
    """Run one workload against one peer.

    Raises:
        Failed: the server didn't start, or didn't serve its clients.
    """
    try:
        with running(peer, store_core) as (server, port, directory), connected() as swarm:
            return _run(peer, work, seconds, server, port, directory, swarm)
    except (CannotStart, ConnectionError, TimeoutError) as error:
        raise Failed(f"{type(error).__name__}: {error}") from None


@contextmanager
def running(peer: Peer, store_core: int = LOAD_CORE) -> Iterator[tuple[ServerProcess, int, Path]]:
    """Run a server. Yields the server, its port, and the directory of this run."""
    with tempfile.TemporaryDirectory(prefix="tc", dir="/tmp") as name:
        directory = Path(name)
        command = peer.command(directory)
        server = ServerProcess(command, peer.environment)
        try:
            port = server.wait_for_port(peer.port)
            # An embedded store is a child of the server and would inherit its core.
            for child in descendants(server.pid):
                pin(child, store_core)
            yield server, port, directory
        finally:
            server.stop()


@contextmanager
def connected() -> Iterator[Swarm]:
    """Yield a swarm of clients and close it afterwards."""
    swarm = Swarm()
    try:
        yield swarm
    finally:
        swarm.close()


def way(peer: Peer, symbols: list[str]) -> Way:
    """Return a client's setup steps."""
    return Way(peer.hello(), [Step(*step) for step in peer.steps(symbols)])


def _run(
    peer: Peer,
    work: Workload,
    seconds: float,
    server: ServerProcess,
    port: int,
    directory: Path,
    swarm: Swarm,
) -> Figures:
    empty_kb = server.resident_kb()
    # Connect one by one, so that the probes have known places in the server's order of clients.
    swarm.connect(port, [way(peer, symbols) for symbols in work.wanted()])
    connection_kb = (server.resident_kb() - empty_kb) / work.clients
    swarm.choose_probes(PROBES)
    publishing = Publishing(peer.name, work.name, directory)
    try:
        run = Run(server, publishing, swarm, work)
        figures = run.once(WARM_UP_S, _SEEDS[0], connection_kb)
        if figures.delivered == 1:
            figures = run.once(seconds, _SEEDS[1], connection_kb)
    finally:
        publishing.stop()
    if swarm.cut_off:
        raise Failed(f"the server cut {swarm.cut_off} clients off")
    return figures


class Run:
    """Measures a server while the ticks of a schedule flow."""

    def __init__(
        self, server: ServerProcess, publishing: Publishing, swarm: Swarm, work: Workload
    ) -> None:
        self._server = server
        self._publishing = publishing
        self._swarm = swarm
        self._work = work

    def once(self, seconds: float, seed: int, connection_kb: float) -> Figures:
        """Run a schedule until all ticks are delivered, or until the timeout."""
        swarm = self._swarm
        swarm.forget()
        already = swarm.total()
        due = self._work.deliveries(seconds, seed)
        begin = time.monotonic() - time.time() + self._publishing.start(seconds, seed)
        swarm.pump(begin - 0.1)
        before = self._snapshot()
        swarm.pump(begin + seconds)
        during = self._snapshot()
        is_complete = swarm.settle(already + due, SETTLE_S)
        after = self._snapshot()
        delivered = swarm.total() - already
        if is_complete:
            swarm.pump(time.monotonic() + 0.1)
            delivered = swarm.total() - already
            if delivered > due:
                raise Failed(f"{delivered - due} ticks came twice")
        report = self._publishing.report()
        if not delivered:
            raise Failed("no tick arrived")
        receipts = swarm.receipts()
        if is_complete:
            check_whole(receipts)
        delays = sorted(each.delay_ms for probe in receipts for each in probe)
        if len(delays) < 2:
            raise Failed("too few ticks arrived")
        cuts = statistics.quantiles(delays, n=100)
        wall_s = during.at_s - before.at_s
        server_load = (during.server_s - before.server_s) / wall_s
        return Figures(
            cpu_us=(after.server_s - before.server_s) / delivered * 1e6,
            p50_ms=cuts[49],
            p99_ms=cuts[98],
            server_mb=self._server.resident_kb() / 1024,
            connection_kb=connection_kb,
            delivered=delivered / due,
            server_load=server_load,
            client_load=(during.clients_s - before.clients_s) / wall_s,
            publisher_load=(during.publisher_s - before.publisher_s) / wall_s,
            others_load=max(
                during.others_s - before.others_s, during.others_here_s - before.others_here_s
            )
            / wall_s,
            late_ms=report.late_ms if report else float("inf"),
        )

    def _snapshot(self) -> _Snapshot:
        stores_s = {SERVER_CORE: 0.0, LOAD_CORE: 0.0}
        for child in descendants(self._server.pid):
            for core in os.sched_getaffinity(child):
                stores_s[core] += processes.cpu_s(child)
        server_s = self._server.cpu_s()
        clients_s = processes.cpu_s(os.getpid())
        publisher_s = self._publishing.cpu_s() + stores_s[LOAD_CORE]
        return _Snapshot(
            at_s=time.monotonic(),
            server_s=server_s,
            clients_s=clients_s,
            publisher_s=publisher_s,
            others_s=core_busy_s(SERVER_CORE) - server_s - stores_s[SERVER_CORE],
            others_here_s=core_busy_s(LOAD_CORE) - clients_s - publisher_s,
        )


class _Snapshot(NamedTuple):
    at_s: float
    server_s: float
    clients_s: float
    publisher_s: float
    others_s: float
    others_here_s: float


def check_whole(receipts: list[list[Receipt]]) -> None:
    """Check by sequence number that each probe received every tick once and in order.

    Raises:
        Failed: a probe didn't.
    """
    for probe in receipts:
        last: dict[str, int] = {}
        for each in probe:
            if each.seq != last.get(each.symbol, each.seq - 1) + 1:
                raise Failed(f"{each.symbol}: {each.seq} came after {last[each.symbol]}")
            last[each.symbol] = each.seq
