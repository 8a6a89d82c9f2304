"""A tape played to one connection by the real server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest
from msgspec.structs import replace
from websockets.asyncio.client import connect

from tests.builders import T0, quote, trade
from tests.conftest import RunningServer, running_server, until
from tests.talk import Talk, talking
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.tapes import TapeWriter
from tickcast.tapes.manifest import SUFFIX, manifest_path
from tickcast.wire.playback import SPEED_RANGE
from tickcast.wire.ticks import Tick
from tickcast.wire.times import NS_PER_SECOND, Time

SECOND = NS_PER_SECOND


def at(seconds: float) -> Time:
    return Time(T0 + round(seconds * SECOND))


def write_tape(directory: Path, id_: str, frames: Iterable[Iterable[Tick]]) -> Path:
    path = directory / (id_ + SUFFIX)
    writer = TapeWriter(path, "live", "test")
    for ticks in frames:
        for tick in ticks:
            writer.append_tick(tick)
        writer.flush()
    writer.close()
    return path


@pytest.fixture
def tapes(tmp_path: Path) -> Path:
    """A tape of 100 seconds, with a trade each second and a quote every ten seconds."""
    directory = tmp_path / "tapes"
    directory.mkdir()
    frames: list[list[Tick]] = [
        [
            trade("ES", id=n, time=at(n), seq=n + 1),
            *([quote("ES", time=at(n), seq=n // 10 + 1)] if n % 10 == 0 else []),
            trade("NQ", id=n, time=at(n), seq=n + 1),
        ]
        for n in range(100)
    ]
    write_tape(directory, "hundred", frames)
    return directory


@pytest.fixture
def with_tapes(settings: Settings, tapes: Path) -> Settings:
    return replace(settings, tapes=str(tapes))


@pytest.fixture
async def server(with_tapes: Settings, redis_url: str) -> AsyncIterator[RunningServer]:
    async with running_server(with_tapes, redis_url) as running:
        yield running


async def play(talk: Talk, **fields: Any) -> dict[str, Any]:
    return await talk.ask(action="replay", **{"id": 9, "tape": "hundred", **fields})


async def until_ended(talk: Talk) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the ticks up to the end of the replay, and the message that ends it."""
    ticks: list[dict[str, Any]] = []
    while (message := await talk.hear())["T"] in "tqb":
        ticks.append(message)
    return ticks, message


async def test_a_tape_is_played_with_its_own_times(server: RunningServer) -> None:
    async with talking(server.stream) as talk:
        assert await play(talk, trades=["ES"], quotes=["*"], speed="max") == {
            "T": "replay", "id": 9, "state": "playing", "position": at(0).rfc3339(),
            "speed": "max", "from": at(0).rfc3339(), "to": at(99).rfc3339(),
        }  # fmt: skip
        ticks, end = await until_ended(talk)
        assert end["state"] == "ended"
        assert end["position"] == at(99).rfc3339()
        assert {tick["rp"] for tick in ticks} == {9}
        assert [tick["i"] for tick in ticks if tick["T"] == "t"] == list(range(100))
        assert [tick["seq"] for tick in ticks if tick["T"] == "q"] == list(range(1, 11))
        assert ticks[0] == {
            "T": "t", "S": "ES", "i": 0, "p": 1640.25, "s": 1.0, "t": at(0).rfc3339(), "seq": 1,
            "rp": 9,
        }  # fmt: skip
        assert (await talk.ask(action="replay.pause", id=9))["code"] == 400


async def test_ids_of_any_type_are_added_in_messagepack(server: RunningServer) -> None:
    async with connect(server.stream, subprotocols=["tickcast.v1.msgpack"]) as socket:  # type: ignore[list-item]
        await socket.recv()
        action = {"action": "replay", "id": "my replay", "tape": "hundred", "quotes": ["ES"],
                 "speed": "max"}  # fmt: skip
        await socket.send(msgpack.packb(action))
        (said,) = msgpack.unpackb(await socket.recv())
        assert said["position"].to_unix_nano() == at(0)
        ticks: list[dict[str, Any]] = []
        while len(ticks) < 10:
            ticks += msgpack.unpackb(await socket.recv())
        assert [tick["t"].to_unix_nano() for tick in ticks] == [at(n) for n in range(0, 100, 10)]
        assert {tick["rp"] for tick in ticks} == {"my replay"}


async def test_a_part_is_played_at_its_speed(server: RunningServer) -> None:
    loop = asyncio.get_running_loop()
    async with talking(server.stream) as talk:
        began_s = loop.time()
        said = await play(talk, trades=["NQ"], start=int(at(10)), end=at(30).rfc3339(), speed=100)
        assert (said["from"], said["to"]) == (at(10).rfc3339(), at(30).rfc3339())
        ticks, _ = await until_ended(talk)
        assert loop.time() - began_s > 0.19
        assert [tick["i"] for tick in ticks] == list(range(10, 31))


async def test_a_replay_is_steered(server: RunningServer) -> None:
    async with talking(server.stream) as talk:
        await play(talk, trades=["ES"], speed=0.01)
        assert (await talk.hear())["i"] == 0
        assert (await talk.ask(action="replay.pause", id=9))["state"] == "paused"
        said = await talk.ask(action="replay.seek", id=9, position=at(50.5).rfc3339())
        assert (said["state"], said["position"]) == ("paused", at(50.5).rfc3339())
        assert (await talk.ask(action="replay.speed", id=9, speed=SPEED_RANGE[1]))[
            "speed"
        ] == 10_000
        assert (await talk.ask(action="replay.resume", id=9))["state"] == "playing"
        ticks, _ = await until_ended(talk)
        assert [tick["i"] for tick in ticks] == list(range(51, 100))
        await play(talk, trades=["ES"])
        said = await talk.ask(action="replay.stop", id=9)
        assert said["state"] == "ended"
        assert (await talk.ask(action="ping"))["T"] == "pong"


async def test_commands_after_stop_in_the_same_turn_are_answered(
    server: RunningServer,
) -> None:
    async with talking(server.stream) as talk:
        await play(talk, trades=["ES"], speed=0.01)
        assert (await talk.hear())["i"] == 0
        await talk.say(action="replay.stop", id=9)
        await talk.say(action="replay.pause", id=9)
        await talk.say(action="replay.stop", id=9)
        assert (await talk.hear())["state"] == "ended"
        for said in (await talk.hear(), await talk.hear()):
            assert (said["T"], said["code"], said["id"]) == ("error", 400, 9)
            assert said["msg"] == "invalid syntax: no replay with this id is playing"
        assert (await play(talk, trades=["ES"], speed=0.01))["state"] == "playing"


async def test_a_replay_that_ends_at_once_after_resume_sends_everything(
    server: RunningServer,
) -> None:
    async with talking(server.stream) as talk:
        await play(talk, trades=["ES"], speed=0.01)
        await talk.hear()
        for action, more in (("pause", {}), ("speed", {"speed": "max"}), ("resume", {})):
            said = await talk.ask(action=f"replay.{action}", id=9, **more)
        assert said["state"] in {"playing", "ended"}
        ticks, end = await until_ended(talk)
        assert [tick["i"] for tick in ticks] == list(range(1, 100))
        assert end["state"] == "ended"


async def test_a_replay_runs_next_to_live_streams(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async with talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["ES"])
        await play(talk, trades=["ES"], speed=0.01)
        assert (await talk.hear())["rp"] == 9
        await publisher.publish([trade("ES", id=777)])
        live = await talk.hear()
        assert (live["i"], live["seq"], "rp" in live) == (777, 1, False)


REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "an unknown tape": ({"tape": "nowhere"}, 416, "tape not found"),
    "a path": ({"tape": "../tapes/hundred"}, 416, "tape not found"),
    "no tape": ({"tape": None}, 400, "invalid syntax"),
    "no id": ({"id": None}, 400, "invalid syntax"),
    "unknown streams": ({"trades": ["XX"]}, 416, "tape not found"),
    "a malformed symbol": ({"trades": ["A B"]}, 400, "invalid syntax"),
    "too slow": ({"speed": 0.001}, 400, "invalid syntax"),
    "no speed": ({"speed": "fast"}, 400, "invalid syntax"),
    "after its end": ({"start": int(at(1000))}, 400, "invalid syntax"),
    "an end before the start": ({"start": 5, "end": 4}, 400, "invalid syntax"),
    "no time": ({"start": "yesterday"}, 400, "invalid syntax"),
    "another word": ({"volume": 11}, 400, "invalid syntax"),
}


async def test_a_replay_that_cannot_begin_is_refused(server: RunningServer) -> None:
    # One server for all cases: it takes longer to start than to refuse.
    async with talking(server.stream) as talk:
        for name, (fields, code, words) in REFUSED.items():
            reply = await play(talk, **{"trades": ["ES"], **fields})
            assert (reply["T"], reply["code"]) == ("error", code), name
            assert reply["msg"].startswith(words), name
            assert (await talk.ask(action="ping"))["T"] == "pong", name


async def test_the_number_of_replays_is_limited(with_tapes: Settings, redis_url: str) -> None:
    small = replace(with_tapes, replays_per_connection_max=2, replays_max=3)
    async with running_server(small, redis_url) as server, talking(server.stream) as one:
        for id_ in (1, 2):
            await play(one, id=id_, trades=["NQ"], speed=0.01)
        while (said := await play(one, id=3, trades=["ES"]))["T"] == "replay":
            pass
        assert said["code"] == 405
        async with talking(server.stream) as two:
            assert (await play(two, trades=["NQ"], speed=0.01))["state"] == "playing"
            assert (await play(two, id=10, trades=["NQ"]))["code"] == 429
            assert (await play(two, trades=["NQ"]))["code"] == 400
        scheduler = server.app_state["engine"].private_replays
        await until(lambda: len(scheduler) == 2)


async def test_without_tapes_there_are_no_replays(settings: Settings, redis_url: str) -> None:
    async with running_server(settings, redis_url) as server, talking(server.stream) as talk:
        assert (await play(talk, trades=["ES"]))["code"] == 410
        async with httpx.AsyncClient(base_url=server.http) as http:
            assert (await http.get("/tapes")).status_code == 404


async def test_tapes_are_listed(server: RunningServer, tapes: Path) -> None:
    unfinished = write_tape(tapes, "unfinished", [[trade()]])
    manifest_path(unfinished).unlink()
    (tapes / "broken.jsonl.zst").write_bytes(b"nonsense")
    (tapes / "broken.manifest.json").write_bytes(b"{}")
    async with httpx.AsyncClient(base_url=server.http) as http:
        assert (await http.get("/tapes")).json() == [
            {
                "tape": "hundred", "feed": "live", "ticks": 210,
                "from": at(0).rfc3339(), "to": at(99).rfc3339(),
                "channels": {"quotes": ["ES"], "trades": ["ES", "NQ"]},
            }
        ]  # fmt: skip


async def test_a_client_that_does_not_read_delays_only_its_own_replay(
    server: RunningServer, tapes: Path
) -> None:
    count = 30_000
    ticks = [trade("BIG", id=n, time=at(n / 1000), seq=n + 1) for n in range(count)]
    write_tape(tapes, "big", [ticks[n : n + 5000] for n in range(0, count, 5000)])
    async with (
        talking(server.stream, max_queue=1) as slow,
        talking(server.stream) as quick,
    ):
        await slow.say(action="replay", id=1, tape="big", trades=["*"], speed="max")
        said = await quick.ask(action="replay", id=1, tape="big", trades=["*"], speed="max")
        assert said["state"] == "playing"
        found, _ = await until_ended(quick)
        assert [tick["seq"] for tick in found] == list(range(1, count + 1))
        assert (await slow.hear())["state"] == "playing"
        found, _ = await until_ended(slow)
        assert [tick["seq"] for tick in found] == list(range(1, count + 1))


async def test_a_damaged_tape_ends_its_replay(server: RunningServer, tapes: Path) -> None:
    path = write_tape(tapes, "bad", [[trade("A", id=n, time=at(n), seq=n + 1)] for n in range(9)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + os.urandom(10) + whole[-10:])
    async with talking(server.stream) as talk:
        await talk.ask(action="replay", id=5, tape="bad", trades=["A"], speed="max")
        found: list[dict[str, Any]] = []
        while not found or found[-1].get("state") != "ended":
            found.append(await talk.hear())
        assert found[-2]["code"] == 500
        assert found[-2]["id"] == 5
        assert (await talk.ask(action="ping"))["T"] == "pong"
