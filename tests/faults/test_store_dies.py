"""The store is killed, stopped or emptied while ticks are published and clients listen."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Scale
from tests.faults.report import assert_all_restarted, assert_exact, tell
from tests.faults.scene import Client, Scene
from tests.faults.source import Source, made_up
from tests.faults.valkey import Valkey

pytestmark = pytest.mark.faults

SYMBOLS = ("ES", "NQ", "ZN")
RATE = 1_000


async def performance(scene: Scene, store: Valkey) -> tuple[Source, list[Client]]:
    """Ticks of some symbols flow through a server to an audience."""
    server = await scene.server(store.url)
    clients = await scene.audience(server, SYMBOLS, wildcards=1)
    publisher = await scene.publisher(store.url)
    source = scene.start(Source(publisher, made_up(SYMBOLS), RATE))
    await scene.flowing(source, RATE // 4)
    return source, clients


async def test_killed_and_back_with_its_data(directory: Path, scale: Scale) -> None:
    async with Scene(directory) as scene:
        store = await scene.valkey(keeps=True)
        source, clients = await performance(scene, store)
        await scene.pass_by(scale.pick(0.2, 5))
        store.kill()
        await scene.pass_by(scale.pick(0.5, 2))
        await store.start()
        recovery_s = await scene.recovered(source, clients)
        await scene.pass_by(scale.pick(0.2, 5))
        await scene.finish(source, clients)
        published = sum((await store.seqs("live")).values())
        tell("store killed, data kept", published, clients, recovery_s=recovery_s)
        assert published == source.offered
        assert_exact(clients, published)


async def test_killed_and_back_without_its_data(directory: Path, scale: Scale) -> None:
    async with Scene(directory) as scene:
        store = await scene.valkey()
        source, clients = await performance(scene, store)
        await scene.pass_by(scale.pick(0.2, 5))
        store.kill()
        await scene.pass_by(scale.pick(0.5, 2))
        await store.start()
        recovery_s = await scene.recovered(source, clients)
        await everybody_is_told_of_the_new_epoch(
            scene, store, source, clients, "store killed, data lost", recovery_s
        )


async def test_emptied_under_load(directory: Path, scale: Scale) -> None:
    async with Scene(directory) as scene:
        store = await scene.valkey()
        source, clients = await performance(scene, store)
        await store.admin.flushall()
        recovery_s = await scene.recovered(source, clients)
        await everybody_is_told_of_the_new_epoch(
            scene, store, source, clients, "FLUSHALL", recovery_s
        )


async def everybody_is_told_of_the_new_epoch(
    scene: Scene, store: Valkey, source: Source, clients: list[Client], name: str, recovery_s: float
) -> None:
    await scene.finish(source, clients)
    seqs = await store.seqs("live")
    tell(name, source.offered, clients, recovery_s=recovery_s)
    assert sum(seqs.values()) < source.offered
    assert_all_restarted(clients, len(SYMBOLS))


async def test_stopped_for_a_while(directory: Path, scale: Scale) -> None:
    async with Scene(directory) as scene:
        store = await scene.valkey()
        source, clients = await performance(scene, store)
        store.stop()
        await scene.pass_by(scale.pick(4, 10))
        store.go_on()
        recovery_s = await scene.recovered(source, clients)
        await scene.finish(source, clients)
        published = sum((await store.seqs("live")).values())
        tell("store stopped", published, clients, recovery_s=recovery_s)
        assert published == source.offered
        assert_exact(clients, published)
