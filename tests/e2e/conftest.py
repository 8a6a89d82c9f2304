"""A real browser and a real server with a simulated market. Skips if Chromium is not installed."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from producers.simulation.synthetic import generate, play, symbol_names
from tests.faults.serving import ServerProcess
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.times import Time

ARGUMENTS: Final = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
DESKTOP: Final = {"width": 1440, "height": 900}
PHONE: Final = {"width": 390, "height": 844}
PATIENCE_MS: Final = 15_000


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("e2e")
    group.addoption("--screenshots", action="store_true", help="renew the pictures in docs/")
    group.addoption("--e2e-seconds", type=float, default=10.0, help="how long the load lasts")
    group.addoption("--e2e-restarts", type=int, default=20, help="how often the server is killed")
    group.addoption("--e2e-trace", metavar="FILE", help="where to trace the page under load")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture
def chromium() -> str:
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium, or name it in CHROMIUM")
    return found


@pytest_asyncio.fixture
async def browser(chromium: str) -> AsyncIterator[Any]:
    playwright = pytest.importorskip("playwright.async_api", reason="make e2e installs it")
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture
async def site(runtime_dir: Path, redis_url: str) -> AsyncIterator[ServerProcess]:
    """A server whose store outlives it."""
    server = ServerProcess(runtime_dir / "server.log", redis_url)
    await server.start()
    yield server
    server.kill()


@asynccontextmanager
async def trading(
    publisher: FeedPublisher, symbols: int = 20, rate: float = 200
) -> AsyncIterator[None]:
    """Publish a simulated market, as `tickcast demo` does."""
    ticks = generate(symbol_names(symbols), rate, seed=7, start=Time.now())
    task = asyncio.create_task(play(ticks, publisher))
    try:
        yield
    finally:
        await cancel_and_wait([task])


@pytest_asyncio.fixture
async def market(publisher: FeedPublisher, settings: Settings) -> AsyncIterator[None]:
    async with trading(publisher):
        yield


@dataclass
class Visit:
    """An open page, and the errors that the browser has reported."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    def hear(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    async def until(self, condition: str, timeout_ms: float = PATIENCE_MS) -> None:
        """Wait for an expression in the page to be true."""
        # The driver's own wait evaluates text inside the page, which the page's policy forbids.
        async with asyncio.timeout(timeout_ms / 1000):
            while not await self.page.evaluate(condition):
                await asyncio.sleep(0.02)

    async def until_drawn(self) -> None:
        await self.until("globalThis.tickcast && document.getElementById('chart-note').hidden")

    async def text(self, id_: str) -> str:
        found: str = await self.page.text_content(f"#{id_}")
        return found


@asynccontextmanager
async def visiting(browser: Any, url: str, **options: Any) -> AsyncIterator[Visit]:
    """Open a page in a browser without any stored state."""
    context = await browser.new_context(**{"viewport": DESKTOP, **options})
    visit = Visit(await context.new_page())
    visit.page.on("console", visit.hear)
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error.stack)))
    await visit.page.goto(url)
    try:
        yield visit
    finally:
        await context.close()
