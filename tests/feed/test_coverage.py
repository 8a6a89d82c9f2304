"""A key that covers nothing of a feed can read nothing of it, with any action or any address."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from redis.asyncio import Redis
from starlette.routing import Mount, Route, WebSocketRoute
from websockets.exceptions import ConnectionClosed

from feed.access.entitlements import Entitlements
from feed.access.key_file import add_key
from feed.access.keys import Key, hash_secret, make_key_id, make_secret
from feed.server.app import create_app
from producers.simulation.replay import Replay
from tests.builders import T0, trades
from tests.conftest import RunningServer, running_server
from tests.feed.replay.test_feed_replays import playing
from tests.feed.test_edges import SCHEMAS
from tests.recorded import Recorded
from tests.talk import Talk, talking
from tests.tickcast.client.tapes import write_tape
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.actions import ReplayCommand
from tickcast.wire.playback import ReplayMode

DEMO, ALL = make_key_id(), make_key_id()
DEMO_SECRET, ALL_SECRET = make_secret(DEMO), make_secret(ALL)
HASHES = {secret: hash_secret(secret) for secret in (DEMO_SECRET, ALL_SECRET)}

PAST = {"resume": {"epoch": "", "trades": {"ES": 0}}}
ACTIONS: list[tuple[dict[str, Any], Any]] = [
    ({"action": "auth", "key": "k", "secret": "s"}, 403),
    ({"action": "auth", "token": "t"}, 403),
    ({"action": "subscribe", "trades": ["ES"]}, 409),
    ({"action": "subscribe", "trades": ["*"], "quotes": ["E*"]}, 409),
    ({"action": "subscribe", "trades": []}, 409),
    ({"action": "subscribe", "trades": ["ES"], "snapshot": True, "positions": True}, 409),
    ({"action": "subscribe", "trades": ["ES"], "start": T0}, 409),
    ({"action": "subscribe", "trades": ["ES"], **PAST}, 409),
    ({"action": "unsubscribe", "trades": ["ES"]}, 409),
    ({"action": "list", "id": 1}, 409),
    ({"action": "ping"}, "pong"),
    ({"action": "publish", "ticks": [{"T": "t", "S": "ES", "p": 1, "s": 1}]}, 409),
    ({"action": "configure", "stamps": True}, "configured"),
    ({"action": "configure", "replay": True}, 409),
    ({"action": "replay", "id": 9, "tape": "hundred", "trades": ["ES"]}, 409),
    ({"action": "replay", "id": 9, "tape": "hundred", "trades": ["*"]}, 409),
    ({"action": "replay.pause"}, 409),
    ({"action": "replay.resume"}, 409),
    ({"action": "replay.seek", "position": T0}, 409),
    ({"action": "replay.speed", "speed": 2}, 409),
    ({"action": "replay.stop"}, 400),
    ({"action": "replay.stop", "id": 9}, 400),
]

ROUTES: dict[str, tuple[str, int]] = {
    "/": ("/", 200),
    "/static": ("/static/page.js", 200),
    "/health": ("/health", 200),
    "/ready": ("/ready", 200),
    "/metrics": ("/metrics", 200),
    "/symbols": ("/symbols", 403),
    "/snapshot": ("/snapshot?symbols=*", 403),
    "/tapes": ("/tapes", 200),
    "/v1/publish": ("/v1/publish", 405),
    "/stream": ("/stream", 426),
    "/v2/{feed}": ("/v2/live", 426),
}


@pytest.fixture
def guarded(settings: Settings, tmp_path: Path) -> Settings:
    keys = tmp_path / "keys.toml"
    write_tape(tmp_path)
    for id_, secret, feeds in ((DEMO, DEMO_SECRET, ("demo",)), (ALL, ALL_SECRET, ("*",))):
        add_key(keys, id_, Key(name="desk", hash=HASHES[secret], feeds=feeds))
    return replace(settings, auth=str(keys), tapes=str(tmp_path), steer_replays=True)


@pytest.fixture
async def server(guarded: Settings, redis_url: str) -> AsyncIterator[RunningServer]:
    async with running_server(guarded, redis_url) as running:
        yield running


@pytest.fixture
async def replay(redis: Redis, guarded: Settings) -> AsyncIterator[Replay]:
    """A replay into the feed `live`."""
    async with (
        FeedPublisher(redis, "live", guarded, waits=True) as publisher,
        playing(redis, publisher, Recorded(0, 1000)) as replay,
    ):
        await publisher.publish(trades(3))
        yield replay


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_every_action_is_in_the_table() -> None:
    said = {message["action"] for message, _ in ACTIONS}
    described = {name for name, each in SCHEMAS.items() if "action" in each.get("properties", {})}
    assert said == described - {"steer"} | {verb.value for verb in ReplayCommand}


async def test_actions(server: RunningServer, replay: Replay) -> None:
    async with talking(server.stream, additional_headers=bearer(DEMO_SECRET)) as talk:
        for message, expected in ACTIONS:
            reply = await talk.ask(**message)
            if isinstance(expected, str):
                assert reply["T"] == expected, message
            else:
                assert (reply["T"], reply["code"]) == ("error", expected), message
            assert "epoch" not in reply
        engine = server.app_state["engine"]
        assert not engine.feed_replays._followers
        assert len(engine.private_replays) == 0
        with pytest.raises(TimeoutError):
            await talk.hear(0.1)
    # The replay that it could not pause continues, and a key with the right can pause it.
    assert replay._player.mode is ReplayMode.PLAYING
    assert replay._player.state(time.monotonic()).speed == 1
    async with talking(server.stream, additional_headers=bearer(ALL_SECRET)) as talk:
        assert (await talk.ask(action="replay.pause"))["state"] == "paused"


async def test_addresses(server: RunningServer, replay: Replay, guarded: Settings) -> None:
    dashboard = Path(__file__).resolve().parents[2] / "clients" / "dashboard"
    app: Any = create_app(guarded, "unix:///nowhere", dashboard)
    while not hasattr(app, "routes"):
        app = app._app
    paths = {each.path for each in app.routes if isinstance(each, Route | Mount)}
    assert paths == set(ROUTES)
    streams = {each.path for each in app.routes if isinstance(each, WebSocketRoute)}
    assert streams == {"/stream", "/v2/{feed}", "/{path:path}"}, "of these test_actions has one"
    headers = bearer(DEMO_SECRET)
    async with httpx.AsyncClient(base_url=server.http, headers=headers) as http:
        for path, status in ROUTES.values():
            if path in ("/", "/static/page.js"):
                continue  # Static files, the same for every client; this server has none.
            answer = await http.get(path)
            assert answer.status_code == status, path
            assert "ES" not in answer.text, path
        assert (await http.get("/tapes")).json() == []
        assert (await http.get("/symbols?feed=demo")).json() == []
        assert (await http.get("/snapshot?symbols=*&feed=demo")).json() == []
    async with httpx.AsyncClient(base_url=server.http, headers=bearer(ALL_SECRET)) as http:
        await until_text(http, "/symbols", "ES")
        assert "hundred" in (await http.get("/tapes")).text


async def until_text(http: httpx.AsyncClient, path: str, text: str) -> None:
    async with asyncio.timeout(10):
        while text not in (await http.get(path)).text:
            await asyncio.sleep(0.01)


async def test_a_private_replay_ends_when_its_feed_is_no_longer_covered(
    server: RunningServer, guarded: Settings
) -> None:
    async with talking(server.stream, additional_headers=bearer(ALL_SECRET)) as talk:
        playing = await talk.ask(action="replay", id=9, tape="hundred", trades=["ES"], speed=0.01)
        assert playing["state"] == "playing"
        keys = Path(guarded.auth or "")
        keys.write_text(keys.read_text().replace('feeds = ["*"]', 'feeds = ["demo"]'))
        while (message := await talk.hear())["T"] != "replay":
            pass
        assert (message["id"], message["state"]) == (9, "ended")


def test_what_covers_no_channel_or_symbol_covers_no_feed() -> None:
    assert Entitlements().allows_feed("live")
    assert not Entitlements(channels=()).allows_feed("live")
    assert not Entitlements(symbols=()).allows_feed("live")


@pytest.mark.parametrize("credentials", [{"token": "x" * 8300}, {"key": "k", "secret": "x" * 8300}])
async def test_credentials_that_are_too_long_are_bad_credentials(
    server: RunningServer, credentials: dict[str, str]
) -> None:
    async with talking(server.stream) as talk:
        error = await talk.ask(action="auth", id=1, **credentials)
        assert (error["code"], error["id"]) == (402, 1)
        assert error["msg"] == "auth failed: credentials have at most 8192 characters"
        assert await close_code(talk) == 4001


async def close_code(talk: Talk) -> int | None:
    with pytest.raises(ConnectionClosed) as caught:
        await talk.hear()
    return caught.value.rcvd.code if caught.value.rcvd else None
