"""Proxies from the environment: not used for this machine, and named in errors."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from feed.access.tokens import RemoteKeys
from producers.venues.client import VenueClient
from producers.venues.registry import VENUES
from tests.conftest import RunningServer
from tickcast.client.connection import ServerAddress, describe_proxy, open_connection, proxy_for
from tickcast.client.stream import connect
from tickcast.venues import TickKinds
from tickcast.wire.errors import ConnectionFailed, VenueRefused
from tickcast.wire.ticks import Tick

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy", "socks_proxy")
PROXIES = ("http://user:swordfish@127.0.0.1:9", "socks5h://user:swordfish@127.0.0.1:9")


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(params=PROXIES, ids=["http", "socks"])
def proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A proxy configured for all URLs, on an address where nothing listens."""
    for name in VARIABLES:
        monkeypatch.setenv(name, request.param)
        monkeypatch.setenv(name.upper(), request.param)
    return str(request.param)


@pytest.mark.parametrize(
    ("url", "direct"),
    [
        *((url, True) for url in ("ws://127.0.0.1:8000/stream", "ws://localhost:8000/stream")),
        *((url, True) for url in ("wss://[::1]/stream", "ws://127.9.9.9/", "ws://0.0.0.0:8000/")),
        *(
            (url, False)
            for url in ("wss://example.org/stream", "ws://10.0.0.1/", "ws://[fd00::1]/")
        ),
    ],
)
def test_loopback_is_reached_directly(proxy: str, url: str, direct: bool) -> None:
    assert proxy_for(url) == (None if direct else proxy)


def test_no_proxy_is_respected(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "example.org")
    assert proxy_for("wss://example.org/stream") is None


def test_no_proxy_has_no_description() -> None:
    assert describe_proxy(proxy_for("wss://example.org/stream")) == ""


async def test_clients_reach_a_server_here(proxy: str, server: RunningServer) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe({"trades": ["ES"]})


async def test_a_client_error_names_the_proxy(proxy: str) -> None:
    with pytest.raises(ConnectionFailed) as caught:
        await open_connection(ServerAddress("ws://example.invalid/stream", {}), "tickcast.v1.json")
    kind = proxy.partition(":")[0]
    what = {"http": "the proxy does not answer", "socks5h": "a SOCKS proxy takes another package: "}
    assert str(caught.value).startswith(
        f"ws://example.invalid/stream (through the proxy {kind}://127.0.0.1:9): {what[kind]}"
    )
    assert "swordfish" not in str(caught.value)


async def test_a_producer_error_names_the_proxy(
    proxy: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def publish(ticks: list[Tick]) -> None:
        raise AssertionError

    client = VenueClient(
        VENUES["coinbase"], ["BTC-USD"], TickKinds(True, True), publish, url="ws://example.invalid/"
    )  # fmt: skip
    running = asyncio.ensure_future(client.follow_markets())
    if proxy.startswith("socks"):
        with pytest.raises(VenueRefused, match=r"proxy socks5h://127\.0\.0\.1:9\): a SOCKS proxy"):
            await asyncio.wait_for(running, 10)
        return
    async with asyncio.timeout(10):
        while "connection lost" not in caplog.text:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait([running])
    reason = caplog.records[-1].__dict__["reason"]
    assert reason.endswith(" (through the proxy http://127.0.0.1:9)")


class Issuer(BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, bytes]]

    def do_GET(self) -> None:
        status, body = self.answers[self.path]
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/keys")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def issuer() -> Iterator[str]:
    """The address of a server that publishes a key."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    jwk = jwt.algorithms.ECAlgorithm.to_jwk(key, as_dict=True) | {"kid": "one", "alg": "ES256"}
    Issuer.answers = {
        "/keys": (200, json.dumps({"keys": [jwk]}).encode()),
        "/moved": (302, b""),
        "/list": (200, b"[]"),
        "/long": (200, b" " * 2_000_000 + b"{}"),
        "/error": (500, b""),
    }
    with HTTPServer(("127.0.0.1", 0), Issuer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_keys_of_tokens_are_fetched_from_this_machine(proxy: str, issuer: str) -> None:
    keys = RemoteKeys(f"{issuer}/keys")
    assert keys.cached("one") is None
    assert keys.fetch("one") is keys.cached("one")


@pytest.mark.parametrize("path", ["moved", "list", "long", "error"])
def test_responses_without_keys(issuer: str, path: str, caplog: pytest.LogCaptureFixture) -> None:
    keys = RemoteKeys(f"{issuer}/{path}")
    with pytest.raises(Exception, match="its issuer does not publish"):
        keys.fetch("one")
    assert "can't fetch the keys of tokens: " in caplog.text


def test_the_log_names_a_failing_proxy(proxy: str, caplog: pytest.LogCaptureFixture) -> None:
    keys = RemoteKeys("https://example.invalid/keys")
    with pytest.raises(Exception, match="its issuer does not publish"):
        keys.fetch("one")
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "through the proxy" in record.getMessage()
    assert "swordfish" not in record.getMessage()
