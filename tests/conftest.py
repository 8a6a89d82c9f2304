"""Fixtures: a real store and a real server, on uvloop as in production."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any

import hypothesis
import msgspec
import pytest
import pytest_asyncio
import uvloop
from redis.asyncio import Redis
from starlette.types import ASGIApp

from feed.server.app import create_app
from feed.server.running import FeedServer, server_config
from feed.server.sockets import address_of, bind
from feed.transport.tls import (
    CertificateFiles,
    certificate_of,
    provide_self_signed,
)
from producers.simulation.synthetic import generate, play, symbol_names
from tickcast.broker.client import make_client
from tickcast.broker.embedded import provided_store
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.ticks import DEFAULT_FEED
from tickcast.wire.times import Time

# Under nohup, the tests and the commands that they start would ignore it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
ES_TRADES = DATA / "es-trades.csv.gz"

# A busy machine must not fail a property test. `make faults` selects the thorough profile.
hypothesis.settings.register_profile("tickcast", deadline=None, max_examples=50)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=500)
hypothesis.settings.load_profile("tickcast")


UNLIMITED: Any = {
    "messages_per_s": 1e6,
    "messages_burst": 1_000_000,
    "frames_per_s": 1e6,
    "frames_burst": 1_000_000,
}
"""Most tests are not about message rates, and some send fast."""


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """A directory whose path is short enough for a unix socket."""
    with tempfile.TemporaryDirectory(prefix="tc", dir="/tmp") as directory:
        yield Path(directory) / "rt"


@pytest.fixture
def settings(runtime_dir: Path) -> Settings:
    return Settings(runtime_dir=str(runtime_dir), **UNLIMITED)


@pytest.fixture
def pair(tmp_path: Path) -> CertificateFiles:
    """A self-signed certificate with its key."""
    return provide_self_signed(tmp_path)


@pytest.fixture
def secure(settings: Settings, pair: CertificateFiles) -> Settings:
    """The settings of a server that uses this certificate for TLS."""
    return msgspec.structs.replace(settings, tls_cert=str(pair.cert), tls_key=str(pair.key))


@pytest_asyncio.fixture
async def redis_url(settings: Settings) -> AsyncIterator[str]:
    """The URL of a real store that is empty at the start of this test."""
    async with provided_store(settings) as url:
        yield url


@pytest_asyncio.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = make_client(redis_url)
    yield client
    await client.aclose()


@pytest_asyncio.fixture
async def publisher(redis: Redis, settings: Settings) -> AsyncIterator[FeedPublisher]:
    async with FeedPublisher(redis, DEFAULT_FEED, settings) as publisher:
        yield publisher


@dataclass(frozen=True)
class RunningServer:
    """The addresses of a server under test."""

    http: str
    server: FeedServer

    @property
    def app_state(self) -> dict[str, Any]:
        """The state that the application's lifespan creates."""
        state: dict[str, Any] = self.server.lifespan.state
        return state

    @property
    def ws(self) -> str:
        return self.http.replace("http", "ws", 1)

    @property
    def stream(self) -> str:
        return self.ws + "/stream"


class QuietServer(FeedServer):
    """A uvicorn server that leaves the test runner's signal handlers alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def running_app(
    app: ASGIApp, settings: Settings, port: int = 0
) -> AsyncIterator[RunningServer]:
    """Run any application on the real server, in this process."""
    started = asyncio.Event()
    certificate = certificate_of(settings)
    with bind("127.0.0.1", port) as listener:
        config = server_config(app, settings)
        server = QuietServer(config, started.set, certificate, settings.handshake_timeout_s)
        task = asyncio.create_task(server.serve([listener]))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if task.done():
            task.result()
        try:
            yield RunningServer(address_of(listener, tls=certificate is not None), server)
        finally:
            server.should_exit = True
            await task


def running_server(
    settings: Settings, redis_url: str, port: int = 0, metrics_listener: socket | None = None
) -> contextlib.AbstractAsyncContextManager[RunningServer]:
    """Run the real server on a free port, in this process."""
    app = create_app(settings, redis_url, metrics_listener=metrics_listener)
    return running_app(app, settings, port)


@pytest_asyncio.fixture
async def server(settings: Settings, redis_url: str) -> AsyncIterator[RunningServer]:
    async with running_server(settings, redis_url) as running:
        yield running


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Wait for a condition, polling it often."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@pytest_asyncio.fixture
async def market(publisher: FeedPublisher) -> AsyncIterator[None]:
    """A simulated market that has been open for a while."""
    symbols = symbol_names(5)
    past = generate(symbols, 500, 1, Time.now())
    await publisher.publish([next(past) for _ in range(3000)])
    await publisher.flush()
    now = generate(symbols, 500, 2, Time.now())
    task = asyncio.create_task(play(now, publisher))
    yield
    await cancel_and_wait([task])
