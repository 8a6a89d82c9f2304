"""Run nginx and Caddy with the configurations of docs/deploy in front of a real server."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
import websockets
from msgspec.structs import replace

from feed.server.app import create_app
from tests.builders import trades
from tests.conftest import RunningServer, running_app, until
from tickcast import connect
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.ticks import Tick

DEPLOY = Path(__file__).resolve().parents[2] / "docs" / "deploy"
PAGE = Path(__file__).resolve().parents[2] / "clients" / "dashboard" / "dist"
CLIENT = "203.0.113.7"
"""An address for documentation (RFC 5737), which a test's client claims in `X-Forwarded-For`."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def nginx(port: int, upstream: str, directory: Path) -> list[str]:
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    text = text.replace("127.0.0.1:8000", upstream)
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port}")
    text = re.sub(r"^ *ssl_.*\n", "", text, flags=re.MULTILINE)
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = directory / "nginx.conf"
    file.write_text(
        f"pid {directory}/nginx.pid;\nerror_log stderr;\ndaemon off;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{text}}}\n"
    )
    return ["nginx", "-p", str(directory), "-c", str(file), "-e", "stderr"]


def caddy(port: int, upstream: str, directory: Path) -> list[str]:
    text = (DEPLOY / "Caddyfile").read_text("utf-8")
    text = text.replace(
        "feed.example.org {", f"http://127.0.0.1:{port}, http://feed.example.org:{port} {{"
    )
    text = text.replace("127.0.0.1:8000", upstream)
    file = directory / "Caddyfile"
    file.write_text("{\n\tadmin off\n\tauto_https off\n}\n" + text)
    return ["caddy", "run", "--adapter", "caddyfile", "--config", str(file)]


Proxy = Callable[[int, str, Path], list[str]]
PROXIES = [
    pytest.param(
        proxy,
        id=proxy.__name__,
        marks=pytest.mark.skipif(not shutil.which(proxy.__name__), reason="not installed"),
    )
    for proxy in (nginx, caddy)
]


@contextlib.asynccontextmanager
async def running(words: list[str], port: int) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                    break
                assert process.returncode is None, "the proxy does not start"
                await asyncio.sleep(0.02)
        yield
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def server(settings: Settings, redis_url: str) -> AsyncIterator[RunningServer]:
    behind = replace(
        settings, trusted_proxies=["127.0.0.1"], hosts=["feed.example.org"],
        unlimited_addresses=[], connections_per_address_max=2,
    )  # fmt: skip
    async with running_app(create_app(behind, redis_url, PAGE), behind) as running_server:
        yield running_server


@pytest.mark.parametrize("proxy", PROXIES)
async def test_the_page_and_streams_work_below_a_prefix(
    proxy: Proxy, server: RunningServer, publisher: FeedPublisher, tmp_path: Path
) -> None:
    port = free_port()
    upstream = server.http.removeprefix("http://")
    base = f"127.0.0.1:{port}/ticks"
    got: list[Tick] = []

    async def read() -> None:
        async with connect(f"ws://{base}/stream") as stream:
            await stream.subscribe(trades=["ES"])
            async for tick in stream:
                got.append(tick)  # noqa: PERF401 - read while the stream goes on

    async with asyncio.TaskGroup() as group:
        async with running(proxy(port, upstream, tmp_path), port):
            async with httpx.AsyncClient(base_url=f"http://{base}") as http:
                page = await http.get("/")
                assert page.status_code == 200
                script = re.findall(r'"(static/[^"]+)"', page.text)[0]
                assert (await http.get(f"/{script}")).status_code == 200
                redirect = await http.get(f"http://{base}")
                assert redirect.headers["location"].endswith("/ticks/")
            reader = group.create_task(read())
            async with asyncio.timeout(10):
                while not got:
                    await publisher.publish(trades(1))
                    await asyncio.sleep(0.05)
        # The proxy is gone: the client reconnects and misses nothing.
        await publisher.publish(trades(5))
        await publisher.flush()
        async with running(proxy(port, upstream, tmp_path), port):
            await publisher.publish(trades(5))
            await publisher.flush()
            last = got[-1].seq
            assert last is not None
            await until(lambda: (got[-1].seq or 0) >= last + 10, 20)
        reader.cancel()
    numbers = [tick.seq or 0 for tick in got]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


@pytest.mark.parametrize("proxy", PROXIES)
async def test_a_client_cannot_claim_another_address(
    proxy: Proxy, server: RunningServer, tmp_path: Path
) -> None:
    port = free_port()
    claim = {"X-Forwarded-For": CLIENT}
    async with running(proxy(port, server.http.removeprefix("http://"), tmp_path), port):
        url = f"ws://127.0.0.1:{port}/ticks/stream"
        async with websockets.connect(url), websockets.connect(url):
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(url, additional_headers=claim)
            assert refused.value.response.status_code == 429
            # The server believes the proxy's own address.
            async with websockets.connect(server.stream, additional_headers=claim):
                pass
