"""Clients that disconnect and resume: none misses a tick that the history still contains."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import pytest

from tests.faults.accounts import Sums
from tests.faults.auditor import Auditor
from tests.faults.children import until
from tests.faults.conftest import Scale
from tests.faults.follower import Follower
from tests.faults.proxy import Proxy
from tests.faults.report import assert_exact, tell, tell_numbers
from tests.faults.scene import Scene
from tests.faults.serving import ServerProcess
from tests.faults.source import Source, needs_recording, recorded
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import Encoding
from tickcast.wire.ticks import Trade

pytestmark = pytest.mark.faults

ANSWERED_WITHIN_S = 20.0


class Unreliable:
    """Cut one client's connection at random for as long as ticks flow.

    An auditor drops its own connection and stays away for a while. A follower connects through a
    proxy, which rejects it for as long.
    """

    def __init__(self, client: Auditor | Proxy, source: Source, stays_s: float, away_s: float):
        self._client = client
        self._source = source
        self._stays_s = stays_s
        self._away_s = away_s

    async def run(self) -> None:
        while not self._source.ended:
            await asyncio.sleep(random.uniform(0.1, 2) * self._stays_s)
            away_s = random.uniform(0.02, 2) * self._away_s
            if isinstance(self._client, Auditor):
                self._client.absence_s = away_s
                self._client.cut()
            else:
                await self._turn_away(self._client, away_s)

    async def _turn_away(self, proxy: Proxy, away_s: float) -> None:
        proxy.open = False
        proxy.cut()
        await asyncio.sleep(away_s)
        proxy.open = True


@needs_recording
async def test_clients_that_disconnect_at_random(directory: Path, scale: Scale) -> None:
    published, rate = scale.pick((8_000, 4_000), (100_000, 2_000))
    auditors, followers = scale.pick(10, 45), scale.pick(2, 5)
    stays_s, away_s = scale.pick(0.3, 3.0), scale.pick(0.1, 2.0)
    async with Scene(directory, history_ticks=published) as scene:
        store = await scene.valkey()
        server = await scene.server(store.url)
        publisher = await scene.publisher(store.url)
        clients = await scene.audience(server, ["ES"], auditors=auditors, followers=0)
        proxies = [await scene.proxy(server.port) for _ in range(followers)]
        for proxy, encoding in zip(proxies, cycle(Encoding), strict=False):
            url = server.stream(proxy.port)
            clients.append(scene.start(Follower(url, ["ES"], encoding)))
        await scene.until_live(clients)
        source = scene.start(Source(publisher, recorded(published), rate))
        auditors_alone = [client for client in clients if isinstance(client, Auditor)]
        unreliable: list[Auditor | Proxy] = [*auditors_alone, *proxies]
        for each in unreliable:
            scene.start(Unreliable(each, source, stays_s, away_s))
        await scene.flowing(source, published)
        await scene.finish(source, clients, within_s=10 + 2 * away_s)
        tell("clients that come and go", published, clients)
        assert all(client.reconnects for client in clients)
        assert_exact(clients, published)


class Question:
    """A fresh client that asks for `start` at the time of some retained trade.

    Attributes:
        answered: True when it has all ticks from there on, and some that were published later.
        live_s: how long that took.
    """

    def __init__(self, server: ServerProcess, source: Source, ticks: Sequence[Trade]) -> None:
        retained = source.publisher.published
        asked = ticks[random.randrange(retained)].time
        encoding = random.choice(list(Encoding))
        in_words: int | str = random.choice((int(asked), asked.rfc3339()))
        self.first = bisect_left(ticks, asked, hi=retained, key=lambda tick: tick.time) + 1
        self.auditor = Auditor(server.stream(), ["ES"], encoding, start=in_words)
        self.auditor.accounts.expect("trades", "ES", after=self.first - 1)
        self.answered = False
        self.live_s = 0.0
        self._until_id = min(source.offered + 50, len(ticks))

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        task = asyncio.create_task(self.auditor.run())
        try:
            await until(self._is_answered, ANSWERED_WITHIN_S, f"ticks from {self.first} on")
            assert not task.done()
        finally:
            await cancel_and_wait([task])
        self.live_s = clock() - began
        account = self.auditor.accounts.streams["trades", "ES"]
        assert self.auditor.sums == Sums(delivered=account.last - self.first + 1)
        self.answered = True

    def _is_answered(self) -> bool:
        return self.auditor.has("ES", self._until_id)


@needs_recording
async def test_start_at_the_time_of_any_retained_trade(directory: Path, scale: Scale) -> None:
    published, rate = scale.pick((8_000, 4_000), (100_000, 2_000))
    asked = scale.pick(20, 200)
    ticks = recorded(published)
    async with Scene(directory, history_ticks=published) as scene:
        store = await scene.valkey()
        server = await scene.server(store.url)
        publisher = await scene.publisher(store.url)
        source = scene.start(Source(publisher, ticks, rate))
        questions = []
        for n in range(asked):
            await scene.flowing(source, published * (n + 1) // (asked + 2))
            questions.append(scene.start(Question(server, source, ticks)))
        await scene.until(
            lambda: all(each.answered for each in questions),
            ANSWERED_WITHIN_S,
            "all questions are answered",
        )
        await scene.finish(source, ())
        tell_numbers("start at a time", {
            "published": source.offered, "asked": asked,
            "delivered": sum(each.auditor.sums.delivered for each in questions),
            "live_after_s": max(each.live_s for each in questions),
        })  # fmt: skip
