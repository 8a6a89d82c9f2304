"""The projector without a socket: memory that is released while a turn is reading."""

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
        writer.tick(trade("ES", time=Time(T0 + n), seq=n + 1))
        if n % 10 == 9:
            writer.flush()
    writer.close()
    return TapeLibrary(tmp_path)


async def test_frames_that_are_read_when_the_last_client_goes_are_let_go_of(
    library: TapeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_reading, go_on = threading.Event(), threading.Event()
    read = Tape.ticks_of

    def ticks_of(tape: Tape, frame: FrameEntry) -> list[Tick]:
        is_reading.set()
        assert go_on.wait(10)
        return read(tape, frame)

    projector = ReplayScheduler(library, 1, 1)
    reels: Any = projector._reels
    task = asyncio.create_task(projector.run())
    try:
        viewer = ReplayClient(
            Outbox(ListSink(), 1 << 20, lambda: None), Encoding.JSON, lambda *_: None
        )
        play = PlayTape(9, "ten", frozenset([Subscription("trades", "*")]), speed=float("inf"))
        await projector.play(viewer, play, lambda _, wanted: wanted)
        await until(lambda: not len(projector))
        assert reels.size_bytes > 0
        await projector.play(viewer, play, lambda _, wanted: wanted)
        reels.clear()
        monkeypatch.setattr(Tape, "ticks_of", ticks_of)
        await until(is_reading.is_set)
        viewer.outbox.close()
        projector.forget(viewer)
        go_on.set()
        async with projector._reading:
            assert (reels.size_bytes, len(reels._frames)) == (0, 0)
    finally:
        go_on.set()
        await cancel_and_wait([task])
