"""The modules that a tick and a subscribe pass, as docs/architecture.md lists them."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from tests.builders import trade
from tests.conftest import RunningServer
from tests.talk import talking
from tickcast.broker.client import make_client
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.wire.ticks import DEFAULT_FEED

ROOT = Path(__file__).resolve().parents[2]
# The function of the hub that a subscribe leads to.
HUB = ("feed.fanout.hub", "prepare")
# Other tasks of the server run at the same time. What they pass differs between rounds.
ROUNDS = 5


def documented(heading: str) -> list[str]:
    page = (ROOT / "docs/architecture.md").read_text("utf-8")
    part = page.partition(f"**{heading}**")[2].partition("\n\n**")[0].partition("\n## ")[0]
    return re.findall(r"^\d+\. `([a-z_.]+)`", part, re.MULTILINE)


@contextmanager
def tracing(until: Callable[[str, str], bool] = lambda module, name: False) -> Iterator[set[str]]:
    """Collect the modules of functions that are called in this thread, up to a certain one."""
    modules: set[str] = set()
    is_over = False

    def profile(frame: FrameType, event: str, _arg: object) -> None:
        nonlocal is_over
        module = str(frame.f_globals.get("__name__"))
        if event == "call" and not is_over and module.startswith(("feed.", "tickcast.")):
            is_over = until(module, frame.f_code.co_name)
            if not is_over:
                modules.add(module)

    sys.setprofile(profile)
    try:
        yield modules
    finally:
        sys.setprofile(None)


async def test_a_tick_passes_the_documented_modules(
    server: RunningServer, settings: Settings, redis_url: str
) -> None:
    def publish() -> None:  # In another thread, which is not traced.
        async def publish_one() -> None:
            redis = make_client(redis_url)
            async with FeedPublisher(redis, DEFAULT_FEED, settings) as publisher:
                await publisher.publish([trade()])
            await redis.aclose()

        asyncio.run(publish_one())

    rounds = []
    async with talking(server.stream) as client:
        await client.ask(action="subscribe", trades=["ES"])
        await asyncio.to_thread(publish)
        await client.ticks(1)
        for _ in range(ROUNDS):
            with tracing() as modules:
                await asyncio.to_thread(publish)
                await client.ticks(1)
            rounds.append(modules)
    listed = documented("A tick passes")
    assert set.intersection(*rounds) == set(listed)
    assert len(listed) <= 10


async def test_a_subscribe_passes_the_documented_modules(server: RunningServer) -> None:
    rounds = []
    async with talking(server.stream) as first:
        await first.ask(action="subscribe", trades=["ES"])
        for _ in range(ROUNDS):
            async with talking(server.stream) as client:
                with tracing(lambda module, name: (module, name) == HUB) as modules:
                    await client.ask(action="subscribe", trades=["ES"])
                rounds.append(modules)
    listed = documented("A subscribe passes")
    # On the way, the hub is only asked whether the stream is open.
    assert set.intersection(*rounds) - {HUB[0]} == set(listed)
    assert len(listed) <= 12
