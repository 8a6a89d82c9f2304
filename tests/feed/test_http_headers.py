"""Headers of HTTP responses: what they tell browsers, and what they do not disclose."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from feed.server.app import create_app
from feed.server.engine import Engine
from feed.server.running import server_config
from feed.server.sockets import address_of, bind
from tests.conftest import QuietServer
from tickcast.settings import Settings

SOURCES = Path(__file__).resolve().parents[2] / "clients" / "dashboard"
DASHBOARD = SOURCES / "dist"
ALWAYS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@pytest_asyncio.fixture
async def address(settings: Settings, redis_url: str) -> AsyncIterator[str]:
    """The address of a server with the page at `/`."""
    started = asyncio.Event()
    with bind("127.0.0.1", 0) as listener:
        app = create_app(settings, redis_url, DASHBOARD)
        server = QuietServer(server_config(app, settings), started.set)
        task = asyncio.create_task(server.serve([listener]))
        await started.wait()
        url = address_of(listener)
        async with httpx.AsyncClient(base_url=url) as http, asyncio.timeout(10):
            while (await http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.01)
        yield url
        server.should_exit = True
        await task


def check(headers: httpx.Headers) -> None:
    """Check the headers that every response has, each exactly once."""
    assert {name: headers.get(name) for name in ALWAYS} == ALWAYS
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) <= {"'self'", "'none'"}
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "camera=()" in headers["permissions-policy"]
    for name in (*ALWAYS, "content-security-policy", "permissions-policy", "cache-control"):
        assert len(headers.get_list(name)) == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "cache"),
    [
        ("GET", "/", 200, "no-cache"),
        ("GET", "/static/page.js", 200, "no-cache"),
        ("GET", "/static/", 404, "no-store"),
        ("GET", "/health", 200, "no-store"),
        ("HEAD", "/ready", 200, "no-store"),
        ("GET", "/metrics", 200, "no-store"),
        ("GET", "/symbols", 200, "no-store"),
        ("GET", "/snapshot?symbols=*", 200, "no-store"),
        ("GET", "/snapshot", 400, "no-store"),
        ("GET", "/stream", 426, "no-store"),
        ("GET", "/nowhere", 404, "no-store"),
        ("POST", "/health", 405, "no-store"),
    ],
)
async def test_every_response_has_security_headers(
    address: str, method: str, path: str, status: int, cache: str
) -> None:
    async with httpx.AsyncClient(base_url=address) as http:
        reply = await http.request(method, path)
    assert reply.status_code == status
    assert reply.headers["cache-control"] == cache
    check(reply.headers)


async def test_a_304_has_security_headers(address: str) -> None:
    async with httpx.AsyncClient(base_url=address) as http:
        first = await http.get("/static/page.css")
        again = await http.get("/static/page.css", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    check(again.headers)


async def test_only_refused_handshakes_have_security_headers(address: str) -> None:
    url = address.replace("http", "ws", 1)
    async with connect(url + "/stream") as socket:
        assert socket.response is not None
        names = {name.lower() for name in socket.response.headers}
    assert not names & {*ALWAYS, "content-security-policy", "permissions-policy", "cache-control"}
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url + "/nowhere"):
            pass
    assert caught.value.response.status_code == 404
    check(httpx.Headers(list(caught.value.response.headers.raw_items())))


async def test_a_bug_is_answered_without_a_traceback_and_logged_once(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(engine: Engine) -> bytes:
        raise ZeroDivisionError("a secret of the inside")

    monkeypatch.setattr("feed.server.metrics._render", broken)
    async with httpx.AsyncClient(base_url=address) as http:
        reply = await http.get("/metrics")
        assert (await http.get("/health")).status_code == 200
    assert (reply.status_code, reply.text) == (500, "Internal Server Error")
    assert reply.headers["content-type"].startswith("text/plain")
    check(reply.headers)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


class _Inline(HTMLParser):
    """Find what a policy without 'unsafe-inline' forbids, and everything that is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.forbidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in given):
            self.forbidden.append(tag)
        self.forbidden += [name for name in given if name == "style" or name.startswith("on")]
        if tag in ("script", "link", "img"):
            self.loaded.append(given.get("src") or given.get("href") or "")


def test_the_page_keeps_to_the_policy() -> None:
    page = _Inline()
    page.feed((DASHBOARD / "index.html").read_text("utf-8"))
    assert page.forbidden == []
    assert page.loaded
    assert all(path.startswith("static/") for path in page.loaded)
    for script in [*SOURCES.glob("*.js"), *SOURCES.glob("feed/*.js")]:
        text = script.read_text("utf-8")
        assert not re.search(r"\beval\(|new Function|innerHTML|setAttribute\(.style", text)
    assert "url(" not in (DASHBOARD / "page.css").read_text("utf-8")
