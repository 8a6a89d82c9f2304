"""What the page costs under load: 5,000 ticks a second on 200 symbols."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Visit, trading, visiting
from tests.e2e.profiling import CATEGORIES, costs
from tests.faults.serving import ServerProcess
from tickcast.broker.publisher import FeedPublisher

SYMBOLS, RATE = 200, 5_000
WARM_UP_S = 5.0
#: The page's figures of the last minute take that minute to fill.
WINDOW_S = 60.0
WEIGHINGS = 10
FRAMES_S = 5.0
TRACE_S = 5.0
#: The browser's counters, by its name for each.
SPENT = {
    "main thread": "TaskDuration",
    "scripts": "ScriptDuration",
    "layout": "LayoutDuration",
    "style": "RecalcStyleDuration",
}
WATCH_LONG_TASKS = """
  globalThis.longest = 0;
  new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) longest = Math.max(longest, duration);
  }).observe({ type: "longtask" });
"""
COUNT_FRAMES = """
  globalThis.frames = 0;
  const count = () => { frames += 1; requestAnimationFrame(count); };
  requestAnimationFrame(count);
"""


async def figures(devtools: Any) -> dict[str, float]:
    """Return the browser's counters; memory is measured after a full garbage collection."""
    await devtools.send("HeapProfiler.collectGarbage")
    answer = await devtools.send("Performance.getMetrics")
    return {each["name"]: each["value"] for each in answer["metrics"]}


@pytest.mark.timeout(900)
async def test_it_keeps_up(
    site: ServerProcess, browser: Any, publisher: FeedPublisher, pytestconfig: pytest.Config
) -> None:
    seconds = pytestconfig.getoption("--e2e-seconds")
    trace = pytestconfig.getoption("--e2e-trace")
    async with trading(publisher, SYMBOLS, RATE), visiting(browser, site.http) as visit:
        await visit.until_drawn()
        await visit.until(f"tickcast.market.instruments.size === {SYMBOLS}")
        await asyncio.sleep(WARM_UP_S if seconds < WINDOW_S else WINDOW_S)
        devtools = await visit.page.context.new_cdp_session(visit.page)
        # Use the thread's own time: wall-clock time says nothing on a machine that is also doing
        # other work.
        await devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = await figures(devtools)
        await visit.page.evaluate(WATCH_LONG_TASKS)
        heaps = [before["JSHeapUsedSize"]]
        for _ in range(WEIGHINGS):
            await asyncio.sleep(seconds / WEIGHINGS)
            heaps.append((await figures(devtools))["JSHeapUsedSize"])
        longest = await visit.page.evaluate("longest")
        after = await figures(devtools)
        passed = after["Timestamp"] - before["Timestamp"]
        spent = {each: (after[name] - before[name]) / passed for each, name in SPENT.items()}
        totals = await visit.page.evaluate("tickcast.list.stream.totals()")
        print(
            f"\n{passed:.0f} s: {', '.join(f'{each} {part:.0%}' for each, part in spent.items())}, "
            f"longest task {longest:.0f} ms, {await frames_per_second(visit):.0f} frames/s, "
            f"heap {', '.join(f'{each / 1e6:.2f}' for each in heaps)} MB, "
            f"DOM nodes {after['Nodes'] - before['Nodes']:+.0f}, "
            f"{await visit.text('ticks')} ticks/s, {await visit.text('bytes')}/s, "
            f"delay {await visit.text('p50')} and {await visit.text('p99')}"
        )
        if trace:
            await tell_costs(browser, visit, Path(trace))
        assert totals["balanced"]
        assert spent["main thread"] < 0.5
        assert longest < 200
        assert max(heaps) - min(heaps) < 2e6
        assert visit.complaints == []


async def frames_per_second(visit: Visit) -> float:
    """Measure the possible frame rate, separately because requesting each frame has a cost."""
    await visit.page.evaluate(COUNT_FRAMES)
    began = await visit.page.evaluate("performance.now()")
    await asyncio.sleep(FRAMES_S)
    ended, frames = await visit.page.evaluate("[performance.now(), frames]")
    return float(1000 * frames / (ended - began))


async def tell_costs(browser: Any, visit: Visit, path: Path) -> None:
    await visit.page.reload()
    await visit.until_drawn()
    await asyncio.sleep(WARM_UP_S)
    await browser.start_tracing(page=visit.page, path=path, categories=CATEGORIES)
    await asyncio.sleep(TRACE_S)
    await browser.stop_tracing()
    split = ", ".join(f"{kind} {part:.1%}" for kind, part in costs(path).items())
    print(f"traced, which costs something itself: {split}; more in {path}")
