"""The example of a page on another origin."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from feed.commands.serve import DASHBOARD
from tests.conftest import running_server
from tests.e2e.conftest import visiting
from tickcast.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "examples" / "page.html"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[str]:
    """Serve the page and a copy of the client from another origin."""
    shutil.copy(PAGE, tmp_path)
    shutil.copy(DASHBOARD / "feed.js", tmp_path)
    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


async def test_a_page_of_another_origin_shows_prices(
    browser: Any, elsewhere: str, settings: Settings, redis_url: str, market: None
) -> None:
    friendly = replace(settings, origins=(elsewhere,))
    async with running_server(friendly, redis_url) as server:
        url = f"{elsewhere}/page.html?url={server.stream}"
        async with visiting(browser, url) as visit:
            await visit.until("document.querySelectorAll('#prices tr').length === 20")
            assert await visit.text("state") == "connected"
            assert not [
                each for each in visit.complaints if "favicon" not in each and "404" not in each
            ]
