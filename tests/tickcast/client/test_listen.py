from __future__ import annotations

import asyncio

import pytest

from tests.builders import quote, trade
from tests.conftest import RunningServer
from tickcast import connect, listen
from tickcast.broker.publisher import FeedPublisher
from tickcast.wire.ticks import Bar, Quote, Trade


class Enough(Exception):
    pass


async def test_each_kind_has_its_callback(server: RunningServer, publisher: FeedPublisher) -> None:
    seen: list[object] = []

    async def on_trade(tick: Trade) -> None:
        await asyncio.sleep(0)
        seen.append(tick.id)

    def on_quote(tick: Quote) -> None:
        seen.append(tick.symbol)
        raise Enough

    def on_bar(tick: Bar) -> None:
        raise AssertionError

    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"])
        await publisher.publish([trade(id=1), trade(id=2)])
        await publisher.flush()
        await stream.subscribe(quotes=["ES"])
        await publisher.publish([quote()])
        with pytest.raises(Enough):
            await listen(stream, on_trade=on_trade, on_quote=on_quote, on_bar=on_bar)
    assert seen == [1, 2, "ES"]


async def test_ticks_without_a_callback_are_ignored(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"], quotes=["ES"])
        listening = asyncio.create_task(listen(stream))
        await publisher.publish([trade(), quote()])
        while stream.report().total("delivered") < 2 or stream.waiting:
            await asyncio.sleep(0.005)
    await asyncio.wait_for(listening, 5)
