"""The primary dies, a replica takes over, and the address leads to it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.faults.conftest import Scale
from tests.faults.proxy import Proxy
from tests.faults.report import assert_all_restarted, assert_exact, tell
from tests.faults.scene import Client, Scene
from tests.faults.source import Source, made_up
from tests.faults.valkey import Valkey

pytestmark = pytest.mark.faults

SYMBOLS = ("ES", "NQ", "ZN")
RATE = 1_000


async def pair_behind_a_proxy(
    scene: Scene,
) -> tuple[Valkey, Valkey, Proxy, Source, list[Client]]:
    """A primary and a replica; ticks flow through the proxy and the primary to an audience."""
    primary, replica = await scene.valkey(), await scene.valkey()
    await replica.follow(primary)
    proxy = await scene.proxy(primary.port)
    server = await scene.server(proxy.url)
    clients = await scene.audience(server, SYMBOLS, wildcards=1)
    publisher = await scene.publisher(proxy.url)
    source = scene.start(Source(publisher, made_up(SYMBOLS), RATE))
    await scene.flowing(source, RATE // 4)
    return primary, replica, proxy, source, clients


async def fail_over(primary: Valkey, replica: Valkey, proxy: Proxy) -> None:
    primary.kill()
    await replica.promote()
    proxy.target = replica.port
    proxy.cut()
    proxy.flow()


async def test_to_a_replica_that_has_everything(directory: Path, scale: Scale) -> None:
    async with Scene(directory) as scene:
        primary, replica, proxy, source, clients = await pair_behind_a_proxy(scene)
        await scene.pass_by(scale.pick(0.2, 5))
        proxy.stall()
        await replica.has_all_of(primary)
        await fail_over(primary, replica, proxy)
        recovery_s = await scene.recovered(source, clients)
        await scene.pass_by(scale.pick(0.2, 5))
        await scene.finish(source, clients)
        published = sum((await replica.seqs("live")).values())
        tell("failover", published, clients, recovery_s=recovery_s)
        assert published == source.offered
        assert_exact(clients, published)


async def test_to_a_replica_that_lacks_the_last_ticks(directory: Path, scale: Scale) -> None:
    """Numbers would be assigned twice, so a new numbering must begin."""
    async with Scene(directory) as scene:
        primary, replica, proxy, source, clients = await pair_behind_a_proxy(scene)
        await scene.pass_by(scale.pick(0.2, 5))
        await replica.promote()
        await scene.flowing(source, source.offered + RATE // 4)
        await scene.recovered(source, clients)
        await fail_over(primary, replica, proxy)
        recovery_s = await scene.recovered(source, clients)
        await scene.pass_by(scale.pick(0.2, 5))
        await scene.finish(source, clients)
        tell("failover, ticks lost", source.offered, clients, recovery_s=recovery_s)
        assert_all_restarted(clients, len(SYMBOLS))


async def test_ticks_go_to_a_new_primary_while_the_old_one_still_talks(directory: Path) -> None:
    """The old primary is not silent: it still sends messages, but published ticks don't arrive."""
    async with Scene(directory) as scene:
        primary, replica, proxy, source, clients = await pair_behind_a_proxy(scene)
        await replica.has_all_of(primary)
        await replica.promote()
        proxy.target = replica.port
        await primary.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        async with asyncio.timeout(10):
            while await primary.admin.publish("tickcast:{live}:announcements", "x"):
                await scene.pass_by(0.2)
        recovery_s = await scene.recovered(source, clients)
        await scene.finish(source, clients)
        published = sum((await replica.seqs("live")).values())
        tell("old primary stays up", published, clients, recovery_s=recovery_s)
