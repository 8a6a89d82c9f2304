"""An outage that lasts longer than the publisher's buffer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.conftest import Scale
from tests.faults.report import assert_exact, tell
from tests.faults.scene import Scene
from tests.faults.source import Source, made_up
from tickcast.wire.ticks import StreamKey

pytestmark = pytest.mark.faults

SYMBOLS = ("ES", "NQ", "ZN")


async def test_what_is_dropped_is_reported_exactly(directory: Path, scale: Scale) -> None:
    rate = 5_000
    async with Scene(
        directory,
        outage_buffer_s=scale.pick(0.3, 10.0),
        history_ticks=1_000_000,
        outbox_max_bytes=2**26,
    ) as scene:
        store = await scene.valkey(keeps=True)
        server = await scene.server(store.url)
        clients = await scene.audience(server, SYMBOLS)
        publisher = await scene.publisher(store.url, waits=False)
        source = scene.start(Source(publisher, made_up(SYMBOLS), rate))
        await scene.flowing(source, 1_000)
        store.kill()
        await scene.until(lambda: publisher.dropped_ticks > rate // 2, 20, "ticks are dropped")
        assert publisher.is_away
        await store.start()
        # All buffered ticks go out at once, and clients receive them before new ones.
        recovery_s = await scene.recovered(source, clients, within_s=15)
        await scene.finish(source, clients)
        seqs = await store.seqs("live")
        tell("outage longer than the buffer", publisher.published, clients,
             offered=source.offered, dropped=publisher.dropped_ticks,
             recovery_s=recovery_s)  # fmt: skip
        assert publisher.published == sum(seqs.values())
        assert publisher.published + publisher.dropped_ticks == source.offered
        assert not publisher.is_away
        for symbol in SYMBOLS:
            dropped = publisher.dropped[StreamKey("live", "trades", symbol)].count
            assert seqs[f"trades/{symbol}"] + dropped == source.counts[symbol]
        assert_exact(clients, publisher.published)
