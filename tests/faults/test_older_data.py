"""A store returns with older data: numbers that were assigned would be assigned again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.report import assert_all_restarted, tell
from tests.faults.scene import Scene
from tests.faults.source import Source, made_up

pytestmark = pytest.mark.faults

SYMBOLS = [f"S{number:03}" for number in range(300)]
RATE = 3_000


async def test_one_new_epoch_for_300_streams(directory: Path) -> None:
    """Every client receives one notice per stream, and no history is deleted twice."""
    async with Scene(directory, messages_per_s=1e4, messages_burst=10_000) as scene:
        store = await scene.valkey(keeps=True)
        server = await scene.server(store.url)
        clients = await scene.audience(server, SYMBOLS, auditors=1, followers=0, wildcards=1)
        publisher = await scene.publisher(store.url)
        source = scene.start(Source(publisher, made_up(SYMBOLS), RATE))
        await scene.flowing(source, 2 * len(SYMBOLS))
        await publisher.flush()
        await store.save_data()
        await scene.flowing(source, source.offered + 5 * len(SYMBOLS))
        await scene.recovered(source, clients)
        store.kill()
        store.restore_data()
        await store.start()
        recovery_s = await scene.recovered(source, clients, within_s=10)
        await scene.finish(source, clients)
        epochs = server.said().count("a new epoch begins")
        tell("older data", source.offered, clients, recovery_s=recovery_s, warnings=epochs)
        assert len(await store.epochs("live")) == 1
        assert_all_restarted(clients, len(SYMBOLS))
