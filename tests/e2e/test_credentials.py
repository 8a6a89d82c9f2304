"""The page on a server that asks for credentials."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from feed.access.key_file import add_key, revoke_key
from feed.access.keys import Key, hash_secret, make_key_id, make_secret
from tests.e2e.conftest import visiting
from tests.faults.serving import ServerProcess

pytestmark = pytest.mark.usefixtures("market")
ID = make_key_id()
SECRET = make_secret(ID)
ASKED = "document.getElementById('key-dialog').open"
CONNECTED = "document.getElementById('state').textContent === 'Connected'"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    add_key(path, ID, Key(name="desk", hash=hash_secret(SECRET)))
    return path


@pytest_asyncio.fixture
async def closed_site(
    runtime_dir: Path, redis_url: str, keys: Path
) -> AsyncIterator[ServerProcess]:
    server = ServerProcess(runtime_dir / "server.log", redis_url, auth=keys)
    await server.start()
    yield server
    server.kill()


async def test_it_asks_for_a_key(closed_site: ServerProcess, browser: Any, tmp_path: Path) -> None:
    async with visiting(browser, f"{closed_site.http}/?symbol=BOLT") as visit:
        page = visit.page
        await visit.until(ASKED)
        assert "from before" not in await visit.text("banner")
        assert await page.evaluate("document.activeElement.id") == "key-text"
        await page.keyboard.type("tick_000000000000_wrong")
        async with page.expect_navigation():
            await page.keyboard.press("Enter")
        await visit.until(
            f"{ASKED} && document.getElementById('key-why').textContent.includes('rejected')"
        )
        assert await page.evaluate("sessionStorage.length") == 0

        await page.keyboard.type(SECRET)
        async with page.expect_navigation():
            await page.keyboard.press("Enter")
        await visit.until("globalThis.tickcast?.selected.traded > 0")
        await visit.until_drawn()
        assert await visit.text("quote-symbol") == "BOLT"
        assert SECRET not in page.url
        assert await page.evaluate("localStorage.length + document.cookie.length") == 0

        # The key is used for every connection and for HTTP requests.
        await page.click("#encoding button[value=msgpack]")
        await visit.until("tickcast.list.stream.reconnects && tickcast.selected.stream.reconnects")
        await page.click("#rows tr[data-symbol=ACME] .pick")
        await visit.until("tickcast.selected.symbol === 'ACME' && tickcast.selected.traded > 0")
        await page.reload()
        await visit.until_drawn()

        await page.click("#key")
        async with page.expect_navigation():
            await page.click("#key-forget")
        await visit.until(f"globalThis.tickcast && {ASKED}")
        assert await page.evaluate("sessionStorage.length") == 0
        await page.click("#key-cancel")
        assert "a key or a token" in await visit.text("banner")
        assert visit.complaints == []


async def test_a_key_is_shown_again_after_a_restart_and_told_when_revoked(
    closed_site: ServerProcess, browser: Any, keys: Path
) -> None:
    async with visiting(browser, closed_site.http) as visit:
        await visit.until(ASKED)
        await visit.page.fill("#key-text", SECRET)
        async with visit.page.expect_navigation():
            await visit.page.click("#key-form [type=submit]")
        await visit.until("globalThis.tickcast?.selected.traded > 0")
        closed_site.kill()
        await visit.until(f"!({CONNECTED})")
        await closed_site.start()
        await visit.until(CONNECTED)
        await visit.until("tickcast.selected.stream.reconnects === 1")
        revoke_key(keys, ID, datetime.now(UTC))
        await visit.until(ASKED)
        assert "rejected" in await visit.text("key-why")
        assert [each for each in visit.complaints if "WebSocket connection to" not in each] == []


async def test_a_page_that_has_its_key_asks_nothing(
    closed_site: ServerProcess, browser: Any
) -> None:
    """Use the client without the page, with the option `token`."""
    async with visiting(browser, f"{closed_site.http}/static/licences.txt") as visit:
        seen = await visit.page.evaluate(
            """async ([url, token]) => {
              const { connect } = await import("/static/feed.js");
              const seen = [];
              const states = [];
              const onState = ({ name, code }) => states.push([name, code]);
              const onTick = ({ S }) => seen.push(S);
              const stream = connect(url, { onTick, onState }, { token });
              await stream.subscribe({ trades: ["*"] });
              while (seen.length < 5) await new Promise((resolve) => setTimeout(resolve, 20));
              stream.close();
              const without = connect(url, { onState });
              const refused = await without.subscribe({ trades: ["*"] }).catch(String);
              return [states, refused];
            }""",
            [closed_site.stream(), SECRET],
        )
        states, refused = seen
        assert states[:3] == [["connecting", 0], ["connected", 0], ["closed", 0]]
        assert states[-1] == ["closed", 401]
        assert "401 not authenticated" in refused
