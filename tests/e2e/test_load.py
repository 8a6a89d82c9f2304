"""What the page costs under load: 5,000 ticks a second on 200 symbols."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from feed.broker.publisher import Publisher
from tests.e2e.conftest import trading, visiting
from tests.faults.serving import ServerProcess

SYMBOLS, RATE = 200, 5_000
WARM_UP_S = 5.0
WATCH_LONG_TASKS = """
  globalThis.longest = 0;
  new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) longest = Math.max(longest, duration);
  }).observe({ type: "longtask" });
  globalThis.frames = 0;
  const count = () => { frames += 1; requestAnimationFrame(count); };
  requestAnimationFrame(count);
"""


async def figures(devtools: Any) -> dict[str, float]:
    """What the browser has counted; memory after all garbage is gone."""
    await devtools.send("HeapProfiler.collectGarbage")
    answer = await devtools.send("Performance.getMetrics")
    return {each["name"]: each["value"] for each in answer["metrics"]}


async def test_it_keeps_up(
    site: ServerProcess, browser: Any, publisher: Publisher, pytestconfig: pytest.Config
) -> None:
    seconds = pytestconfig.getoption("--e2e-seconds")
    async with trading(publisher, SYMBOLS, RATE), visiting(browser, site.http) as visit:
        await visit.until_drawn()
        await visit.until(f"tickcast.market.instruments.size === {SYMBOLS}")
        await asyncio.sleep(WARM_UP_S)
        devtools = await visit.page.context.new_cdp_session(visit.page)
        # The thread's own time: that of a machine that has other things to do would say nothing.
        await devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = await figures(devtools)
        await visit.page.evaluate(WATCH_LONG_TASKS)
        await asyncio.sleep(seconds)
        longest, frames = await visit.page.evaluate("[longest, frames]")
        after = await figures(devtools)
        spent = after["Timestamp"] - before["Timestamp"]
        busy = (after["TaskDuration"] - before["TaskDuration"]) / spent
        grown = after["JSHeapUsedSize"] - before["JSHeapUsedSize"]
        totals = await visit.page.evaluate("tickcast.watch.stream.totals()")
        print(
            f"\n{spent:.0f} s: main thread {busy:.0%}, longest task {longest:.0f} ms, "
            f"{frames / spent:.0f} frames/s, heap {after['JSHeapUsedSize'] / 1e6:.1f} MB "
            f"({grown / 1e6:+.1f} MB), DOM nodes {after['Nodes'] - before['Nodes']:+.0f}, "
            f"{await visit.text('ticks')} ticks/s, {await visit.text('bytes')}/s, "
            f"delay {await visit.text('p50')} and {await visit.text('p99')}"
        )
        assert totals["balanced"]
        assert busy < 0.5
        assert longest < 200
        assert grown < 5e6
        assert visit.complaints == []
