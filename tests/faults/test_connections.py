"""The server's connections to the store are killed, cut, stalled or kicked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.conftest import Scale
from tests.faults.report import assert_exact, tell
from tests.faults.scene import Client, Scene
from tests.faults.source import Source, made_up, needs_recording, recorded
from tests.faults.valkey import Valkey

pytestmark = pytest.mark.faults

SYMBOLS = ("ES", "NQ", "ZN")
RATE = 1_000
NOTICED_WITHIN_S = 3.0


async def until_subscribed(store: Valkey) -> None:
    """Wait until the server holds a pub/sub connection with subscriptions."""
    async with asyncio.timeout(5):
        while not await pubsub_connections(store):
            await asyncio.sleep(0.01)


async def pubsub_connections(store: Valkey) -> list[str]:
    connections = await store.server_connections()
    return [each["id"] for each in connections if int(each["sub"])]


@needs_recording
async def test_killed_again_and_again_by_the_store(directory: Path, scale: Scale) -> None:
    published, kills = scale.pick(10_000, 100_000), scale.pick(4, 20)
    async with Scene(directory, history_ticks=published) as scene:
        store = await scene.valkey()
        server = await scene.server(store.url)
        clients = await scene.audience(server, ["ES"], auditors=8, followers=2)
        publisher = await scene.publisher(store.url)
        source = scene.start(Source(publisher, recorded(published), rate=5_000))
        killed, slowest_s = 0, 0.0
        for n in range(kills):
            await scene.flowing(source, published * (n + 1) // (kills + 1))
            await until_subscribed(store)
            killed += await store.kill_server_connections()
            slowest_s = max(slowest_s, await scene.recovered(source, clients))
        await scene.flowing(source, published)
        await scene.finish(source, clients)
        tell("CLIENT KILL", published, clients, kills=kills, connections=killed,
             recovery_s=slowest_s)  # fmt: skip
        assert await store.seqs("live") == {"trades/ES": published}
        assert killed >= kills
        assert_exact(clients, published)


async def test_cut(directory: Path, scale: Scale) -> None:
    async with Scene(directory) as scene:
        store = await scene.valkey()
        proxy = await scene.proxy(store.port)
        server = await scene.server(proxy.url)
        clients = await scene.audience(server, SYMBOLS, wildcards=1)
        publisher = await scene.publisher(store.url)
        source = scene.start(Source(publisher, made_up(SYMBOLS), RATE))
        slowest_s = 0.0
        for absence_s in scale.pick((0.0, 0.4), (0.0, 0.5, 2.0, 5.0)):
            await scene.flowing(source, RATE // 4)
            proxy.open = False
            proxy.cut()
            await scene.pass_by(absence_s)
            proxy.open = True
            slowest_s = max(slowest_s, await scene.recovered(source, clients))
        await exactly_all_was_delivered(scene, "cut", source, clients, slowest_s)


async def test_stalled(directory: Path, scale: Scale) -> None:
    """The connections stay open and nothing arrives: half-open, as behind a dead firewall."""
    async with Scene(directory) as scene:
        store = await scene.valkey()
        proxy = await scene.proxy(store.port)
        server = await scene.server(proxy.url)
        clients = await scene.audience(server, SYMBOLS, wildcards=1)
        publisher = await scene.publisher(store.url)
        source = scene.start(Source(publisher, made_up(SYMBOLS), RATE))
        await scene.flowing(source, RATE // 4)
        proxy.stall()
        noticed_s = await server.until_ready(False, NOTICED_WITHIN_S * scene.patience)
        await scene.pass_by(scale.pick(0.2, 8))
        proxy.flow()
        recovery_s = await scene.recovered(source, clients)
        await server.until_ready(True, 3 * scene.patience)
        await exactly_all_was_delivered(
            scene, f"stalled, noticed in {noticed_s:.3g} s", source, clients, recovery_s
        )


async def exactly_all_was_delivered(
    scene: Scene, name: str, source: Source, clients: list[Client], recovery_s: float
) -> None:
    await scene.finish(source, clients)
    tell(name, source.offered, clients, recovery_s=recovery_s)
    assert_exact(clients, source.offered)


async def test_kicked_for_reading_too_slowly(directory: Path, scale: Scale) -> None:
    """The store disconnects a subscriber whose output buffer is full; history fills the gap."""
    rate = scale.pick(5_000, 20_000)
    async with Scene(directory, history_ticks=rate * 20, outbox_max_bytes=2**26) as scene:
        store = await scene.valkey(on_socket=True)
        await store.admin.config_set("client-output-buffer-limit", "pubsub 64kb 0 0")
        server = await scene.server(store.url)
        clients = await scene.audience(server, SYMBOLS)
        publisher = await scene.publisher(store.url)
        source = scene.start(Source(publisher, made_up(SYMBOLS), rate))
        slowest_s = 0.0
        for _ in range(scale.pick(1, 5)):
            await until_subscribed(store)
            server.stop()
            async with asyncio.timeout(10):
                while await pubsub_connections(store):
                    await asyncio.sleep(0.02)
            server.go_on()
            slowest_s = max(slowest_s, await scene.recovered(source, clients))
        await exactly_all_was_delivered(scene, "kicked", source, clients, slowest_s)
