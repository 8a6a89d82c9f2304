"""The recorder against a real server: nothing is missing, or the tape records what is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from clients.commands.recorder import Recorder, Rotation, positions_of
from producers.simulation.synthetic import generate, symbol_names
from tests.builders import T0, bar, quote, trades
from tests.conftest import RunningServer, running_server, until
from tests.tickcast.client.scripted_server import Peer, confirm_all, scripted_server
from tickcast.broker.publisher import FeedPublisher
from tickcast.client.accounts import Gap, Position
from tickcast.client.stream import connect
from tickcast.settings import Settings
from tickcast.tapes import Tape, TapeLibrary, TapeWriter
from tickcast.tapes.format import EpochMark, GapMark
from tickcast.tapes.library import RecordingDirectory
from tickcast.wire.errors import RecordingFailed

NEVER = Rotation()
REQUESTED = {"trades": ["ES", "N*"], "quotes": ["*"]}


@asynccontextmanager
async def recording(
    url: str, folder: Path, rotation: Rotation = NEVER, **more: Any
) -> AsyncIterator[Recorder]:
    directory = RecordingDirectory(folder, "live", url)
    messages: list[str] = []
    with directory.locked():
        known = [
            Position(each.channel, each.symbol, each.epoch, each.seq)
            for each in directory.positions(messages.append)
            if each.seq is not None
        ]
        present: list[Position] = []
        if more.get("asks", True):
            async with connect(url) as probe:
                present = await positions_of(probe, more.get("requested", REQUESTED))
        recorder: Recorder

        def on_gap(gap: Gap) -> None:
            recorder.add_gap(gap)

        async with connect(url, on_gap=on_gap) as stream:
            recorder = Recorder(directory, rotation, flush_s=0.02)
            await recorder.begin(stream, more.get("requested", REQUESTED), known, present)
            task = asyncio.create_task(recorder.record(stream))
            try:
                yield recorder
            finally:
                task.cancel()
                await asyncio.wait([task])
                if more.get("close", True):
                    recorder.finish()
                else:
                    recorder.abandon()
    assert messages == []


def tapes(folder: Path) -> list[Tape]:
    library = TapeLibrary(folder)
    return [library.open(each) for each in library.list()]


def seqs(tape: Tape, symbol: str = "ES") -> list[int | None]:
    return [tick.seq for tick in tape.read() if tick.symbol == symbol]


async def test_ticks_are_recorded_with_epochs(
    server: RunningServer, publisher: FeedPublisher, tmp_path: Path
) -> None:
    await publisher.publish(trades(2))
    await publisher.flush()
    async with recording(server.stream, tmp_path) as recorder:
        await publisher.publish([*trades(3), *trades(2, "NQ"), *trades(1, "YM"), quote("ES")])
        await until(lambda: recorder.ticks == 6)
        await until(lambda: not recorder._without_epoch)
    (tape,) = tapes(tmp_path)
    assert tape.manifest.complete
    assert not tape.manifest.gaps
    assert seqs(tape, "NQ") == [1, 2]
    streams = {(each.channel, each.symbol): each for each in tape.manifest.streams}
    assert set(streams) == {("trades", "ES"), ("trades", "NQ"), ("quotes", "ES")}
    assert (streams["trades", "ES"].first_seq, streams["trades", "ES"].seq) == (3, 5)
    assert len({each.epoch for each in tape.manifest.streams}) == 1
    assert tape.manifest.streams[0].epoch
    records = list(tape.records())
    received = [rx for _, rx in records if rx is not None]
    assert received == sorted(received)
    assert len(received) == len(records) - 1


@pytest.mark.parametrize("close", [True, False])
async def test_next_recording_continues_where_the_last_one_stopped(
    server: RunningServer, publisher: FeedPublisher, tmp_path: Path, close: bool
) -> None:
    async with recording(server.stream, tmp_path, close=close) as recorder:
        await publisher.publish([*trades(3), *trades(2, "NQ")])
        await until(lambda: recorder.ticks == 5 and not recorder._without_epoch)
        await until(lambda: not recorder._writer.waiting_bytes)
    await publisher.publish([*trades(4), *trades(1, "NQ"), *trades(2, "NYM"), *trades(2, "YM")])
    await publisher.flush()
    async with recording(server.stream, tmp_path) as recorder:
        await until(lambda: recorder.ticks == 7)
        await publisher.publish(trades(1))
        await until(lambda: recorder.ticks == 8)
    first, second = tapes(tmp_path)
    assert (first.manifest.complete, second.manifest.complete) == (close, True)
    assert seqs(first) + seqs(second) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert seqs(first, "NQ") + seqs(second, "NQ") == [1, 2, 3]
    assert seqs(second, "NYM") == [1, 2]
    assert not second.manifest.gaps
    assert first.manifest.feed == "live"


async def test_ticks_lost_from_history_are_recorded_as_a_gap(
    server: RunningServer, publisher: FeedPublisher, redis: Redis, tmp_path: Path
) -> None:
    async with recording(server.stream, tmp_path) as recorder:
        await publisher.publish(trades(3))
        await until(lambda: recorder.ticks == 3)
    await publisher.publish(trades(7))
    await publisher.flush()
    await redis.delete("tickcast:{live/trades/ES}:history")
    async with recording(server.stream, tmp_path) as recorder:
        await publisher.publish(trades(1))
        await until(lambda: recorder.ticks == 1)
    _, second = tapes(tmp_path)
    (gap,) = second.manifest.gaps
    assert (gap.first_seq, gap.last_seq, gap.reason) == (4, 10, "retention")
    assert seqs(second) == [11]


@pytest.mark.parametrize("asks", [True, False])
async def test_new_epoch_is_recorded_as_a_gap(
    server: RunningServer, publisher: FeedPublisher, redis: Redis, tmp_path: Path, asks: bool
) -> None:
    async with recording(server.stream, tmp_path) as recorder:
        await publisher.publish(trades(3))
        await until(lambda: recorder.ticks == 3)
        await redis.flushall()
        await publisher.publish(trades(2))
        await until(lambda: recorder.ticks == 5 and not recorder._without_epoch)
    await redis.flushall()
    await publisher.publish(trades(4))
    await publisher.flush()
    async with recording(server.stream, tmp_path, asks=asks) as recorder:
        await until(lambda: recorder.gaps == 1)
        await publisher.publish(trades(1))
        await until(lambda: recorder.ticks == (5 if asks else 1))
    first, second = tapes(tmp_path)
    marks = [item for item, _ in first.records() if isinstance(item, GapMark | EpochMark)]
    epochs = [item.epoch for item in marks if isinstance(item, EpochMark)]
    assert len(set(epochs)) == 2
    assert seqs(first) == [1, 2, 3, 1, 2]
    gaps = [(gap.reason, gap.first_seq, gap.last_seq) for gap in second.manifest.gaps]
    assert gaps == [("epoch", None, None), *([] if asks else [("unasked", 1, 4)])]
    assert seqs(second) == ([1, 2, 3, 4, 5] if asks else [5])


async def test_recording_resumes_after_a_lost_connection(
    settings: Settings, redis_url: str, publisher: FeedPublisher, tmp_path: Path
) -> None:
    async with running_server(settings, redis_url) as server:
        port = int(server.http.rsplit(":", 1)[1])
        context = recording(server.stream, tmp_path)
        recorder = await context.__aenter__()
        await publisher.publish(trades(3))
        await until(lambda: recorder.ticks == 3)
    await publisher.publish(trades(5))
    await publisher.flush()
    async with running_server(settings, redis_url, port):
        await until(lambda: recorder.ticks == 8)
        await context.__aexit__(None, None, None)
    (tape,) = tapes(tmp_path)
    assert seqs(tape) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("rotation", [Rotation(after_bytes=1), Rotation(after_s=0.05)])
async def test_tapes_rotate_by_size_and_time(
    server: RunningServer, publisher: FeedPublisher, tmp_path: Path, rotation: Rotation
) -> None:
    async with recording(server.stream, tmp_path, rotation) as recorder:
        for count in range(1, 4):
            await publisher.publish(trades(10))
            await until(lambda count=count: recorder.ticks == 10 * count)  # type: ignore[misc]
            await until(lambda count=count: recorder.tapes >= count + 1)  # type: ignore[misc]
    found = tapes(tmp_path)
    assert [number for tape in found for number in seqs(tape)] == list(range(1, 31))
    assert all(tape.manifest.complete and not tape.manifest.gaps for tape in found)
    assert recorder.stored_bytes == sum(tape.path.stat().st_size for tape in found)
    assert found[-1].manifest.ticks == 0
    assert [each.seq for each in found[-1].manifest.streams if each.symbol == "ES"][-1] == 30


async def test_recording_of_a_replayed_tape_has_the_same_content(
    settings: Settings, redis_url: str, redis: Redis, tmp_path: Path
) -> None:
    # Ticks arrive as fast as possible here. A slow client finds them all in history.
    settings = replace(settings, history_ticks=50_000)
    original = TapeWriter(tmp_path / "original.jsonl.zst", "live")
    market = islice(generate(symbol_names(5), 100, 7, T0), 2000)
    for tick in chain(market, trades(20_000), [bar("ES"), bar("ES", timeframe="5s")]):
        original.append_tick(tick)
    original.close()
    tape = Tape.open(original.path)
    requested = {channel: ["*"] for channel in ("trades", "quotes", "bars", "bars:5s")}
    async with (
        running_server(settings, redis_url) as server,
        recording(server.stream, tmp_path / "again", requested=requested) as recorder,
        FeedPublisher(redis, "live", settings, waits=True) as publisher,
    ):
        for tick in tape.read():
            await publisher.publish([replace(tick, seq=None)])
        await publisher.flush()
        await until(lambda: recorder.ticks == tape.manifest.ticks, 40)
    (again,) = tapes(tmp_path / "again")
    assert again.manifest.content == tape.manifest.content
    assert again.manifest.gaps == []


async def test_second_recorder_in_a_folder_is_refused(
    server: RunningServer, publisher: FeedPublisher, tmp_path: Path
) -> None:
    async with recording(server.stream, tmp_path):
        with pytest.raises(RecordingFailed, match="another recorder writes here"):
            async with recording(server.stream, tmp_path):
                pass


async def test_server_without_extensions_is_recorded(tmp_path: Path) -> None:
    async def plainly(peer: Peer) -> None:
        while (question := await peer.receive()).keys() - {"action", "trades", "id"}:
            await peer.reject(question, 400)
        await peer.confirm(question)
        await peer.send_ticks(None, None)
        await confirm_all(peer)

    async with scripted_server(plainly) as double, connect(double.url) as stream:
        recorder = Recorder(RecordingDirectory(tmp_path, "live", ""), NEVER, flush_s=0.02)
        await recorder.begin(stream, {"trades": ["ES"]})
        await asyncio.wait_for(recorder.record(stream, limit=2), 10)
        recorder.finish()
    (tape,) = tapes(tmp_path)
    assert seqs(tape) == [None, None]


async def test_full_disk_ends_the_recording_with_an_error(
    server: RunningServer, publisher: FeedPublisher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = RecordingDirectory(tmp_path, "live", "")
    async with connect(server.stream) as stream:
        recorder = Recorder(directory, Rotation(), flush_s=0.02)
        await recorder.begin(stream, REQUESTED, [])
        task = asyncio.create_task(recorder.record(stream))
        await publisher.publish(trades(3))
        await until(lambda: recorder.ticks == 3)
        await until(lambda: not recorder._writer.waiting_bytes and not recorder._writing.locked())
        monkeypatch.setattr("tickcast.tapes.writer.os.write", _full)
        await publisher.publish(trades(3))
        with pytest.raises(RecordingFailed, match="No space left on device"):
            await asyncio.wait_for(task, 10)
        monkeypatch.undo()
        with pytest.raises(RecordingFailed, match="No space left on device"):
            recorder.finish()
    (tape,) = tapes(tmp_path)
    assert (seqs(tape), tape.torn_bytes, tape.manifest.complete) == ([1, 2, 3], 0, False)


def _full(number: int, data: bytes) -> int:
    raise OSError(28, os.strerror(28))
