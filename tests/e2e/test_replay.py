"""The page on a replay's feed: it controls the replay, and starts over after a seek back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from producers.simulation.synthetic import generate, symbol_names
from tests.conftest import ES_TRADES
from tests.e2e.conftest import PHONE, Visit, visiting
from tests.e2e.test_dashboard import CONTRASTS, PICTURES
from tests.faults.children import Child, plain_environment
from tests.faults.serving import ServerProcess
from tickcast.wire.ticks import Quote, Trade
from tickcast.wire.times import NS_PER_SECOND, Time

FIRST_S = 1_378_054_800
LONG_S = 4_000
NOTE = "document.getElementById('replay-note').textContent"
PLAY = "document.getElementById('replay-play').textContent"
WHEN = "document.getElementById('replay-when').textContent"
VOLUME = "tickcast.market.instruments.get('ES').volume"
ROWS = "tickcast.selected.candles.rollUp(1)"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A recording with a trade of size 1 each second; its price is 1000 plus its number."""
    path = tmp_path / "a.csv"
    rows = "".join(f"{FIRST_S + n},ES,{1000 + n},1\n" for n in range(LONG_S))
    path.write_text("time,symbol,price,size\n" + rows)
    return path


@asynccontextmanager
async def replaying(redis_url: str, log: Path, *words: str) -> AsyncIterator[Child]:
    replay = Child("the replay", log)
    command = [sys.executable, "-m", "tickcast", "replay", "--redis", redis_url, *words]
    replay.launch(command, plain_environment())
    try:
        yield replay
    finally:
        replay.kill()


async def until_told(visit: Visit) -> None:
    await visit.until("globalThis.tickcast && !document.getElementById('replay').hidden")


async def scrub(visit: Visit, ratio: float) -> None:
    """Drag the scrubber to a position and release it."""
    box = await visit.page.locator("#replay-at").bounding_box()
    now = float(await visit.page.input_value("#replay-at")) / 1000
    # The middle of the thumb, which is 16 pixels wide, moves from one end to the other.
    across, y = box["width"] - 16, box["y"] + box["height"] / 2
    await visit.page.mouse.move(box["x"] + 8 + now * across, y)
    await visit.page.mouse.down()
    await visit.page.mouse.move(box["x"] + 8 + ratio * across, y, steps=5)
    await visit.page.mouse.up()


async def test_it_is_steered(
    site: ServerProcess, redis_url: str, browser: Any, recording: Path, tmp_path: Path
) -> None:
    words = [str(recording), "--speed", "100", "--stay"]
    async with (
        replaying(redis_url, tmp_path / "replay.log", *words),
        visiting(browser, site.http) as visit,
    ):
        page = visit.page
        await until_told(visit)
        await visit.until(f"{PLAY} === 'Pause'")
        await visit.until_drawn()
        assert await page.input_value("#replay-speed") == "100"
        assert await page.evaluate(CONTRASTS) == []
        await page.keyboard.press(" ")
        await visit.until(f"{PLAY} === 'Play'")
        await page.click("#replay-play")
        await visit.until(f"{PLAY} === 'Pause'")
        await page.select_option("#replay-speed", "1000")
        await visit.until(f"{WHEN} > '2013-09-01 17:20'")

        await page.click("#replay-play")
        await visit.until(f"{PLAY} === 'Play'")
        await scrub(visit, 0.25)
        await visit.until(f"{WHEN} >= '2013-09-01 17:15' && {WHEN} < '2013-09-01 17:18'")
        # Nothing of the previous pass is left, and nothing of this one has arrived.
        await visit.until(f"{ROWS}.length === 0 && {VOLUME} === 0")
        await visit.until("document.querySelector('#trades tr:not([hidden])') === null")

        await page.select_option("#replay-speed", "50")
        await page.click("#replay-play")
        await visit.until(f"{ROWS}.length > 100")
        await one_pass(visit, FIRST_S + 0.25 * LONG_S)
        await scrub(visit, 0.5)
        await visit.until(f"{WHEN} >= '2013-09-01 17:33' && {WHEN} < '2013-09-01 17:40'")
        await visit.until(f"{ROWS}.at(-1).time > {FIRST_S + 0.5 * LONG_S}")
        assert await page.evaluate("tickcast.selected.stream.totals().balanced")
        assert visit.complaints == []


async def one_pass(visit: Visit, began_s: float) -> None:
    """Check that each second since a replay went back has a candle of exactly one trade."""
    rows = [row for row in await visit.page.evaluate(ROWS) if row["volume"]]
    assert abs(rows[0]["time"] - began_s) < 0.01 * LONG_S
    assert [row["volume"] for row in rows] == [1] * len(rows)
    assert [row["close"] - 1000 + FIRST_S for row in rows] == [row["time"] for row in rows]
    assert rows[-1]["time"] - rows[0]["time"] == len(rows) - 1
    assert await visit.page.evaluate(VOLUME) < rows[-1]["time"] - rows[0]["time"] + 300


async def test_a_short_loop_is_never_mixed(
    site: ServerProcess, redis_url: str, browser: Any, tmp_path: Path
) -> None:
    path = tmp_path / "loop.csv"
    rows = "".join(
        f"{FIRST_S + n},{symbol},{1000 + n},5,,\n{FIRST_S + n},{symbol},,,{999 + n},{1001 + n}\n"
        for n in range(60)
        for symbol in ("ES", "NQ")
    )
    path.write_text("time,symbol,price,size,bid,ask\n" + rows)
    async with (
        replaying(redis_url, tmp_path / "replay.log", str(path), "--speed", "100", "--loop"),
        visiting(browser, site.http) as visit,
    ):
        await until_told(visit)
        await visit.until("tickcast.selected.stream.totals().restarts > 20")
        # Holding a key down does not send more requests than the server accepts.
        await visit.page.focus("#replay-at")
        for _ in range(40):
            await visit.page.keyboard.press("ArrowRight")
        await visit.page.keyboard.press(" ")
        await visit.until(f"{PLAY} === 'Play'")
        for row in await visit.page.evaluate(ROWS):
            number = row["time"] - FIRST_S
            assert row["volume"] in (0, 5)
            assert row["close"] == 1000 + number or isnan(row["close"])
            assert row["mid"] == 1000 + number or isnan(row["mid"])
        assert await visit.page.evaluate(VOLUME) <= 300
        for stream in ("tickcast.list.stream", "tickcast.selected.stream"):
            assert await visit.page.evaluate(f"{stream}.totals().balanced")
            assert await visit.page.evaluate(f"{stream}.reconnects") == 0
        # In the list the space bar must not press a button.
        await visit.page.click("#rows tr[data-symbol=NQ] .pick")
        await visit.page.keyboard.press(" ")
        await visit.until(f"{PLAY} === 'Pause'")
        assert await visit.text("quote-symbol") == "NQ"
        assert visit.complaints == []


async def test_at_full_speed_the_figures_stay(
    site: ServerProcess, redis_url: str, browser: Any, recording: Path, tmp_path: Path
) -> None:
    words = [str(recording), "--speed", "100", "--loop"]
    async with (
        replaying(redis_url, tmp_path / "replay.log", *words),
        visiting(browser, site.http) as visit,
    ):
        await until_told(visit)
        await visit.until_drawn()
        await visit.page.select_option("#replay-speed", "max")
        restarts = "tickcast.list.stream.totals().restarts"
        await visit.until(f"{restarts} > 3")
        shown: set[str] = set()
        while await visit.page.evaluate(restarts) < 20:
            shown.add(await visit.text("quote-last"))
            shown.add(await visit.page.inner_text("tr[data-symbol=ES] .last"))
        assert len(shown) > 3
        assert "–" not in shown
        assert visit.complaints == []


async def test_a_paused_replay_is_sent_forward(
    site: ServerProcess, redis_url: str, browser: Any, recording: Path, tmp_path: Path
) -> None:
    words = [str(recording), "--speed", "50", "--stay"]
    async with (
        replaying(redis_url, tmp_path / "replay.log", *words),
        visiting(browser, site.http) as visit,
    ):
        await until_told(visit)
        await visit.until_drawn()
        await visit.page.keyboard.press(" ")
        await visit.until(f"{PLAY} === 'Play'")
        await scrub(visit, 0.5)
        await visit.until(f"{ROWS}.length === 0")
        await visit.until("document.querySelector('#trades tr:not([hidden])') === null")
        await visit.until("document.getElementById('quote-last').textContent === '–'")
        assert "Paused at 17:33" in await visit.text("chart-note")
        assert await visit.text("trades-note") == await visit.text("chart-note")
        await visit.page.keyboard.press(" ")
        await visit.until(f"{ROWS}.length > 100")
        await one_pass(visit, FIRST_S + 0.5 * LONG_S)
        assert visit.complaints == []


async def test_where_clients_may_not_steer_it_is_read_only(
    runtime_dir: Path, redis_url: str, browser: Any, recording: Path, tmp_path: Path
) -> None:
    site = ServerProcess(runtime_dir / "server.log", redis_url, steer_replays="false")
    await site.start()
    try:
        async with (
            replaying(redis_url, tmp_path / "replay.log", str(recording), "--speed", "10"),
            visiting(browser, f"{site.http}/?theme=dark") as visit,
        ):
            await until_told(visit)
            await visit.until(f"{PLAY} === 'Pause'")
            await visit.page.click("#replay-play")
            await visit.until(f"{NOTE}.startsWith('Read-only: ')")
            for id_ in ("replay-play", "replay-speed", "replay-at"):
                assert await visit.page.is_disabled(f"#{id_}")
            assert await visit.page.evaluate(CONTRASTS) == []
            before = await visit.text("replay-when")
            await visit.until(f"{WHEN} > '{before}'")
            assert visit.complaints == []
    finally:
        site.kill()


async def test_one_that_dies_is_told_of(
    site: ServerProcess, redis_url: str, browser: Any, recording: Path, tmp_path: Path
) -> None:
    async with (
        replaying(redis_url, tmp_path / "replay.log", str(recording)) as replay,
        visiting(browser, site.http) as visit,
    ):
        await until_told(visit)
        replay.kill()
        await visit.until(f"{NOTE}.startsWith('No message from the replay')")
        assert await visit.page.is_disabled("#replay-play")
        assert visit.complaints == []


async def test_on_a_phone(
    site: ServerProcess, redis_url: str, browser: Any, recording: Path, tmp_path: Path
) -> None:
    options = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    async with (
        replaying(redis_url, tmp_path / "replay.log", str(recording), "--speed", "10"),
        visiting(browser, site.http, **options) as visit,
    ):
        await until_told(visit)
        await visit.until_drawn()
        assert await visit.page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        for id_ in ("replay-play", "replay-speed", "replay-at"):
            box = await visit.page.locator(f"#{id_}").bounding_box()
            assert box["height"] >= 36, id_
        await visit.page.tap("#replay-play")
        await visit.until(f"{PLAY} === 'Play'")
        assert visit.complaints == []


@pytest.mark.timeout(180)
async def test_what_the_docs_show(
    site: ServerProcess, redis_url: str, browser: Any, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    if not pytestconfig.getoption("--screenshots"):
        pytest.skip("only with --screenshots")
    path = tmp_path / "market.csv"
    path.write_text("time,symbol,price,size,side,bid,ask\n" + "".join(market_rows(seconds=600)))
    async with (
        replaying(redis_url, tmp_path / "replay.log", str(path), "--speed", "5"),
        visiting(browser, f"{site.http}/?theme=light&symbol=ACME") as visit,
    ):
        await until_told(visit)
        await visit.until_drawn()
        await asyncio.sleep(62)  # until the small charts are full
        await visit.page.screenshot(path=PICTURES / "dashboard-replay.png")


def market_rows(seconds: int) -> Iterator[str]:
    """Return a simulated market as rows of a recording."""
    start = Time(FIRST_S * NS_PER_SECOND)
    for tick in generate(symbol_names(16), rate=100, seed=7, start=start):
        if tick.time > start + seconds * NS_PER_SECOND:
            return
        time = tick.time.rfc3339()
        if isinstance(tick, Trade):
            yield f"{time},{tick.symbol},{tick.price},{tick.size},{tick.side or ''},,\n"
        elif isinstance(tick, Quote):
            yield f"{time},{tick.symbol},,,,{tick.bid_price},{tick.ask_price}\n"


def at_s(time: str) -> float:
    return datetime.fromisoformat(f"2013-09-03T{time}:00+00:00").timestamp()


@pytest.mark.skipif(not ES_TRADES.exists(), reason="the recorded data is not here")
async def test_real_trades(
    site: ServerProcess, redis_url: str, browser: Any, tmp_path: Path
) -> None:
    words = [str(ES_TRADES), "--symbol", "ES", "--speed", "100", "--from", "2013-09-03T12:30:00Z"]
    async with (
        replaying(redis_url, tmp_path / "replay.log", *words),
        visiting(browser, site.http) as visit,
    ):
        await until_told(visit)
        await visit.until_drawn()
        await scrub(visit, 0.5)
        await visit.until(f"{WHEN} > '2013-09-03 13:05'")
        await scrub(visit, 0.2)
        await visit.until(f"{WHEN} < '2013-09-03 13:00'")
        await visit.until(f"{ROWS}.length > 20 && {ROWS}.at(-1).time < {at_s('13:00')}")
        rows = await visit.page.evaluate(ROWS)
        assert rows[0]["time"] >= at_s("12:45")
        await visit.until("[...document.querySelectorAll('#trades tr:not([hidden]) .time')]"
                          ".every((cell) => cell.textContent < '13:00')")  # fmt: skip
        assert visit.complaints == []
