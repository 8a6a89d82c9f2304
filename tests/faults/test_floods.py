"""Attacks, one kind after the other: a bystander's ticks stay on time, and memory is bounded."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.faults.attackers import KINDS, Attack, Outcome, attacked
from tests.faults.auditor import Auditor, Message
from tests.faults.conftest import Scale
from tests.faults.report import tell_numbers
from tests.faults.scene import Scene
from tests.faults.serving import ServerProcess
from tests.faults.source import Source, made_up
from tests.faults.valkey import free_port
from tickcast.broker.publisher import FeedPublisher
from tickcast.wire.encoding import Encoding
from tickcast.wire.ticks import Trade
from tickcast.wire.times import Time

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="it needs all of 127.0.0.0/8, and /proc"),
]

MIB: Final = 1024 * 1024
RATE: Final = 50.0
LATE_MS: Final = 250.0
BUSY_LATE_MS: Final = 1500.0
"""For runs on a machine that is also doing other work."""
GROWTH_MAX_BYTES: Final = 64 * MIB
GONE_WITHIN_S: Final = 2.0
HANDSHAKE_TIMEOUT_S: Final = 1.0

OWN: Final = ["127.0.0.1"]
"""An address without limits, as loopback addresses are by default."""


def limited(kind: str, count: int) -> list[str]:
    """Return addresses with limits for this kind of attack only: others are shut out by now."""
    return [f"127.{1 + (count > 1)}.{KINDS.index(kind)}.{number}" for number in range(1, count + 1)]


class Bystander(Auditor):
    """Record the latency of each tick, from its publication to its arrival."""

    def __init__(self, url: str) -> None:
        super().__init__(url, ["ES"], Encoding.JSON)
        self.stamps = True
        self.late_us: list[int] = []

    def on_tick(self, message: Message) -> None:
        self.late_us.append(time.time_ns() // 1000 - message["tr"])

    def begin(self) -> None:
        self.late_us.clear()

    def late_ms(self, percent: int) -> float:
        ordered = sorted(self.late_us)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] / 1000


class Stage:
    """A server with many streams, and a bystander connected to it."""

    def __init__(self, scene: Scene, server: ServerProcess, metrics_port: int) -> None:
        self.scene = scene
        self.server = server
        self.metrics_port = metrics_port
        self.bystander = Bystander(server.stream())

    async def suffer(
        self, kind: str, addresses: list[str], connections: int, seconds: float
    ) -> dict[str, Any]:
        """Carry out an attack; return its effects on the bystander and the server."""
        attack = Attack(kind, self.server.port, self.metrics_port, addresses, connections, seconds)
        before = most = self.server.rss_bytes()
        self.bystander.begin()
        task = asyncio.create_task(attacked(attack))
        scraped = 0
        try:
            while not task.done():
                await asyncio.wait([task], timeout=0.2)
                most = max(most, self.server.rss_bytes())
                scraped += kind == "metrics" and await self._scrape()
            outcome: Outcome = task.result()
        finally:
            task.cancel()
        found = {
            "p50_ms": self.bystander.late_ms(50),
            "p99_ms": self.bystander.late_ms(99),
            "grown_mib": round((most - before) / MIB, 1),
            "cut": outcome.cut,
            "refused": outcome.refused,
            "survived": outcome.survived,
            "longest_s": round(outcome.longest_s, 2),
            "statuses": " ".join(f"{a}×{n}" for a, n in sorted(outcome.statuses.items())),
        }
        tell_numbers(f"{kind} from {len(addresses)} ({addresses[0]}) × {connections}", found)
        if kind == "metrics":
            assert scraped, "the metrics could not be read meanwhile"
        return found

    async def _scrape(self) -> bool:
        try:
            async with httpx.AsyncClient(timeout=2) as client:
                answer = await client.get(f"http://127.0.0.1:{self.metrics_port}/metrics")
                return answer.status_code == 200
        except httpx.HTTPError:
            return False


async def staged(scene: Scene, streams: int, metrics_port: int) -> Stage:
    store = await scene.valkey()
    server = await scene.server(store.url)
    publisher: FeedPublisher = await scene.publisher(store.url)
    now = Time.now()
    for start in range(0, streams, 1000):
        names = range(start, min(streams, start + 1000))
        await publisher.publish(
            [Trade(symbol=f"SYMBOL{name:05}", price=1.5, size=2, time=now) for name in names]
        )
    await publisher.flush()
    stage = Stage(scene, server, metrics_port)
    scene.start(stage.bystander)
    await scene.until_live([stage.bystander])
    source = scene.start(Source(publisher, made_up(["ES"]), RATE))
    await scene.flowing(source, int(RATE) // 2)
    return stage


def attacks(*, long: bool) -> list[tuple[str, list[str], int]]:
    """Kinds of attack, addresses, and connections from each address."""
    if not long:
        return [
            ("text", OWN, 3), ("large", limited("large", 20), 1),
            ("nesting", limited("nesting", 1), 20), ("http", OWN, 30),
            ("unread", OWN, 12), ("metrics", OWN, 60),
        ]  # fmt: skip
    found = []
    for kind in KINDS:
        many = {"http": 100, "unread": 200, "stalled": 400, "metrics": 400}.get(kind, 20)
        each = {"http": 15, "unread": 10, "stalled": 20, "metrics": 20}.get(kind, 3)
        found += [(kind, OWN, 3), (kind, OWN, many)]
        found += [(kind, limited(kind, 1), many), (kind, limited(kind, 20), each)]
    return found


async def test_attacks_do_not_delay_a_bystander(directory: Path, scale: Scale) -> None:
    metrics_port = free_port()
    scene = Scene(
        directory,
        metrics_bind=f"127.0.0.1:{metrics_port}",
        unlimited_addresses="127.0.0.1/32",
        handshake_timeout_s=HANDSHAKE_TIMEOUT_S,
    )
    seconds = scale.pick(0.4, 2.0)
    late_ms = scale.pick(BUSY_LATE_MS, LATE_MS)
    faults = []
    async with scene:
        stage = await staged(scene, scale.pick(2000, 10_000), metrics_port)
        for kind, addresses, connections in attacks(long=scale.long):
            found = await stage.suffer(kind, addresses, connections, seconds)
            # It takes a while until there is an unread response.
            patience_s = {"unread": 2.0, "stalled": 1.0, "metrics": 1.0}.get(kind, 0.0)
            within_s = GONE_WITHIN_S + patience_s * HANDSHAKE_TIMEOUT_S
            if found["p99_ms"] > late_ms:
                faults.append(f"{kind} from {len(addresses)}: {found['p99_ms']} ms late")
            if found["grown_mib"] * MIB > GROWTH_MAX_BYTES:
                faults.append(f"{kind} from {len(addresses)}: {found['grown_mib']} MiB more")
            if found["longest_s"] > within_s + scale.pick(2.0, 0.0):
                faults.append(f"{kind} from {len(addresses)}: cut after {found['longest_s']} s")
            if found["survived"]:
                faults.append(f"{kind} from {len(addresses)}: {found['survived']} were never cut")
        assert stage.bystander.reconnects == 0
        assert not stage.bystander.sums.faults
        assert await stage.server.status("/ready") == 200
    assert faults == []
