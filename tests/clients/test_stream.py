from __future__ import annotations

import asyncio
from typing import Any

import pytest

from clients import connect
from clients.stream import QUEUE_TICKS_MAX
from feed.broker.publisher import Publisher
from feed.errors import ConnectionFailed
from feed.settings import Settings
from feed.ticks import Encoding, Quote
from tests.builders import quote, trade, trades
from tests.conftest import RunningServer, running_server, until


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_typed_ticks_in_either_encoding(
    server: RunningServer, publisher: Publisher, encoding: Encoding
) -> None:
    async with connect(server.stream, encoding=encoding) as stream:
        reply = await stream.subscribe(trades=["ES"], quotes=["*"])
        assert reply["trades"] == ["ES"]
        await publisher.publish([trade(id=1, side="B"), quote()])
        found = sorted(
            [await anext(stream), await anext(stream)], key=lambda tick: type(tick).__name__
        )
        first_quote, first_trade = found
        assert first_trade == trade(id=1, side="B", seq=1)
        assert isinstance(first_quote, Quote)
        reply = await stream.unsubscribe(quotes=["*"])
        assert reply["quotes"] == []


async def test_a_snapshot_and_other_channels(server: RunningServer, publisher: Publisher) -> None:
    await publisher.publish(trades(3))
    await publisher.drain()
    async with connect(server.stream) as stream:
        await stream.subscribe({"bars:5s": ["ES"]}, trades=["ES"], snapshot=True)
        tick = await anext(stream)
        assert tick.snap
        assert tick.seq == 3


async def test_the_iteration_ends_with_the_connection(server: RunningServer) -> None:
    async def consume(stream: Any) -> str:
        async for _ in stream:
            pass
        return "ended"

    async with connect(server.stream) as stream:
        task = asyncio.create_task(consume(stream))
        await asyncio.sleep(0)
    assert await asyncio.wait_for(task, 5) == "ended"


async def test_refusals_are_errors_and_change_nothing(
    server: RunningServer, publisher: Publisher
) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"])
        with pytest.raises(ConnectionFailed, match="400 invalid syntax"):
            await stream.subscribe(trades=["A B"])
        await publisher.publish([trade()])
        assert (await anext(stream)).symbol == "ES"


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1/stream", "http://x/", "nonsense", "ws://"])
async def test_nobody_there(url: str) -> None:
    with pytest.raises(ConnectionFailed):
        async with connect(url):
            pass


async def test_not_found_is_final(server: RunningServer) -> None:
    with pytest.raises(ConnectionFailed, match="404"):
        async with connect(server.ws + "/v2/UPPER"):
            pass


async def test_it_comes_back_after_cuts_and_holds_the_same_streams(
    server: RunningServer, publisher: Publisher
) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"], quotes=["*"])
        for count in range(1, 4):
            for protocol in list(server.server.server_state.connections):
                protocol.transport.abort()
            await until(lambda count=count: stream.reconnects == count)  # type: ignore[misc]
            await publisher.publish([trade()])
            assert (await anext(stream)).seq == count


async def test_it_follows_a_server_that_restarts(
    settings: Settings, redis_url: str, publisher: Publisher
) -> None:
    async with running_server(settings, redis_url) as first:
        port = int(first.http.rsplit(":", 1)[1])
        context = connect(first.stream)
        stream = await context.__aenter__()
        await stream.subscribe(trades=["ES"])
    async with running_server(settings, redis_url, port):
        await until(lambda: stream.reconnects == 1)
        await publisher.publish([trade()])
        assert (await anext(stream)).seq == 1
        await context.__aexit__(None, None, None)


async def test_without_reconnect_a_cut_is_an_error(server: RunningServer) -> None:
    async with connect(server.stream, reconnect=False) as stream:
        await stream.subscribe(trades=["ES"])
        for protocol in list(server.server.server_state.connections):
            protocol.transport.abort()
        with pytest.raises(ConnectionFailed, match="closed with"):
            await anext(stream)


async def test_a_slow_program_holds_no_more_than_the_bound(
    server: RunningServer, publisher: Publisher
) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"])
        count = 3 * QUEUE_TICKS_MAX
        await publisher.publish(trades(count))
        await publisher.drain()
        await until(lambda: stream.waiting >= QUEUE_TICKS_MAX)
        for _ in range(50):
            await asyncio.sleep(0)
        assert stream.waiting <= QUEUE_TICKS_MAX + 1000
        assert [(await anext(stream)).seq for _ in range(count)] == list(range(1, count + 1))
        await stream.unsubscribe(trades=["ES"])
