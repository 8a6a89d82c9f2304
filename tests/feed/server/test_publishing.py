"""`POST /v1/publish`, against a real server."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest
import websockets
from msgspec.structs import replace

from feed.access.key_file import add_key
from feed.access.keys import Key, hash_secret, make_key_id, make_secret
from tests.conftest import RunningServer, running_server
from tests.talk import talking
from tickcast import connect
from tickcast.settings import Settings

PUBLISH = "/v1/publish"
TRADE = {"T": "t", "S": "AAPL", "p": 187.1, "s": 100}
QUOTE = {"T": "q", "S": "AAPL", "bp": 187, "bs": 1, "ap": 187.1, "as": 2}
LINES = "".join(json.dumps(tick) + "\n" for tick in (TRADE, QUOTE)).encode()


@asynccontextmanager
async def client_of(server: RunningServer, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=server.http, headers=headers) as client:
        yield client


@pytest.fixture
async def http(server: RunningServer) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(server) as client:
        yield client


def new_key(file: Path, **fields: Any) -> str:
    key_id = make_key_id()
    secret = make_secret(key_id)
    add_key(file, key_id, Key(name="desk", hash=hash_secret(secret), **fields))
    return secret


async def published(http: httpx.AsyncClient, symbol: str = "AAPL") -> int:
    """The number of the last trade of a symbol."""
    latest = (await http.get("/snapshot", params={"symbols": symbol})).json()
    return max((tick["seq"] for tick in latest if tick["T"] == "t"), default=0)


async def symbols(http: httpx.AsyncClient) -> list[str]:
    return [each["S"] for each in (await http.get("/symbols")).json()]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", json.dumps([TRADE, QUOTE]).encode()),
        ("application/json; charset=utf-8", json.dumps([TRADE, QUOTE]).encode()),
        ("application/x-ndjson", LINES),
        ("application/msgpack", msgpack.packb([TRADE, QUOTE])),
    ],
)  # fmt: skip
async def test_ticks_are_published_in_each_format(
    http: httpx.AsyncClient, server: RunningServer, kind: str, body: bytes
) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["AAPL"], quotes=["AAPL"])
        answer = await http.post(PUBLISH, content=body, headers={"content-type": kind})
        assert (answer.status_code, answer.json()) == (200, {"published": 2})
        async with asyncio.timeout(10):
            ticks = [await anext(stream), await anext(stream)]
    assert {tick.symbol for tick in ticks} == {"AAPL"}
    assert {tick.seq for tick in ticks} == {1}


async def test_ticks_go_into_the_feed_that_is_named(http: httpx.AsyncClient) -> None:
    assert (await http.post(f"{PUBLISH}?feed=demo", json=[TRADE])).status_code == 200
    assert (await http.get("/symbols", params={"feed": "demo"})).json()
    assert await published(http) == 0
    assert (await http.post(f"{PUBLISH}?feed=NO", json=[TRADE])).status_code == 404


async def test_with_one_bad_tick_nothing_is_published(http: httpx.AsyncClient) -> None:
    answer = await http.post(PUBLISH, json=[TRADE, {**TRADE, "s": -1}, TRADE])
    assert answer.status_code == 400
    assert answer.text.startswith("tick 2 of 3: s must be a finite number of at least 0")
    assert await published(http) == 0


async def test_a_repeated_request_with_a_key_publishes_once(http: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "order-1"}
    for _ in range(3):
        answer = await http.post(PUBLISH, json=[TRADE, TRADE], headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"published": 2})
    assert await published(http) == 2
    answer = await http.post(PUBLISH, json=[QUOTE], headers=headers)
    assert (answer.status_code, answer.text) == (
        422,
        "this idempotency key was used for other ticks",
    )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": ""}, 415),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example"}, 403),
        ({"x-forwarded-for": "203.0.113.7"}, 403),
        ({"idempotency-key": "a b"}, 400),
        ({"idempotency-key": "k" * 129}, 400),
    ],
)
async def test_a_page_or_a_proxy_cannot_publish(
    http: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    headers = {"content-type": "application/json", **headers}
    answer = await http.post(PUBLISH, content=json.dumps([TRADE]), headers=headers)
    assert answer.status_code == status
    assert await published(http) == 0


async def test_a_body_may_have_a_mebibyte(http: httpx.AsyncClient) -> None:
    ticks = [{**TRADE, "i": number} for number in range(16_000)]
    body = json.dumps(ticks).encode()
    assert 800_000 < len(body) < 1 << 20
    headers = {"content-type": "application/json"}
    answer = await http.post(PUBLISH, content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (200, {"published": 16_000})
    answer = await http.post(PUBLISH, content=body + b" " * (1 << 20), headers=headers)
    assert answer.status_code == 413
    assert await published(http) == 16_000


async def test_an_open_server_on_another_address_takes_no_ticks(
    settings: Settings, redis_url: str
) -> None:
    async with (
        running_server(replace(settings, host=("0.0.0.0",)), redis_url) as server,
        client_of(server) as http,
    ):
        answer = await http.post(PUBLISH, json=[TRADE])
    assert answer.status_code == 403
    assert "only from its own machine" in answer.text


async def test_credentials_need_the_right_and_cover_the_streams(
    settings: Settings, redis_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys.toml"
    reader = new_key(file)
    writer = new_key(file, publish=True, feeds=("live",), channels=("trades",), symbols=("AA*",))
    async with (
        running_server(replace(settings, auth=str(file)), redis_url) as server,
        client_of(server) as http,
    ):

        async def status(secret: str | None, ticks: list[Any], feed: str = "live") -> int:
            headers = {"Authorization": f"Bearer {secret}"} if secret else {}
            answer = await http.post(f"{PUBLISH}?feed={feed}", json=ticks, headers=headers)
            return answer.status_code

        assert await status(None, [TRADE]) == 401
        assert await status(make_secret(make_key_id()), [TRADE]) == 401
        assert await status(reader, [TRADE]) == 403
        assert await status(writer, [TRADE]) == 200
        assert await status(writer, [TRADE, {**TRADE, "S": "MSFT"}]) == 403
        assert await status(writer, [QUOTE]) == 403
        assert await status(writer, [TRADE], feed="demo") == 403
        # Attempts are limited, and requests with known credentials are not attempts.
        assert [await status(writer, [TRADE]) for _ in range(50)] == [200] * 50


async def test_ticks_beyond_the_rate_are_refused(settings: Settings, redis_url: str) -> None:
    limited = replace(settings, publish_ticks_per_s=50.0)
    async with running_server(limited, redis_url) as server, client_of(server) as http:
        assert (await http.post(PUBLISH, json=[TRADE] * 90)).status_code == 200
        answer = await http.post(PUBLISH, json=[TRADE] * 90)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert await published(http) == 90


async def test_hundreds_of_malformed_requests_publish_nothing(
    http: httpx.AsyncClient, server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(7)
    values: list[Any] = [
        None,
        True,
        -1,
        1e400,
        "x" * 70,
        "\x00",
        [],
        {},
        [[]],
        "NaN",
        2**70,
        float("nan"),
    ]
    statuses, taken = [], 0
    for number in range(500):
        kind = "application/json"
        if number % 2:
            body = bytearray(json.dumps([TRADE, TRADE]).encode())
            for _ in range(chance.randint(1, 4)):
                body[chance.randrange(len(body))] = chance.randrange(256)
            content = bytes(body[: chance.randint(1, len(body))])
        else:
            tick: Any = dict(TRADE)
            tick[chance.choice([*tick, "new"])] = chance.choice(values)
            content = json.dumps(chance.choice([tick, [TRADE, tick], {"a": tick}])).encode()
            kind = chance.choice([kind, "application/x-ndjson", "application/msgpack", "text/html"])
        answer = await http.post(PUBLISH, content=content, headers={"content-type": kind})
        statuses.append(answer.status_code)
        assert "Traceback" not in answer.text
        if answer.status_code == 200:  # A few of the changes leave valid ticks.
            taken += answer.json()["published"]
        else:
            assert answer.text
    assert {400, 415} <= set(statuses) <= {200, 400, 415}
    assert statuses.count(200) < 100
    sent = (await http.get("/snapshot", params={"symbols": ",".join(await symbols(http))})).json()
    assert sum(tick["seq"] for tick in sent) == taken
    assert not [record for record in caplog.records if record.exc_info]
    assert (await http.post(PUBLISH, json=[TRADE])).status_code == 200


# ----------------------------------------------------------------------------- over a stream


async def test_ticks_are_published_over_a_stream(server: RunningServer) -> None:
    async with talking(server.stream) as talk:
        reply = await talk.ask(action="publish", ticks=[TRADE, QUOTE], id=1)
        assert reply == {"T": "published", "n": 2, "id": 1}
        reply = await talk.ask(action="publish", ticks=[], id=2)
        assert reply == {"T": "published", "n": 0, "id": 2}


async def test_times_in_messages_keep_their_nanoseconds(
    server: RunningServer, http: httpx.AsyncClient
) -> None:
    stamp = msgpack.Timestamp(1767623400, 123456789)
    async with websockets.connect(server.stream + "?encoding=msgpack") as socket:
        for number, time in enumerate((stamp, 1767623400123456789, 1767623400), 1):
            message = {"action": "publish", "ticks": [{**TRADE, "t": time}], "id": number}
            await socket.send(msgpack.packb(message))
            while msgpack.unpackb(await socket.recv(), timestamp=0)[0].get("id") != number:
                pass
            (latest,) = (await http.get("/snapshot", params={"symbols": "AAPL"})).json()
            digits = "" if time == 1767623400 else ".123456789"
            assert latest["t"] == f"2026-01-05T14:30:00{digits}Z"


@pytest.mark.parametrize(
    ("fields", "msg"),
    [
        ({}, "invalid syntax: publish takes ticks: a list"),
        ({"ticks": TRADE}, "invalid syntax: publish takes ticks: a list"),
        ({"ticks": [TRADE], "feed": "x"}, "invalid syntax: unknown key 'feed'"),
        ({"ticks": [TRADE, {}]}, 'invalid syntax: tick 2 of 2: T must be "t"'),
        ({"ticks": [{**TRADE, "p": None}]}, "invalid syntax: tick 1 of 1: Expected `float`"),
    ],
)
async def test_a_bad_message_publishes_nothing(
    server: RunningServer, http: httpx.AsyncClient, fields: dict[str, Any], msg: str
) -> None:
    async with talking(server.stream) as talk:
        reply = await talk.ask(action="publish", id=1, **fields)
    assert (reply["T"], reply["code"]) == ("error", 400)
    assert reply["msg"].startswith(msg)
    assert await published(http) == 0


async def test_a_publisher_is_limited_by_its_ticks_alone(
    settings: Settings, redis_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys.toml"
    writer = new_key(file, publish=True, channels=("trades",))
    limited = replace(
        settings, auth=str(file), publish_ticks_per_s=500.0, messages_per_s=1.0, messages_burst=2
    )
    async with running_server(limited, redis_url) as server:
        headers = {"Authorization": f"Bearer {writer}"}
        async with talking(server.stream, additional_headers=headers) as talk:
            for number in range(20):
                reply = await talk.ask(action="publish", ticks=[TRADE], id=number)
                assert reply["T"] == "published"
            reply = await talk.ask(action="publish", ticks=[QUOTE], id=30)
            assert (reply["code"], reply["T"]) == (409, "error")
            reply = await talk.ask(action="publish", ticks=[TRADE] * 700, id=31)
            reply = await talk.ask(action="publish", ticks=[TRADE] * 700, id=32)
            assert (reply["code"], reply["T"]) == (429, "error")
