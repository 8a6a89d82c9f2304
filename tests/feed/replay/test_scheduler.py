"""The scheduler without a socket: memory that is released while a turn is reading."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from feed.fanout.outbox import Outbox
from feed.replay.scheduler import ReplayClient, ReplayScheduler
from tests.builders import T0, ListSink, trade
from tests.conftest import until
from tickcast.tapes import Tape, TapeLibrary, TapeWriter
from tickcast.tapes.manifest import SUFFIX, FrameEntry
from tickcast.tasks import cancel_and_wait
from tickcast.wire.actions import PlayTape
from tickcast.wire.encoding import Encoding
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time


@pytest.fixture
def library(tmp_path: Path) -> TapeLibrary:
    """A library with a tape of ten frames of ten trades each."""
    writer = TapeWriter(tmp_path / f"ten{SUFFIX}", "live", "test")
    for n in range(100):
        writer.append_tick(trade("ES", time=Time(T0 + n), seq=n + 1))
        if n % 10 == 9:
            writer.flush()
    writer.close()
    return TapeLibrary(tmp_path)


async def test_frames_read_while_the_last_client_leaves_are_dropped(
    library: TapeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_reading, may_continue = threading.Event(), threading.Event()
    read = Tape.ticks_of

    def ticks_of(tape: Tape, frame: FrameEntry) -> list[Tick]:
        is_reading.set()
        assert may_continue.wait(10)
        return read(tape, frame)

    scheduler = ReplayScheduler(library, 1, 1)
    cache: Any = scheduler._cache
    task = asyncio.create_task(scheduler.play_forever())
    try:
        client = ReplayClient(
            Outbox(ListSink(), 1 << 20, lambda: None), Encoding.JSON, lambda *_: None
        )
        play = PlayTape(9, "ten", frozenset([Subscription("trades", "*")]), speed=float("inf"))
        await scheduler.play(client, play, lambda _, wanted: wanted)
        await until(lambda: not len(scheduler))
        assert cache.size_bytes > 0
        await scheduler.play(client, play, lambda _, wanted: wanted)
        cache.clear()
        monkeypatch.setattr(Tape, "ticks_of", ticks_of)
        await until(is_reading.is_set)
        client.outbox.close()
        scheduler.forget(client)
        may_continue.set()
        async with scheduler._reading:
            assert (cache.size_bytes, len(cache._frames)) == (0, 0)
    finally:
        may_continue.set()
        await cancel_and_wait([task])
