"""Admission, rights and expiry of clients: the real server, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from feed.access.authenticator import Authenticator
from feed.access.entitlements import Grant
from feed.access.key_file import add_key, revoke_key
from feed.access.keys import Key, hash_secret, make_key_id, make_secret
from tests.conftest import RunningServer, running_server, until
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.ticks import Trade
from tickcast.wire.times import Time

ID = make_key_id()
SECRET = make_secret(ID)
TOKEN_SECRET = "0123456789abcdef0123456789abcdef"
BEARER = {"Authorization": f"Bearer {SECRET}"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    add_key(path, ID, Key(name="desk", hash=hash_secret(SECRET), channels=("trades",),
                          symbols=("BTC-*",), max_connections=2))  # fmt: skip
    return path


@pytest.fixture
def guarded(settings: Settings, keys: Path, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "jwt").write_text(TOKEN_SECRET)
    return {
        "runtime_dir": settings.runtime_dir,
        "auth": str(keys),
        "jwt_key": str(tmp_path / "jwt"),
        "jwt_audience": "feed",
    }


def token(**claims: Any) -> str:
    body = {"sub": "desk", "aud": "feed", "exp": time.time() + 60} | claims
    return jwt.encode(body, TOKEN_SECRET, "HS256")


def trade(symbol: str) -> Trade:
    return Trade(symbol=symbol, price=1, size=1, time=Time(1))


@contextlib.asynccontextmanager
async def client(
    server: RunningServer, headers: dict[str, str] | None = None, **options: Any
) -> AsyncIterator[ClientConnection]:
    async with connect(server.stream, additional_headers=headers, **options) as socket:
        assert await hear(socket) == {"T": "success", "msg": "connected"}
        yield socket


async def hear(socket: ClientConnection) -> dict[str, Any]:
    (message,) = json.loads(await asyncio.wait_for(socket.recv(), 10))
    assert isinstance(message, dict)
    return message


async def ask(socket: ClientConnection, **action: Any) -> dict[str, Any]:
    await socket.send(json.dumps(action))
    return await hear(socket)


async def close_code(socket: ClientConnection, within_s: float = 10) -> int | None:
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(within_s):
            while True:
                await socket.recv()
    return socket.close_code


async def refusal(server: RunningServer, **options: Any) -> tuple[int, str | None]:
    with pytest.raises(InvalidStatus) as refused:
        async with connect(server.stream, **options):
            pass
    response = refused.value.response
    return response.status_code, response.headers.get("Retry-After")


# -- credentials


async def test_credentials_come_with_the_handshake_or_the_first_message(
    guarded: dict[str, Any], redis_url: str
) -> None:
    async with running_server(Settings(**guarded), redis_url) as server:
        alpaca = {"APCA-API-KEY-ID": ID, "APCA-API-SECRET-KEY": SECRET}
        for headers in (BEARER, alpaca, {"Authorization": f"Bearer {token()}"}):
            async with client(server, headers) as socket:
                assert (await ask(socket, action="subscribe", trades=["BTC-USD"]))["trades"]
        for words in ({"key": ID, "secret": SECRET}, {"token": token()}, {"token": SECRET}):
            async with client(server) as socket:
                assert (await ask(socket, action="list", id=1))["code"] == 401
                said = await ask(socket, action="auth", id=2, **words)
                assert said == {"T": "success", "msg": "authenticated", "id": 2}
                assert (await ask(socket, action="list"))["T"] == "subscription"


async def test_bad_credentials_are_refused(guarded: dict[str, Any], redis_url: str) -> None:
    bad_tokens = [token(exp=time.time() - 1), token(aud="other"), "a.b.c",
                  jwt.encode({"aud": "feed"}, TOKEN_SECRET, "HS256"),
                  jwt.encode({"aud": "feed", "exp": time.time() + 9}, "", "none")]  # fmt: skip
    async with running_server(Settings(**guarded), redis_url) as server:
        for bad in (*bad_tokens, make_secret(ID)):
            headers = {"Authorization": f"Bearer {bad}"}
            assert (await refusal(server, additional_headers=headers))[0] == 401
            async with client(server) as socket:
                assert (await ask(socket, action="auth", token=bad))["code"] == 402
                assert await close_code(socket) == 4001
        assert not server.app_state["engine"].hub.groups


async def test_clients_that_do_not_authenticate_are_closed(
    guarded: dict[str, Any], redis_url: str
) -> None:
    quick = Settings(**guarded, auth_timeout_s=0.2)
    async with running_server(quick, redis_url) as server, client(server) as socket:
        assert (await hear(socket))["code"] == 404
        assert await close_code(socket) == 4002


async def test_uncovered_symbols_are_409_and_wildcards_are_narrowed(
    guarded: dict[str, Any], redis_url: str, publisher: FeedPublisher
) -> None:
    async with running_server(Settings(**guarded), redis_url) as server:
        async with client(server, BEARER) as socket:
            for outside in ({"trades": ["BTC-USD", "ETH-USD"]}, {"quotes": ["BTC-USD"]},
                            {"trades": ["ETH-*"]}):  # fmt: skip
                assert (await ask(socket, action="subscribe", **outside))["code"] == 409
            assert (await ask(socket, action="list"))["trades"] == []
            assert (await ask(socket, action="subscribe", trades=["*"]))["trades"] == ["*"]
            await publisher.publish([trade("ETH-USD"), trade("BTC-USD"), trade("BTC-EUR")])
            await publisher.flush()
            heard: set[str] = set()
            while len(heard) < 2:
                heard |= {tick["S"] for tick in json.loads(await socket.recv())}
            assert heard == {"BTC-USD", "BTC-EUR"}
        async with httpx.AsyncClient(base_url=server.http, headers=BEARER) as http:
            assert {each["S"] for each in (await http.get("/symbols")).json()} == heard
            found = (await http.get("/snapshot?symbols=BTC-USD,ETH-USD")).json()
            assert [each["S"] for each in found] == ["BTC-USD"]
            assert (await http.get("/symbols", headers={"Authorization": ""})).status_code == 401


async def test_a_revoked_key_ends_its_connections(
    guarded: dict[str, Any], redis_url: str, keys: Path
) -> None:
    async with running_server(Settings(**guarded), redis_url) as server:
        async with (
            client(server, BEARER) as socket,
            client(server, {"Authorization": f"Bearer {token()}"}) as other,
        ):
            revoke_key(keys, ID, datetime.now(UTC))
            assert (await asyncio.wait_for(hear(socket), 10))["code"] == 402
            assert await close_code(socket) == 4001
            assert (await ask(other, action="list"))["T"] == "subscription"
        assert (await refusal(server, additional_headers=BEARER))[0] == 401
        keys.write_text("broken [")
        await asyncio.sleep(0)
        async with client(server, {"Authorization": f"Bearer {token()}"}):
            pass


async def test_a_bug_with_one_client_does_not_stop_checks_of_other_grants(
    guarded: dict[str, Any], redis_url: str, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = Authenticator.renewed
    calls = 0

    def fail_once(gate: Authenticator, grant: Grant) -> Grant | None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ValueError("a bug")
        return renewed(gate, grant)

    async with (
        running_server(Settings(**guarded), redis_url) as server,
        client(server, BEARER) as one,
        client(server, BEARER) as another,
    ):
        monkeypatch.setattr(Authenticator, "renewed", fail_once)
        revoke_key(keys, ID, datetime.now(UTC))
        codes = sorted([(await hear(each))["code"] for each in (one, another)])
        assert codes == [402, 500]
        assert server.app_state["engine"].tasks.restarts["key_watcher"] == 0


async def test_a_token_ends_and_is_renewed(guarded: dict[str, Any], redis_url: str) -> None:
    async with running_server(Settings(**guarded), redis_url) as server:
        brief = {"Authorization": f"Bearer {token(exp=time.time() + 3)}"}
        async with client(server, brief) as ends, client(server, brief) as goes_on:
            began = time.monotonic()
            await ask(ends, action="subscribe", trades=["A"])
            assert (await ask(goes_on, action="subscribe", trades=["A", "B"]))["trades"]
            longer = token(symbols=["A"])
            assert (await ask(goes_on, action="auth", token=longer))["msg"] == "authenticated"
            assert (await hear(goes_on))["trades"] == ["A"]
            assert (await ask(goes_on, action="auth", token=token(sub="x")))["code"] == 403
            assert (await hear(ends))["code"] == 402
            assert await close_code(ends) == 4001
            assert time.monotonic() - began < 10  # not the default of an hour
            assert (await ask(goes_on, action="list"))["trades"] == ["A"]


# -- numbers and rates


async def test_connections_of_a_key_are_limited_across_servers(
    guarded: dict[str, Any], redis_url: str
) -> None:
    async with (
        running_server(Settings(**guarded), redis_url) as one,
        running_server(Settings(**guarded), redis_url) as two,
    ):
        async with client(one, BEARER), client(two) as second:
            assert (await ask(second, action="auth", token=SECRET))["T"] == "success"
            for server in (one, two):
                assert (await refusal(server, additional_headers=BEARER)) == (429, "5")
                async with client(server) as third:
                    assert (await ask(third, action="auth", token=SECRET))["code"] == 406
                    assert await close_code(third) == 4004
        await until(lambda: not one.app_state["engine"].admission._connections.count(f"key:{ID}"))
        async with client(two, BEARER):
            pass


async def test_a_client_that_leaves_during_its_check_is_not_counted(
    guarded: dict[str, Any], redis_url: str
) -> None:
    async with running_server(Settings(**guarded), redis_url) as server:
        for _ in range(3):
            async with client(server) as socket:
                await socket.send(json.dumps({"action": "auth", "token": SECRET}))
        # It accepts two at a time, so it would be full.
        seats = server.app_state["engine"].admission._connections
        await until(lambda: not server.app_state["engine"].sessions)
        await until(lambda: not seats.count(f"key:{ID}"))
        async with client(server, BEARER), client(server, BEARER):
            pass


async def test_full_servers_and_addresses_send_retry_after(
    settings: Settings, redis_url: str
) -> None:
    small = Settings(runtime_dir=settings.runtime_dir, connections_max=2)
    async with running_server(small, redis_url) as server, client(server), client(server):
        assert await refusal(server) == (503, "5")
    strict = Settings(
        runtime_dir=settings.runtime_dir, unlimited_addresses=(), connections_per_address_max=1
    )
    async with running_server(strict, redis_url) as server, client(server):
        assert await refusal(server) == (429, "5")


async def test_attempts_of_an_address_count_across_servers(
    settings: Settings, redis_url: str
) -> None:
    strict = Settings(
        runtime_dir=settings.runtime_dir, unlimited_addresses=(), attempts="4/minute",
        trusted_proxies=("127.0.0.1",),
    )  # fmt: skip
    async with (
        running_server(strict, redis_url) as one,
        running_server(strict, redis_url) as two,
    ):
        for server in (one, two, one, two):
            async with client(server):
                pass
        status, retry_after = await refusal(one)
        assert status == 429
        assert retry_after is not None
        assert 1 <= int(retry_after) <= 60
        async with client(two, {"X-Forwarded-For": "192.0.2.1"}):
            pass


@pytest.mark.parametrize(
    ("origin", "is_welcome"),
    [
        ("{own}", True),
        ("https://example.org", True),
        ("http://example.org", False),
        ("https://example.org:8443", False),
        ("https://example.org.evil.net", False),
        ("https://a.example.com", True),
        ("https://example.com", False),
        ("null", False),
    ],
)
async def test_pages_of_other_origins_may_not_connect(
    settings: Settings, redis_url: str, origin: str, is_welcome: bool
) -> None:
    choosy = Settings(
        runtime_dir=settings.runtime_dir, origins=("https://example.org", "https://*.example.com")
    )
    async with running_server(choosy, redis_url) as server:
        options: dict[str, Any] = {"origin": origin.format(own=server.http)}
        if is_welcome:
            async with client(server, **options):
                pass
        else:
            assert (await refusal(server, **options))[0] == 403


async def test_a_refused_origin_is_named_in_the_log(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    origin = "https://evil.example\x9b31m" + 200 * "x"
    assert (await refusal(server, additional_headers={"Origin": origin}))[0] == 403
    (record,) = [each for each in caplog.records if each.name == "tickcast.security"]
    detail = record.__dict__["detail"]
    assert detail.startswith(r"pages of 'https://evil.example\x9b31mxxx")
    assert len(detail) < 250


async def test_a_client_over_its_rate_gets_errors_and_then_is_cut(
    settings: Settings, redis_url: str
) -> None:
    plain = Settings(runtime_dir=settings.runtime_dir)
    async with running_server(plain, redis_url) as server, client(server) as socket:
        codes = []
        with contextlib.suppress(ConnectionClosed):
            for number in range(200):
                said = await ask(socket, action="ping", id=number)
                codes.append(said.get("code", said["T"]))
        assert codes[:20] == ["pong"] * 20
        assert set(codes[25:]) == {429}
        assert await close_code(socket) == 4101


@pytest.mark.parametrize(
    "flood",
    [
        b"\x89\x80\0\0\0\0" * 10_000,
        b"\x01\x80\0\0\0\0" + b"\x00\x80\0\0\0\0" * 10_000,
        b"\x8a\x80\0\0\0\0" * 10_000,
    ],
    ids=["pings", "empty fragments", "pongs"],
)
async def test_a_flood_of_frames_is_cut(settings: Settings, redis_url: str, flood: bytes) -> None:
    plain = Settings(runtime_dir=settings.runtime_dir)
    async with running_server(plain, redis_url) as server, client(server) as socket:
        socket.transport.write(flood)
        assert await close_code(socket, within_s=2) in (4101, 1006)
        assert server.app_state["engine"].hub.counters.closed[4101] == 1


async def test_a_flood_of_wrong_secrets_does_not_block_valid_ones(
    guarded: dict[str, Any], redis_url: str
) -> None:
    settings = Settings(**guarded, trusted_proxies=("127.0.0.1",), requests_per_s=1000)
    async with (
        running_server(settings, redis_url) as server,
        httpx.AsyncClient(base_url=server.http, limits=httpx.Limits(), timeout=20) as http,
    ):

        async def status(secret: str, address: str) -> tuple[int, str | None]:
            headers = {"Authorization": f"Bearer {secret}", "X-Forwarded-For": address}
            answer = await http.get("/symbols", headers=headers)
            return answer.status_code, answer.headers.get("retry-after")

        wrong = [make_secret(ID) for _ in range(150)]
        asked = [
            asyncio.create_task(status(each, f"192.0.2.{number}"))
            for number, each in enumerate(wrong)
        ]
        # An unknown client receives "try again", and does so.
        seen: list[int] = []
        async with asyncio.timeout(20):
            while 200 not in seen:
                seen.append((await status(SECRET, "198.51.100.1"))[0])
                await asyncio.sleep(0.1)
        assert set(seen) <= {200, 503}
        # The secret is known now, from any address.
        assert await status(SECRET, "198.51.100.2") == (200, None)
        answers = set(await asyncio.gather(*asked))
        assert answers == {(401, None), (503, "1")}


async def test_auth_on_a_socket_may_get_try_again(
    guarded: dict[str, Any], redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_server(Settings(**guarded), redis_url) as server, client(server) as socket:
        monkeypatch.setattr("feed.access.authenticator._PER_ADDRESS_MAX", 0)
        said = await ask(socket, action="auth", token=SECRET, id=1)
        assert (said["code"], said["id"]) == (429, 1)
        assert "try again" in said["msg"]
        monkeypatch.undo()
        assert (await ask(socket, action="auth", token=SECRET))["msg"] == "authenticated"


async def test_too_many_pending_handshakes_get_503_with_retry_after(
    settings: Settings, redis_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not wait for Redis; those that do wait are admitted once it answers."""
    monkeypatch.setattr("feed.access.admission._PENDING_MAX", 5)
    async with running_server(settings, redis_url) as server, contextlib.AsyncExitStack() as stack:
        admission = server.app_state["engine"].admission
        pid = (await redis.info("server"))["process_id"]
        os.kill(pid, signal.SIGSTOP)
        try:
            waiting = [
                asyncio.create_task(stack.enter_async_context(client(server))) for _ in "12345"
            ]
            await until(lambda: admission._pending == 5)
            status, retry_after = await refusal(server)
            assert status == 503
            assert retry_after in ("1", "2", "3")
        finally:
            os.kill(pid, signal.SIGCONT)
        await asyncio.gather(*waiting)
        await until(lambda: admission._pending == 0)
        async with client(server):
            assert server.app_state["refused"]["busy"] == 1
