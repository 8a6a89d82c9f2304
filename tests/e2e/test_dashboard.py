"""The web page in a real browser."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.e2e.conftest import PHONE, Visit, visiting
from tests.faults.serving import ServerProcess
from tickcast.broker.publisher import FeedPublisher
from tickcast.client.stream import connect
from tickcast.wire.ticks import Trade
from tickcast.wire.times import NS_PER_SECOND, Time

pytestmark = pytest.mark.usefixtures("market")
PICTURES = Path(__file__).resolve().parents[2] / "docs" / "images"

CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const linear = [r, g, b].map((each) => {
      const part = each / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const groundOf = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const ground = channels(getComputedStyle(each).backgroundColor);
      if (ground[3] !== 0) return ground;
    }
  };
  const low = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest("#chart, .unseen")) continue;
    const [a, b] = [channels(getComputedStyle(element).color), groundOf(element)].map(luminance);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(`${element.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
  }
  return low;
}"""


async def test_the_first_candle_is_there_soon(site: ServerProcess, browser: Any) -> None:
    async with visiting(browser, site.http) as visit:
        await visit.until_drawn()
        assert await visit.page.evaluate("performance.now()") < 2_000
        await visit.until("document.getElementById('p50').textContent !== '–'")
        assert await visit.text("state") == "Connected"
        assert await visit.text("quote-symbol") == "ACME"
        assert await visit.page.locator("#rows tr").count() == 20
        assert await visit.page.locator("#trades tr").count() > 3
        assert visit.complaints == []


async def test_a_server_is_killed_and_comes_back(site: ServerProcess, browser: Any) -> None:
    async with visiting(browser, site.http) as visit:
        await visit.until_drawn()
        site.kill()
        await visit.until("document.getElementById('state').textContent === 'Reconnecting'", 3_000)
        assert "Connection lost" in await visit.text("banner")
        await asyncio.sleep(2)  # The market trades without a server.
        await site.start()
        await visit.until("document.getElementById('state').textContent === 'Connected'")
        await visit.until("document.getElementById('banner').hidden")
        await visit.until("tickcast.selected.stream.reconnects === 1")
        await same_candles(visit, site)
        totals = await visit.page.evaluate("tickcast.selected.stream.totals()")
        assert totals["balanced"]
        assert totals["gapped"] == totals["skipped"] == 0
        # The browser itself reports failed connections.
        assert [each for each in visit.complaints if "WebSocket connection to" not in each] == []


async def same_candles(visit: Visit, site: ServerProcess) -> None:
    """Check that the candles match all retained trades, up to a moment that has passed."""
    await asyncio.sleep(1.5)
    rows = await visit.page.evaluate("tickcast.selected.candles.rollUp(1)")
    last = rows[-1]["time"] - 1
    drawn = {row["time"]: row["volume"] for row in rows if row["volume"] and row["time"] < last}
    traded: dict[int, float] = {}
    async with connect(site.stream()) as stream:
        await stream.subscribe(trades=["ACME"], start=0)
        async for tick in stream:
            second = tick.time // NS_PER_SECOND
            if second >= last:
                break
            assert isinstance(tick, Trade)
            traded[second] = traded.get(second, 0) + tick.size
    assert drawn == traded
    assert drawn


async def test_the_chart_follows(site: ServerProcess, browser: Any) -> None:
    # Use the least traded symbol, so that some seconds have only quotes.
    async with visiting(browser, f"{site.http}/?symbol=TIDE") as visit:
        await visit.until_drawn()
        await visit.until("tickcast.selected.candles.rollUp(1).length > 10", 40_000)
        assert await visit.page.evaluate("tickcast.chart.isFollowing")
        assert visit.complaints == []


async def test_a_server_that_falls_silent_is_told_of(site: ServerProcess, browser: Any) -> None:
    async with visiting(browser, site.http) as visit:
        await visit.until_drawn()
        site.stop()
        await visit.until("document.getElementById('banner').textContent.startsWith('Stale')")
        site.go_on()
        await visit.until("document.getElementById('banner').hidden")
        await same_candles(visit, site)
        assert visit.complaints == []


async def test_a_tab_sleeps(site: ServerProcess, browser: Any) -> None:
    async with visiting(browser, site.http) as visit:
        await visit.until_drawn()
        devtools = await visit.page.context.new_cdp_session(visit.page)
        await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
        await asyncio.sleep(8)
        await devtools.send("Page.setWebLifecycleState", {"state": "active"})
        await visit.until("document.getElementById('state').textContent === 'Connected'")
        await visit.until("document.getElementById('banner').hidden")
        await same_candles(visit, site)
        assert visit.complaints == []


async def test_the_encoding_can_be_switched(site: ServerProcess, browser: Any) -> None:
    async with visiting(browser, site.http) as visit:
        await visit.until_drawn()
        await visit.page.click("#encoding button[value=msgpack]")
        await visit.until("tickcast.list.stream.reconnects && tickcast.selected.stream.reconnects")
        before = await visit.page.evaluate("tickcast.list.stream.received.ticks")
        await visit.until(f"tickcast.list.stream.received.ticks > {before + 100}")
        await same_candles(visit, site)
        totals = await visit.page.evaluate("tickcast.list.stream.totals()")
        assert totals["balanced"]
        assert parse_qs(urlsplit(visit.page.url).query)["encoding"] == ["msgpack"]
        assert visit.complaints == []


async def test_a_link_shares_a_watchlist(site: ServerProcess, browser: Any) -> None:
    link = f"{site.http}/?symbols=BOLT,ACME&symbol=BOLT&timeframe=5s&sort=-last&theme=light"
    async with visiting(browser, link) as visit:
        page = visit.page
        await visit.until_drawn()
        await visit.until("document.querySelector('#rows').rows.length === 2")
        assert await page.get_attribute("#timeframe [value='5s']", "aria-pressed") == "true"
        assert await page.evaluate("tickcast.chart.step") == 5
        await page.keyboard.press("/")
        await page.keyboard.type("dyna")
        await visit.until("document.getElementById('known').options.length === 20")
        await page.keyboard.press("Enter")
        await visit.until("document.querySelector('#rows').rows.length === 3")
        await visit.until("document.querySelector('#rows tr').dataset.symbol === 'DYNA'")
        assert await visit.text("quote-symbol") == "DYNA"
        await page.click("tr[data-symbol=ACME] .drop")
        await visit.until("document.querySelector('#rows').rows.length === 2")
        query = parse_qs(urlsplit(page.url).query)
        assert (query["symbols"], query["symbol"]) == (["BOLT,DYNA"], ["DYNA"])
        await page.click("#all")
        await visit.until("document.querySelector('#rows').rows.length === 20")
        assert visit.complaints == []


async def test_large_volumes_fit(
    site: ServerProcess, publisher: FeedPublisher, browser: Any
) -> None:
    sizes = {"BIG1": 256_018, "BIG2": 1_234_567, "BIG3": 98_765.4321}
    async with visiting(browser, site.http, viewport={"width": 1100, "height": 800}) as visit:
        await visit.until_drawn()
        now = Time.now()
        await publisher.publish(
            [Trade(symbol=s, price=1, size=n, time=now) for s, n in sizes.items()]
        )
        shown = {}
        for symbol in sizes:
            await visit.until(f"document.querySelector('tr[data-symbol={symbol}] .volume')?.title")
            cell = visit.page.locator(f"tr[data-symbol={symbol}] .volume")
            shown[symbol] = (await cell.text_content(), await cell.get_attribute("title"))
            assert await cell.evaluate("(each) => each.scrollWidth <= each.clientWidth"), symbol
        assert shown == {
            "BIG1": ("256k", "256,018"),
            "BIG2": ("1.2M", "1,234,567"),
            "BIG3": ("98.8k", "98,765.4321"),
        }
        assert visit.complaints == []


async def test_its_client_is_a_module_for_other_pages(site: ServerProcess, browser: Any) -> None:
    async with visiting(browser, f"{site.http}/static/licences.txt") as visit:
        ticks = await visit.page.evaluate(
            """async (url) => {
              const { connect } = await import("/static/feed.js");
              const ticks = [];
              const stream = connect(url, { onTick: (tick) => ticks.push(tick) });
              await stream.subscribe({ trades: ["ACME"], quotes: ["*"] }, { snapshot: true });
              while (ticks.length < 50) await new Promise((resolve) => setTimeout(resolve, 20));
              stream.close();
              return ticks;
            }""",
            site.stream(),
        )
        assert {tick["S"] for tick in ticks if tick["T"] == "t"} == {"ACME"}
        assert ticks[0]["snap"]


async def test_keys(site: ServerProcess, browser: Any) -> None:
    async with visiting(browser, site.http) as visit:
        page = visit.page
        await visit.until_drawn()
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("ArrowDown")
        assert await visit.text("quote-symbol") == "CRUX"
        assert await page.evaluate("document.activeElement.textContent") == "CRUX"
        await page.keyboard.press("3")
        assert await page.get_attribute("#timeframe [value='1m']", "aria-pressed") == "true"
        await visit.until_drawn()
        await same_of(visit, "CRUX")
        await page.keyboard.press("q")
        assert await page.get_attribute("#quotes", "aria-pressed") == "false"
        await page.keyboard.press("t")
        assert await page.get_attribute("html", "data-theme") in ("light", "dark")
        assert visit.complaints == []


async def same_of(visit: Visit, symbol: str) -> None:
    await visit.until(f"tickcast.selected.symbol === '{symbol}' && tickcast.selected.traded > 0")


async def test_a_phone(site: ServerProcess, browser: Any) -> None:
    options = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    async with visiting(browser, site.http, **options) as visit:
        await visit.until_drawn()
        await visit.until("document.querySelector('#rows').rows.length === 20")
        await visit.until("document.querySelector('#trades').rows.length > 0")
        assert await visit.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        for id_ in ("chart", "rows", "trades", "encoding"):
            assert await visit.page.is_visible(f"#{id_}"), id_
        # The header fits on one line.
        tops = "['state', 'theme'].map((id) => document.getElementById(id).offsetTop)"
        state, theme = await visit.page.evaluate(tops)
        assert abs(state - theme) < 20
        small = await visit.page.evaluate(
            "[...document.querySelectorAll('.tools button, .group button, .pick')]"
            ".filter((each) => each.getBoundingClientRect().height < 36).length"
        )
        assert small == 0
        assert visit.complaints == []


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_it_can_be_read(site: ServerProcess, browser: Any, theme: str) -> None:
    async with visiting(browser, f"{site.http}/?theme={theme}") as visit:
        await visit.until_drawn()
        await visit.page.click("summary")
        await visit.until("document.getElementById('p50').textContent !== '–'")
        assert await visit.page.evaluate(CONTRASTS) == []
        unnamed = await visit.page.evaluate(
            "[...document.querySelectorAll('button, input, section, [role=group]')]"
            ".filter((each) => !each.textContent.trim() && !each.getAttribute('aria-label')"
            " && !each.getAttribute('aria-labelledby') && !each.labels?.length).length"
        )
        assert unnamed == 0


@pytest.mark.timeout(180)
async def test_what_the_docs_show(
    site: ServerProcess, browser: Any, pytestconfig: pytest.Config
) -> None:
    if not pytestconfig.getoption("--screenshots"):
        pytest.skip("only with --screenshots")
    PICTURES.mkdir(exist_ok=True)
    for theme in ("light", "dark"):
        async with visiting(browser, f"{site.http}/?theme={theme}") as visit:
            await visit.until_drawn()
            await asyncio.sleep(60 if theme == "light" else 20)
            await visit.page.screenshot(path=PICTURES / f"dashboard-{theme}.png")
    async with visiting(browser, f"{site.http}/?theme=dark", viewport=PHONE) as visit:
        await visit.until_drawn()
        await asyncio.sleep(5)
        await visit.page.screenshot(path=PICTURES / "dashboard-phone.png")
