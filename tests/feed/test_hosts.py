"""Host names that a server accepts. Others may come from pages that were bound to its address."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from msgspec.structs import replace
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.conftest import RunningServer, running_server
from tests.talk import talking
from tickcast.settings import Settings, load_settings
from tickcast.wire.addresses import is_allowed_host
from tickcast.wire.errors import InvalidSettings


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8000", True),
        ("10.1.2.3:8000", True),
        ("[::1]:8000", True),
        ("[::1]", True),
        ("localhost", True),
        ("LOCALHOST.:8000", True),
        ("feed.localhost:8000", True),
        ("feed:8000", True),
        ("", True),
        ("rebound.example", False),
        ("rebound.example:8000", False),
        ("127.0.0.1.rebound.example", False),
        ("localhost.rebound.example", False),
        ("notlocalhost.example", False),
        ("1.2.3", False),
        ("[::1", False),
    ],
)
def test_names_that_nobody_can_take(host: str, known: bool) -> None:
    assert is_allowed_host(host, ()) is known


@pytest.mark.parametrize(
    ("pattern", "host", "known"),
    [
        ("feed.example.org", "feed.example.org", True),
        ("feed.example.org", "FEED.example.org.:443", True),
        ("feed.example.org", "x.feed.example.org", False),
        ("*.example.org", "feed.example.org:443", True),
        ("*.example.org", "example.org", False),
        ("*.example.org", "feedexample.org", False),
        ("*", "any.thing", True),
    ],
)
def test_names_that_are_configured(pattern: str, host: str, known: bool) -> None:
    assert is_allowed_host(host, [pattern]) is known


@pytest.mark.parametrize("name", ["", "http://x", "a b", "x:80", "*x.org", "a.*", "-a.org"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidSettings, match="hosts: "):
        load_settings(None, {}, hosts=[name])


def address_of(server: RunningServer) -> dict[str, Any]:
    """Return the address to connect to, regardless of the host in a URL."""
    parts = urlsplit(server.http)
    return {"host": parts.hostname, "port": parts.port}


ROUTES = ("/", "/symbols", "/snapshot?symbols=*", "/tapes", "/metrics", "/stream", "/v2/x", "/no")


async def test_a_page_that_was_rebound_reads_nothing(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"Host": "rebound.example:8000", "Origin": "http://rebound.example:8000"}
    async with httpx.AsyncClient(base_url=server.http, headers=headers) as client:
        for route in ROUTES:
            answer = await client.get(route)
            assert answer.status_code == 403, route
            assert answer.text == (
                "the server is not known by the name 'rebound.example:8000';"
                " the setting hosts adds names\n"
            )
            assert "content-security-policy" in answer.headers
        for route in ("/health", "/ready"):
            assert (await client.get(route)).status_code == 200
    with pytest.raises(InvalidStatus) as refused:
        async with connect("ws://rebound.example/stream", **address_of(server)):
            pass
    assert refused.value.response.status_code == 403
    lines = [each for each in caplog.records if each.getMessage() == "refused: host"]
    assert len(lines) == len(ROUTES) + 1
    assert "rebound.example" in lines[0].__dict__["detail"]
    assert "setting hosts" in lines[0].__dict__["detail"]


async def test_a_name_that_is_configured_is_served(settings: Settings, redis_url: str) -> None:
    named = replace(settings, hosts=("feed.example.org",), host=("::", "feed.lan"))
    async with (
        running_server(named, redis_url) as server,
        httpx.AsyncClient(base_url=server.http) as client,
        talking("ws://feed.example.org/stream", **address_of(server)),
    ):
        known = ("feed.example.org", "feed.lan:8000", "x")
        for host, status in (*((host, 200) for host in known), ("rebound.example", 403)):
            assert (await client.get("/symbols", headers={"Host": host})).status_code == status


async def test_where_credentials_are_needed_a_name_gives_nothing(
    settings: Settings, redis_url: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text("")
    closed = replace(settings, auth=str(keys))
    for hosts, status in (((), 401), (("feed.example.org",), 403)):
        async with (
            running_server(replace(closed, hosts=hosts), redis_url) as server,
            httpx.AsyncClient(base_url=server.http) as client,
        ):
            answer = await client.get("/symbols", headers={"Host": "rebound.example"})
            assert answer.status_code == status
