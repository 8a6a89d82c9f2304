"""Tapes that the server plays to a single program."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.builders import trade
from tests.conftest import RunningServer, running_server, until
from tests.recorded import at
from tests.tickcast.client.scripted_server import Peer, scripted_server
from tests.tickcast.client.tapes import write_tape
from tickcast import Refused, ReplayCut, connect, listen
from tickcast import blocking as without_a_loop
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import ConnectionFailed
from tickcast.wire.playback import MAX_SPEED, ReplayMode
from tickcast.wire.ticks import Tick, Trade


@pytest.fixture
async def server(
    settings: Settings, redis_url: str, tmp_path: Path
) -> AsyncIterator[RunningServer]:
    write_tape(tmp_path)
    async with running_server(replace(settings, tapes=str(tmp_path)), redis_url) as running:
        yield running


def places(ticks: list[Tick]) -> list[Any]:
    return [tick.id for tick in ticks if isinstance(tick, Trade)]


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_a_tape_is_played_to_its_end(server: RunningServer, encoding: Encoding) -> None:
    async with connect(server.stream, encoding=encoding) as stream:
        replay = await stream.replay("hundred", trades=["ES"], speed="max")
        assert (replay.state.first, replay.state.last) == (at(0), at(99))
        ticks = [tick async for tick in replay]
        assert ticks == [trade(id=n, time=at(n), seq=n + 1) for n in range(100)]
        assert replay.ended
        assert replay.state.mode is ReplayMode.ENDED
        assert await replay.read() == []
        assert (await replay.stop()).position == at(99)
        with pytest.raises(ConnectionFailed, match="ended"):
            await replay.resume()


async def test_a_part_between_times_in_any_format(server: RunningServer) -> None:
    async with connect(server.stream) as stream:
        start = datetime.fromtimestamp(at(10) // 10**9, UTC)
        replay = await stream.replay(
            "hundred", {"trades": ["*"]}, start=start, end=at(12).rfc3339(), speed=MAX_SPEED
        )
        assert places([tick async for tick in replay]) == [10, 11, 12]


async def test_commands_steer_the_replay(server: RunningServer) -> None:
    async with connect(server.stream) as stream:
        replay = await stream.replay("hundred", trades=["ES"], speed=0.01)
        assert places([await anext(replay)]) == [0]
        assert (await replay.pause()).mode is ReplayMode.PAUSED
        assert (await replay.seek(at(50.5))).position == at(50.5)
        assert (await replay.speed("max")).speed == MAX_SPEED
        assert (await replay.resume()).mode is ReplayMode.PLAYING
        assert places([tick async for tick in replay]) == list(range(51, 100))


async def test_after_a_seek_earlier_ticks_are_dropped(server: RunningServer) -> None:
    async with connect(server.stream) as stream:
        replay = await stream.replay("hundred", trades=["ES"], speed=100)
        waiting = replay._queue
        await until(lambda: len(waiting) > 5)
        await replay.seek(at(2))
        assert places([await anext(replay)]) == [2]
        await until(lambda: len(waiting) > 5)
        assert (await replay.stop()).mode is ReplayMode.ENDED
        assert await replay.read() == []


async def test_a_replay_and_live_streams_run_side_by_side(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"])
        replay = await stream.replay("hundred", trades=["ES"], speed=100)
        await publisher.publish([trade(id=777)])
        assert places([await anext(stream)]) == [777]
        assert places([await anext(replay)]) == [0]
        assert stream.report().total("delivered") == 1
        seen: list[int | str | None] = []
        await listen(replay, on_trade=lambda tick: seen.append(tick.id))
        assert seen[-1] == 99


@pytest.mark.parametrize(
    ("tape", "symbols", "code"), [("nowhere", ["ES"], 416), ("hundred", ["XX"], 416)]
)
async def test_refusals_have_a_type(
    server: RunningServer, tape: str, symbols: list[str], code: int
) -> None:
    async with connect(server.stream) as stream:
        with pytest.raises(Refused) as caught:
            await stream.replay(tape, trades=symbols)
        assert caught.value.code == code
        for wrong in ({"start": "yesterday"}, {"speed": 0.001}, {"speed": "fast"}):
            with pytest.raises(ValueError):
                await stream.replay(tape, trades=["ES"], **wrong)


async def test_a_cut_ends_it_with_replay_cut(server: RunningServer) -> None:
    async with connect(server.stream) as stream:
        replay = await stream.replay("hundred", trades=["ES"], speed=0.01)
        assert places([await anext(replay)]) == [0]
        for protocol in list(server.server.server_state.connections):
            protocol.transport.abort()
        with pytest.raises(ReplayCut, match="is not resumed"):
            await anext(replay)
        with pytest.raises(ConnectionFailed):
            await replay.pause()
        await until(lambda: stream.reconnects == 1)
        again = await stream.replay("hundred", trades=["ES"], start=at(1), speed="max")
        assert places([await anext(again)]) == [1]


async def test_it_ends_with_the_stream(server: RunningServer) -> None:
    async with connect(server.stream) as stream:
        replay = await stream.replay("hundred", trades=["ES"], speed=0.01)
        assert places([await anext(replay)]) == [0]
        scheduler = server.app_state["engine"].private_replays
        assert len(scheduler) == 1
    assert [tick async for tick in replay] == []
    await until(lambda: not len(scheduler))


async def test_a_slow_reader_delays_only_its_replay(
    settings: Settings, redis_url: str, publisher: FeedPublisher, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("tickcast.client.connection.QUEUE_TICKS_MAX", 100)
    count = 30_000
    write_tape(tmp_path, count=count)
    tapes = replace(settings, tapes=str(tmp_path))
    async with running_server(tapes, redis_url) as server, connect(server.stream) as stream:
        await stream.subscribe(trades=["LIVE"])
        replay = await stream.replay("hundred", trades=["*"], speed="max")
        await until(lambda: len(replay._queue) > 100)
        for n in range(100):
            await publisher.publish([trade("LIVE", id=n)])
            assert places([await anext(stream)]) == [n]
        assert len(replay._queue) <= 100 + 1000
        assert places([tick async for tick in replay]) == list(range(count))


async def test_a_damaged_tape_raises_refused() -> None:
    state = {
        "T": "replay", "id": 1, "state": "playing", "position": 0, "speed": 1, "from": 0, "to": 9,
    }  # fmt: skip

    async def break_off(peer: Peer) -> None:
        if len(double.peers) > 1:
            await peer.receive()
            await peer.send(state)
            await peer.send_ticks(1)
            await peer.send({"T": "error", "code": 500, "msg": "the tape is damaged", "id": 1})
            await peer.send({**state, "state": "ended"})

    async with scripted_server(break_off) as double, connect(double.url) as stream:
        replay = await stream.replay("bad", trades=["ES"])
        assert (await anext(replay)).seq == 1
        with pytest.raises(Refused, match="damaged"):
            await anext(replay)


async def test_without_an_event_loop(server: RunningServer) -> None:
    def program() -> tuple[list[Any], ...]:
        with without_a_loop.connect(server.stream) as stream:
            replay = stream.replay("hundred", trades=["ES"], speed=0.01)
            first = places([next(replay)])
            assert replay.read(timeout_s=0.01) == []
            assert replay.pause().mode is ReplayMode.PAUSED
            assert replay.seek(at(90)).position == at(90)
            replay.speed("max")
            replay.resume()
            rest = places(list(replay))
            assert replay.ended
            assert replay.state.mode is ReplayMode.ENDED
            other = stream.replay("hundred", trades=["ES"], speed=0.01)
            stopped = other.stop().mode
            assert stopped is ReplayMode.ENDED
            unread = stream.replay("hundred", trades=["ES"], speed=0.01)
            next(unread)
            assert unread.read(timeout_s=0.01) == []
            return first, rest, list(other)

    with ThreadPoolExecutor(1) as pool:
        first, rest, none = await asyncio.get_running_loop().run_in_executor(pool, program)
    assert (first, rest, none) == ([0], list(range(90, 100)), [])
