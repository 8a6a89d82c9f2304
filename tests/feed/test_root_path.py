"""Serving below a path prefix, for proxies that pass it on."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from feed.server.app import create_app
from tests.builders import trade
from tests.conftest import RunningServer, running_app
from tickcast import connect
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings, load_settings
from tickcast.wire.errors import InvalidSettings

PAGE = Path(__file__).resolve().parents[2] / "clients" / "dashboard" / "dist"


@pytest.fixture
async def server(settings: Settings, redis_url: str) -> AsyncIterator[RunningServer]:
    below = replace(settings, root_path="/market/ticks")
    async with running_app(create_app(below, redis_url, PAGE), below) as running:
        yield running


async def test_everything_is_below_the_prefix(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=f"{server.http}/market/ticks") as http:
        page = await http.get("/")
        assert page.status_code == 200
        for file in re.findall(r'"(static/[^"]+)"', page.text):
            assert (await http.get(f"/{file}")).status_code == 200
        for path in ("/health", "/ready", "/symbols", "/metrics"):
            assert (await http.get(path)).status_code == 200
        ticks = [{"T": "t", "S": "ES", "p": 1, "s": 1}] * 2000
        assert (await http.post("/v1/publish", json=ticks)).json() == {"published": 2000}
        assert (await http.get("/elsewhere")).status_code == 404
        redirect = await http.get(f"{server.http}/market/ticks")
        assert (redirect.status_code, redirect.headers["location"]) == (308, "/market/ticks/")


async def test_a_stream_below_the_prefix(server: RunningServer, publisher: FeedPublisher) -> None:
    async with connect(f"{server.ws}/market/ticks/stream") as stream:
        await stream.subscribe(trades=["ES"])
        await publisher.publish([trade("ES")])
        assert (await anext(stream)).symbol == "ES"


async def test_probes_work_without_the_prefix(server: RunningServer) -> None:
    async with httpx.AsyncClient(base_url=server.http) as http:
        assert (await http.get("/ready")).status_code == 200


@pytest.mark.parametrize("path", ["ticks", "/", "/ticks/", "//ticks", "/a b", "/ticks?x", "/é"])
def test_other_prefixes_are_refused(path: str) -> None:
    with pytest.raises(InvalidSettings, match=r"root_path: .* is not a path such as /ticks"):
        load_settings(environment={}, root_path=path)
