"""The server is killed or stopped and then restarted while clients are connected."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pytest
from websockets.asyncio.client import connect as open_websocket

from tests.faults.accounts import Sums
from tests.faults.auditor import Auditor
from tests.faults.conftest import Scale
from tests.faults.crowd import Crowd, Member
from tests.faults.report import assert_exact, tell, tell_numbers
from tests.faults.returning import SYMBOLS as RETURNING_SYMBOLS
from tests.faults.scene import Scene
from tests.faults.serving import ServerProcess
from tests.faults.source import Source, made_up
from tickcast.wire.encoding import Encoding

pytestmark = pytest.mark.faults

SYMBOLS: Final = ("ES", "NQ", "ZN")
RATE: Final = 1_000
STOPPED_WITHIN_S: Final = 10.0
STORM_WITHIN_S: Final = 10.0
LATE_MS_MAX: Final = 100.0
RETURNED_WITHIN_S: Final = 20.0
BYSTANDER_LATE_MS_MAX: Final = 500.0


async def test_killed_and_back(directory: Path, scale: Scale) -> None:
    async with Scene(directory) as scene:
        store = await scene.valkey()
        server = await scene.server(store.url)
        clients = await scene.audience(server, SYMBOLS, wildcards=1)
        publisher = await scene.publisher(store.url)
        source = scene.start(Source(publisher, made_up(SYMBOLS), RATE))
        slowest_s = 0.0
        for absence_s in scale.pick((0.2,), (0.2, 2.0, 5.0)):
            await scene.flowing(source, source.offered + RATE // 4)
            await scene.recovered(source, clients)
            server.kill()
            await scene.pass_by(absence_s)
            await server.start()
            slowest_s = max(slowest_s, await scene.recovered(source, clients, within_s=15))
        await scene.finish(source, clients)
        tell("server killed", source.offered, clients, recovery_s=slowest_s)
        assert all(client.reconnects for client in clients)
        assert_exact(clients, source.offered)


async def test_symbols_that_appear_while_the_server_is_away(directory: Path) -> None:
    """A client with a wildcard must receive them from their first tick on."""
    async with Scene(directory) as scene:
        store = await scene.valkey()
        server = await scene.server(store.url)
        clients = await scene.audience(server, ["*"], auditors=2, followers=2)
        publisher = await scene.publisher(store.url)
        await publisher.publish(islice(made_up(["OLD"]), 10))
        await scene.until(lambda: all(each.has("OLD", 10) for each in clients), 5, "they have OLD")
        server.kill()
        await publisher.publish(islice(made_up(["NEW"]), 10))
        await publisher.flush()
        await server.start()
        await scene.until(lambda: all(each.has("NEW", 10) for each in clients), 10, "they have NEW")
        tell("symbols that appear meanwhile", 20, clients)
        assert_exact(clients, 20)


async def test_told_to_stop_although_some_do_not_read(directory: Path, scale: Scale) -> None:
    deaf, readers = scale.pick(5, 50), scale.pick(4, 50)
    async with Scene(directory) as scene, AsyncExitStack() as stack:
        store = await scene.valkey()
        server = await scene.server(store.url)
        clients = await scene.audience(server, ["ES"], auditors=readers, followers=0)
        for _ in range(deaf):
            await open_deaf_client(stack, server)
        publisher = await scene.publisher(store.url)
        source = scene.start(Source(publisher, made_up(["ES"]), rate=20_000))
        async with asyncio.timeout(20):
            while (await server.metrics())["tickcast_slow_clients"] < deaf:
                await scene.pass_by(0.05)
        server.terminate()
        began = time.monotonic()
        assert await server.ended(STOPPED_WITHIN_S) == 0
        stopped_s = time.monotonic() - began
        await scene.until(lambda: not any(each.live for each in clients), 5, "all are closed")
        tell("told to stop", source.offered, clients, deaf=deaf, stopped_s=stopped_s)
        for client in clients:
            assert isinstance(client, Auditor)
            assert client.closed_with == [1012]
            assert [notice["T"] for notice in client.notices] == ["shutdown"]
            assert client.notices[0]["retry_ms"] >= 0
            assert client.sums.faults == {}


async def open_deaf_client(stack: AsyncExitStack, server: ServerProcess) -> None:
    """Connect a client that subscribes and then never reads; cut it at the end."""
    socket = await open_websocket(
        server.stream(), compression=None, max_queue=1, ping_interval=None,
        subprotocols=["tickcast.v1.json"],  # type: ignore[list-item]
    )  # fmt: skip
    stack.callback(socket.transport.abort)
    await socket.send('{"action":"subscribe","trades":["ES"]}')


async def test_a_storm_of_clients_that_come_back(directory: Path, scale: Scale) -> None:
    size, rate, absence_s = scale.pick((100, 50.0, 0.3), (1_000, 10.0, 3.0))
    async with Scene(directory) as scene:
        store = await scene.valkey()
        server = await scene.server(store.url)
        crowd = await scene.crowd(server.stream(), "ES", size)
        publisher = await scene.publisher(store.url)
        source = scene.start(Source(publisher, made_up(["ES"]), rate))
        await scene.flowing(source, 5)
        server.kill()
        await scene.pass_by(absence_s)
        await server.start()
        listening = time.time()
        half, last = await crowd.ask("back")
        await scene.pass_by(scale.pick(0.3, 5))
        source.stop()
        await scene.until(lambda: source.ended, 5, "all is published")
        seen = await crowd.ask("end", id=source.offered)
        sums = Sums(**seen.pop("sums"))
        numbers = {"clients": size, "published": source.offered, **asdict(sums), **seen}
        served = {"half_back_s": half - listening, "all_back_s": last - listening}
        tell_numbers("storm", {**numbers, **served})
        assert sums == Sums(delivered=source.offered * size)
        assert seen["reconnects"] >= size
        assert last - listening < STORM_WITHIN_S
        assert not scale.long or (seen["measured"] and seen["p99_ms"] < LATE_MS_MAX)


async def test_clients_that_return_all_at_once(directory: Path, scale: Scale) -> None:
    """The server stays connected to Redis and to the client that was there before them."""
    size = scale.pick(200, 3_000)
    async with Scene(directory) as scene:
        store = await scene.valkey()
        server = await scene.server(store.url)
        crowd = await scene.returning(server.stream(), size)
        publisher = await scene.publisher(store.url)
        source = scene.start(Source(publisher, made_up(["BY", *RETURNING_SYMBOLS]), rate=100))
        await crowd.ask("live")
        await crowd.ask("hold")
        server.kill()
        await scene.pass_by(scale.pick(0.3, 3.0))
        await server.start()
        await server.until_ready(True, timeout_s=5 * scene.patience)
        bystander = scene.start(Member(server.stream(), "BY", Encoding.JSON))
        await scene.until(lambda: bystander.caught_up_us, 5, "the bystander is live")
        bystander.measures = True
        returning = scene.start(Asking(crowd, "return"))
        not_ready = 0
        while returning.answer is None:
            not_ready += await server.status("/ready") != 200
            await scene.pass_by(0.2)
        reconnects = (await server.metrics())["tickcast_redis_reconnects_total"]
        source.stop()
        await scene.until(lambda: source.ended, 5, "all is published")
        seqs = {name.partition("/")[2]: seq for name, seq in (await store.seqs("live")).items()}
        faults = await crowd.ask("end", seqs=seqs)
        late_ms = sorted(arrived / 1000 for arrived, _ in bystander.late_us)
        tell_numbers("return", {
            "clients": size, **returning.answer, "not_ready": not_ready, "faults": faults,
            "bystander_median_ms": late_ms[len(late_ms) // 2], "bystander_max_ms": late_ms[-1],
        })  # fmt: skip
        assert {name: count for name, count in faults.items() if count} == {}
        assert "silent" not in server.said()
        assert (reconnects, not_ready) == (0, 0)
        assert returning.answer["all_s"] < RETURNED_WITHIN_S
        assert late_ms[-1] < scale.pick(2_000.0, BYSTANDER_LATE_MS_MAX)


class Asking:
    """A question to a crowd, asked in the background."""

    def __init__(self, crowd: Crowd, question: str) -> None:
        self._crowd, self._question = crowd, question
        self.answer: Any = None

    async def run(self) -> None:
        self.answer = await self._crowd.ask(self._question)
