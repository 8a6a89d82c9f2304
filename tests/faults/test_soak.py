"""Hours in minutes: clients come and go under load, and nothing is left behind."""

from __future__ import annotations

import asyncio
import random
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import RunningServer
from tests.faults.accounts import Sums
from tests.faults.auditor import Auditor
from tests.faults.children import until
from tests.faults.conftest import Scale
from tests.faults.report import tell
from tests.faults.scene import Scene
from tests.faults.serving import ServerProcess, can_look_inside
from tests.faults.source import Source, made_up
from tests.faults.valkey import Valkey
from tickcast.broker.publisher import FeedPublisher
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import Encoding
from tickcast.wire.times import Time

pytestmark = pytest.mark.faults

SYMBOLS: Final = [f"S{n}" for n in range(50)]
RATE: Final = 5_000
VISITORS: Final = 20
RUSH: Final = 3
"""The number of clients of each encoding."""
GROWTH_MAX_BYTES: Final = 1_000_000
"""Growth in ten minutes, after the warm-up."""
WARM_UP: Final = 1 / 6
"""Fraction of the whole time."""
JUDGED_FROM_MINUTES: Final = 10.0


def some_visitor(url: str) -> Auditor:
    """Return a client with random options."""
    symbols = random.choice((["*"], ["S1*"], random.sample(SYMBOLS, 5), SYMBOLS))
    options: dict[str, Any] = random.choice((
        {}, {"conflate_ms": 100}, {"snapshot": True}, {"start": int(Time.now()) - 2 * 10**9},
    ))  # fmt: skip
    return Auditor(url, symbols, random.choice(list(Encoding)), **options)


@dataclass(eq=False)
class Visitors:
    """One slot for clients in turn: each connects, is cut, resumes, and leaves."""

    url: str
    stays_s: float = 5.0
    count: int = 0
    sums: Sums = field(default_factory=Sums)

    async def run(self) -> None:
        while True:
            visitor = some_visitor(self.url)
            task = asyncio.create_task(visitor.run())
            try:
                for _ in range(random.randint(1, 3)):
                    await asyncio.sleep(random.uniform(0.05, 1) * self.stays_s)
                    visitor.cut()
            finally:
                await cancel_and_wait([task])
            self.count += 1
            self.sums += visitor.sums
            assert visitor.sums.faults == {}, visitor.accounts.streams


@dataclass(eq=False)
class Scales:
    """Measure the server's memory once a second, and what it buffers for slow clients."""

    server: ServerProcess
    weights: list[tuple[float, int]] = field(default_factory=list)
    most_waiting: float = 0

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self.weights.append((clock(), self.server.rss_bytes()))
            waiting = (await self.server.metrics())["tickcast_outbox_bytes"]
            self.most_waiting = max(self.most_waiting, waiting)
            await asyncio.sleep(1)

    def growth(self) -> float:
        """Return the growth in bytes per ten minutes: the slope of the best-fitting line."""
        return statistics.linear_regression(*zip(*self.weights, strict=True)).slope * 600

    def course(self) -> str:
        """Return megabytes, the median of each tenth of the time: a leak rises, a cache varies."""
        size = max(1, len(self.weights) // 10)
        parts = [self.weights[start : start + size] for start in range(0, len(self.weights), size)]
        return " ".join(f"{statistics.median(rss for _, rss in part) / 1e6:.1f}" for part in parts)


async def files_of_its_own(server: ServerProcess, store: Valkey) -> int:
    """Count open files and sockets, without the bounded pool of connections to the store."""
    return server.open_files() - len(await store.server_connections())


async def files_when_settled(server: ServerProcess, store: Valkey, baseline: int) -> int:
    """Return the count once it is back at the baseline, or after a while if it stays above."""
    for _ in range(50):
        if await files_of_its_own(server, store) <= baseline:
            break
        await asyncio.sleep(0.2)
    return await files_of_its_own(server, store)


async def until_deserted(server: ServerProcess) -> None:
    """Wait until the server no longer holds anything for clients."""
    held = ("tickcast_connections", "tickcast_streams", "tickcast_subscriber_groups")
    async with asyncio.timeout(20):
        while any([(await server.metrics())[name] for name in held]):
            await asyncio.sleep(0.2)


async def rush(scene: Scene, server: ServerProcess, source: Source) -> None:
    """Let many clients request everything at once.

    The history that is read for them is cached up to a bound. Reach the bound now, so that it is
    not mistaken for a leak when as many clients coincide later.
    """
    crowd = [Auditor(server.stream(), SYMBOLS, each, start=1) for each in [*Encoding] * RUSH]
    for auditor in crowd:
        scene.start(auditor)
    await scene.recovered(source, crowd, within_s=120)
    for auditor in crowd:
        await scene.end(auditor)
        assert auditor.sums.faults == {}, auditor


async def test_memory_and_files_stay_where_they_are(directory: Path, scale: Scale) -> None:
    if not scale.long:
        pytest.skip("takes minutes; `make faults` does it")
    if not can_look_inside():
        pytest.skip("needs /proc")
    async with Scene(directory, history_ticks=5_000) as scene:
        store = await scene.valkey()
        server = await scene.server(store.url)
        publisher = await scene.publisher(store.url)
        files = await files_of_its_own(server, store)
        clients = await scene.audience(server, SYMBOLS, auditors=6, followers=4)
        places = [scene.start(Visitors(server.stream())) for _ in range(VISITORS)]
        source = scene.start(Source(publisher, made_up(SYMBOLS), RATE))
        warm_up_s = WARM_UP * scale.minutes * 60
        await scene.pass_by(warm_up_s / 3)
        await rush(scene, server, source)
        # The server returns memory gradually. This must not hide growth.
        await scene.pass_by(warm_up_s * 2 / 3)
        balance = scene.start(Scales(server))
        await scene.pass_by((1 - WARM_UP) * scale.minutes * 60)
        growth, weight = balance.growth(), balance.weights[-1][1]
        for place in places:
            await scene.end(place)
        await scene.finish(source, clients)
        for client in clients:
            await scene.end(client)
        await until_deserted(server)
        files_now = await files_when_settled(server, store, files)
        tell(f"{scale.minutes:g} minutes", source.offered, clients,
             visitors=sum(place.count for place in places), rss_mb=weight / 1e6,
             course=balance.course(),
             growth_mb_per_10_minutes=growth / 1e6, most_waiting_mb=balance.most_waiting / 1e6,
             files_before=files, files_after=files_now)  # fmt: skip
        assert files_now <= files
        assert all(client.sums.faults == {} for client in clients)
        assert scale.minutes < JUDGED_FROM_MINUTES or growth < GROWTH_MAX_BYTES


async def test_no_task_is_left_behind(server: RunningServer, publisher: FeedPublisher) -> None:
    """Tasks can't be counted from outside, so the server runs in this process here."""
    before = len(asyncio.all_tasks())
    source = Source(publisher, made_up(SYMBOLS), rate=2_000)
    places = [Visitors(server.stream, stays_s=0.1) for _ in range(VISITORS // 2)]
    tasks = [asyncio.create_task(source.run())]
    tasks += [asyncio.create_task(place.run()) for place in places]
    try:
        await until(lambda: sum(place.count for place in places) > 50, 20, "visitors come and go")
        assert not any(task.done() for task in tasks)
    finally:
        await cancel_and_wait(tasks)
    await until(lambda: len(asyncio.all_tasks()) <= before, 10, "their tasks have ended")
