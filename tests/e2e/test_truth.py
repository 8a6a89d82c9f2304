"""The page never shows stale data as live, and shows every price in full."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import pytest
from redis.asyncio import Redis

from tests.e2e.conftest import PHONE, Visit, trading, visiting
from tests.faults.serving import ServerProcess
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store
from tickcast.tasks import cancel_and_wait
from tickcast.wire.ticks import Quote, StreamKey, Tick, Trade
from tickcast.wire.times import Time

FRESH_S: Final = 4.0
"""By this time after a restart, everything must be live or marked as not live."""
PRICES: Final = {"BTC": 97_140.45, "PEPE": 4e-7, "FLOKI": 2.59e-7, "EUR": 1.08123, "BRK": 612_345.0}
SHOWN: Final = {
    "BTC": "97,140.45", "PEPE": "0.0000004", "FLOKI": "0.000000259", "EUR": "1.08123",
    "BRK": "612,345.00",
}  # fmt: skip
WIDTHS: Final = (360, 390, 768, 1080, 1280, 1366, 1440, 1920, 2560, 3840)
CUT: Final = """() => [...document.querySelectorAll("#rows td, #trades td, .quote .big, .quote dd")]
  .filter((each) => each.checkVisibility() && each.scrollWidth > each.clientWidth)
  .map((each) => `${each.className} ${each.textContent}`)"""
OLD_S: Final = 3.2
"""Older data must be marked as old: three seconds, plus a quarter between two page checks."""
LOOK: Final = """() => {
  const stale = (name) => document.getElementById("main").dataset[name] === "true";
  const { list, selected } = tickcast;
  return {
    state: document.getElementById("state").textContent,
    panel: document.getElementById("panel-state").textContent,
    banner: document.getElementById("banner").textContent.trim(),
    list: list.stream.position("trades", "ACME").seq,
    chart: selected.stream.position("trades", "ACME").seq,
    drawn: document.querySelector("#trades tr:not([hidden]) .time")?.textContent,
    latest: selected.recent.slice(-40).map(({ t }) => t),
    staleList: stale("staleList"),
    staleChart: stale("staleChart"),
  };
}"""


async def look(visit: Visit) -> dict[str, Any]:
    seen: dict[str, Any] = await visit.page.evaluate(LOOK)
    return seen


def check_truth(seen: dict[str, Any], seq: int) -> None:
    """Check that green means complete up to a number, and that missing parts are dimmed."""
    assert seen["state"] == seen["panel"]
    if seen["state"] == "Connected":
        assert min(seen["list"], seen["chart"]) >= seq, seen
        assert any(seen["drawn"][:8] in each for each in seen["latest"]), seen
    else:
        assert seen["banner"], seen
    assert seen["list"] >= seq or seen["staleList"], seen
    assert seen["chart"] >= seq or seen["staleChart"], seen


@pytest.mark.timeout(900)
async def test_restarts(
    site: ServerProcess,
    publisher: FeedPublisher,
    redis: Redis,
    browser: Any,
    pytestconfig: pytest.Config,
) -> None:
    """Four seconds after a server is back, all is live unless the page says that it is not."""
    store = Store(redis)
    restarts = pytestconfig.getoption("--e2e-restarts")
    live = 0
    async with trading(publisher), visiting(browser, f"{site.http}/?symbol=ACME") as visit:
        await visit.until_drawn()
        await visit.until("document.getElementById('state').textContent === 'Connected'")
        for number in range(restarts):
            site.kill()
            await visit.until("document.getElementById('state').textContent !== 'Connected'", 2000)
            await asyncio.sleep(0.4 * (number % 6))
            await site.start()
            await asyncio.sleep(FRESH_S - OLD_S)
            (head,) = await store.heads([StreamKey("live", "trades", "ACME")])
            await asyncio.sleep(OLD_S)
            seen = await look(visit)
            check_truth(seen, head.seq)
            live += seen["state"] == "Connected"
            await visit.until("document.getElementById('state').textContent === 'Connected'")
        # When one connection is back, the other one reconnects without waiting for its next
        # attempt.
        assert live >= 0.75 * restarts


async def test_a_chart_that_gets_nothing_is_not_live(
    site: ServerProcess, publisher: FeedPublisher, browser: Any
) -> None:
    async with trading(publisher), visiting(browser, f"{site.http}/?symbol=ACME") as visit:
        await visit.until_drawn()
        await visit.page.evaluate("""() => {
          const { list, selected } = tickcast;
          selected.stream.position = (...of) => ({ ...list.stream.position(...of), seq: 1 });
        }""")
        await visit.until("document.getElementById('state').textContent === 'Stale'")
        assert "chart is catching up" in await visit.text("banner")
        seen = await look(visit)
        assert (seen["staleList"], seen["staleChart"]) == (False, True)


async def test_while_redis_stands_still_the_page_tells_how_old_it_is(
    site: ServerProcess, publisher: FeedPublisher, redis: Redis, browser: Any
) -> None:
    store = (await redis.info("server"))["process_id"]
    async with trading(publisher), visiting(browser, f"{site.http}/?symbol=ACME") as visit:
        await visit.until_drawn()
        loop = asyncio.get_running_loop()
        os.kill(store, signal.SIGSTOP)
        began = loop.time()
        try:
            await visit.until("document.getElementById('state').textContent === 'Stale'", 6_000)
            assert await visit.page.get_attribute("#main", "data-stale-list") == "true"
            assert await visit.page.get_attribute("#main", "data-stale-chart") == "true"
            await asyncio.sleep(2)
            told_s = float((await visit.text("banner")).partition("you see is ")[2].split()[0])
            assert abs(told_s - (loop.time() - began)) < 1.7
        finally:
            os.kill(store, signal.SIGCONT)
        await visit.until("document.getElementById('state').textContent === 'Connected'")
        assert visit.complaints == []


@asynccontextmanager
async def quoting(publisher: FeedPublisher) -> AsyncIterator[None]:
    """Publish each of the prices, again and again."""

    async def publish() -> None:
        while True:
            now = Time.now()
            ticks: list[Tick] = []
            for symbol, price in PRICES.items():
                ticks.append(Trade(symbol=symbol, price=price, size=12.5, time=now))
                ticks.append(Quote(symbol=symbol, bid_price=price, bid_size=1, ask_price=price,
                                   ask_size=1, time=now))  # fmt: skip
            await publisher.publish(ticks)
            await asyncio.sleep(0.2)

    task = asyncio.create_task(publish())
    try:
        yield
    finally:
        await cancel_and_wait([task])


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_prices_are_whole(
    site: ServerProcess, publisher: FeedPublisher, browser: Any, theme: str
) -> None:
    async with (
        quoting(publisher),
        visiting(browser, f"{site.http}/?symbol=BTC&theme={theme}") as visit,
    ):
        await visit.until("globalThis.tickcast?.market.instruments.size === 5")
        for symbol in SHOWN:
            await visit.page.click(f"tr[data-symbol={symbol}] .pick")
            await visit.until_drawn()
            for width in WIDTHS:
                await visit.page.set_viewport_size({"width": width, "height": 900})
                await visit.until(
                    f"tickcast.selected.symbol === '{symbol}' && tickcast.selected.traded"
                )
                await asyncio.sleep(0.15)
                assert await visit.page.evaluate(CUT) == [], (symbol, width)
                assert await visit.page.evaluate("document.documentElement.scrollWidth") == width
                assert await visit.text("quote-last") == SHOWN[symbol]
                for other, shown in SHOWN.items():
                    row = visit.page.locator(f"tr[data-symbol={other}] .last")
                    assert await row.text_content() == shown
            assert SHOWN[symbol] in await visit.text("legend")
        assert visit.complaints == []


async def test_the_crosshair_shows_the_candle_under_the_mouse(
    site: ServerProcess, publisher: FeedPublisher, browser: Any
) -> None:
    async with trading(publisher), visiting(browser, f"{site.http}/?symbol=ACME") as visit:
        await visit.until_drawn()
        await visit.until("tickcast.selected.candles.rollUp(1).length > 12", 40_000)
        box = await visit.page.locator("#chart").bounding_box()
        plot = "document.querySelector('#chart td:nth-child(2)').clientWidth"
        # Ten candles of 7 pixels before the last one, which has room for four more to its right.
        x = box["x"] + await visit.page.evaluate(plot) - 14 * 7
        await visit.page.mouse.move(x, box["y"] + box["height"] / 2)
        for _ in range(5):
            await asyncio.sleep(0.4)
            legend = await visit.text("legend")
            candles = await visit.page.evaluate("tickcast.selected.candles.rollUp(1)")
            shown = [figures(candle) for candle in candles[-14:-6]]
            assert legend.partition("  V")[0] in shown, (legend, shown)
        await visit.page.mouse.move(box["x"] + 5, box["y"] - 40)
        await visit.until(f"document.getElementById('legend').textContent !== {legend!r}")
        assert visit.complaints == []


def figures(candle: dict[str, float]) -> str:
    names = ("open", "high", "low", "close")
    return "  ".join(f"{each[0].upper()}\xa0{candle[each]:,.2f}" for each in names)


async def test_another_encoding_loses_nothing(
    site: ServerProcess, publisher: FeedPublisher, browser: Any
) -> None:
    async with trading(publisher, rate=500), visiting(browser, site.http) as visit:
        await visit.until_drawn()
        for number, encoding in enumerate(["msgpack", "json", "msgpack"], 1):
            await visit.page.click(f"#encoding button[value={encoding}]")
            for each in ("list", "selected"):
                await visit.until(f"tickcast.{each}.stream.reconnects === {number}")
            await asyncio.sleep(1)
        assert await visit.text("gaps") == "0"
        assert await visit.text("account") == "each accounted for"
        assert visit.complaints == []


async def test_the_past_is_not_counted_as_ticks_a_second(
    site: ServerProcess, publisher: FeedPublisher, browser: Any
) -> None:
    now = Time.now()
    await publisher.publish([Trade(symbol="ACME", price=1, size=1, time=now) for _ in range(8_000)])
    await asyncio.sleep(1.2)
    async with trading(publisher, rate=50), visiting(browser, f"{site.http}/?symbol=ACME") as visit:
        await visit.until("globalThis.tickcast?.selected?.traded >= 8000")
        shown = []
        for _ in range(12):
            await asyncio.sleep(0.3)
            shown.append(float((await visit.text("ticks")).replace(",", "")))
        assert 0 < max(shown) < 500


async def test_what_is_entered(site: ServerProcess, publisher: FeedPublisher, browser: Any) -> None:
    async with trading(publisher), visiting(browser, site.http) as visit:
        page = visit.page
        await visit.until_drawn()
        await page.keyboard.press("/")
        await page.keyboard.type("bolt")
        await page.keyboard.press("Enter")
        assert await visit.text("quote-symbol") == "BOLT"
        assert await page.evaluate("document.activeElement.textContent") == "BOLT"
        await page.keyboard.press("ArrowDown")
        assert await visit.text("quote-symbol") == "CRUX"
        await page.keyboard.press("/")
        await page.keyboard.type("nosuch")
        await page.keyboard.press("Enter")
        assert await visit.text("remark") == "There is no symbol “nosuch” in feed “live”."
        assert await page.is_visible("#remark")
        # The text stays, so that it can be corrected.
        assert await page.input_value("#search") == "nosuch"
        assert await page.evaluate("document.activeElement.id") == "search"
        await page.keyboard.press("Backspace")
        assert await page.is_hidden("#remark")
        await page.keyboard.press("Escape")
        assert await page.evaluate("document.activeElement.tagName") == "BODY"
        assert visit.complaints == []


async def test_what_is_entered_into_a_list_of_ones_own(
    site: ServerProcess, publisher: FeedPublisher, browser: Any
) -> None:
    link = f"{site.http}/?symbols=ACME"
    async with trading(publisher), visiting(browser, link, viewport=PHONE) as visit:
        await visit.until_drawn()
        await visit.page.focus("#search")
        await visit.until("document.getElementById('known').options.length > 0")
        for text, told in [
            ("A B", "can't be a symbol"),
            ("NEW", "It has no ticks yet"),
        ]:
            await visit.page.fill("#search", text)
            await visit.page.keyboard.press("Enter")
            assert told in await visit.text("remark")
        await visit.until("document.querySelector('#rows').rows.length === 2")
        assert visit.complaints == []


async def test_feeds_that_show_nothing(
    site: ServerProcess, publisher: FeedPublisher, browser: Any
) -> None:
    async with trading(publisher):
        async with visiting(browser, f"{site.http}/?feed=N%20Y%3C") as visit:
            assert "“N Y<” can't be the name of a feed" in await visit.text("banner-text")
            assert "Reload" not in await visit.text("banner-text")
            await visit.page.click("#banner-feed")
            await visit.until_drawn()
        async with visiting(browser, f"{site.http}/?feed=") as visit:
            await visit.until_drawn()
            assert await visit.text("feed-name") == "live"
        async with visiting(browser, f"{site.http}/?feed=paper") as visit:
            await visit.until("!document.getElementById('note').hidden")
            assert "“tickcast synth --feed paper”" in await visit.text("note")
            assert visit.complaints == []


async def test_a_feed_that_the_server_does_not_have(
    runtime_dir: Any, redis_url: str, browser: Any
) -> None:
    site = ServerProcess(runtime_dir / "server.log", redis_url, feeds="live,paper")
    await site.start()
    try:
        async with visiting(browser, f"{site.http}/?feed=nyse") as visit:
            await visit.until(
                "document.getElementById('banner-text').textContent.includes('no feed')"
            )
            assert await visit.text("state") == "Disconnected"
    finally:
        site.kill()


@asynccontextmanager
async def below(prefix: str, port: int) -> AsyncIterator[str]:
    """A proxy that serves a local port below a prefix, which it strips."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(strip(data))
                await writer.drain()
        writer.close()

    def strip(data: bytes) -> bytes:
        start = f"GET {prefix}/".encode()
        if data.startswith(start):
            return b"GET /" + data.removeprefix(start)
        return data.replace(b"GET /", b"GET /nothing/", 1) if data.startswith(b"GET /") else data

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer))

    async with await asyncio.start_server(meet, "127.0.0.1", 0) as proxy:
        yield f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}{prefix}/"


async def test_below_a_prefix(site: ServerProcess, publisher: FeedPublisher, browser: Any) -> None:
    async with (
        trading(publisher),
        below("/tick", site.port) as url,
        visiting(browser, f"{url}?symbols=ACME") as visit,
    ):
        await visit.until_drawn()
        await visit.until("document.getElementById('state').textContent === 'Connected'")
        await visit.page.focus("#search")
        await visit.until("document.getElementById('known').options.length > 0")
        assert visit.page.url.startswith(url)
        assert visit.complaints == []
