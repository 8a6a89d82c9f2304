from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.builders import T0, quote, trade, trades
from tests.conftest import RunningServer, running_server, until
from tickcast import Gap, connect
from tickcast.broker.publisher import FeedPublisher
from tickcast.client.connection import QUEUE_TICKS_MAX
from tickcast.settings import Settings
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import ConnectionFailed
from tickcast.wire.messages import MSGPACK_SUBPROTOCOL
from tickcast.wire.ticks import Quote


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_typed_ticks_in_either_encoding(
    server: RunningServer, publisher: FeedPublisher, encoding: Encoding
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


async def test_a_snapshot_and_other_channels(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    await publisher.publish(trades(3))
    await publisher.flush()
    async with connect(server.stream) as stream:
        await stream.subscribe({"bars:5s": ["ES"]}, trades=["ES"], snapshot=True)
        tick = await anext(stream)
        assert tick.snap
        assert tick.seq == 3


async def test_closing_ends_the_iteration(server: RunningServer) -> None:
    async def consume(stream: Any) -> str:
        async for _ in stream:
            pass
        return "ended"

    async with connect(server.stream) as stream:
        task = asyncio.create_task(consume(stream))
        await asyncio.sleep(0)
    assert await asyncio.wait_for(task, 5) == "ended"


async def test_refusals_are_errors_and_change_nothing(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"])
        with pytest.raises(ConnectionFailed, match="400 invalid syntax"):
            await stream.subscribe(trades=["A B"])
        await publisher.publish([trade()])
        assert (await anext(stream)).symbol == "ES"


async def test_a_string_is_not_a_list_of_symbols(server: RunningServer) -> None:
    async with connect(server.stream) as stream:
        with pytest.raises(ValueError, match="trades: 'ES' is a string"):
            await stream.subscribe(trades="ES")
        with pytest.raises(ValueError, match="bars:5s: 'ES' is a string"):
            await stream.resume({"bars:5s": "ES"}, [])


@pytest.mark.parametrize("url", ["ws://127.0.0.1:1/stream", "http://x/", "nonsense", "ws://"])
async def test_no_server(url: str) -> None:
    with pytest.raises(ConnectionFailed):
        async with connect(url):
            pass


async def test_not_found_is_final(server: RunningServer) -> None:
    with pytest.raises(ConnectionFailed, match="HTTP 404; a feed is at /stream or /v2/FEED"):
        async with connect(server.ws + "/v2/UPPER"):
            pass


async def test_it_reconnects_after_cuts_with_the_same_streams(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"], quotes=["*"])
        for count in range(1, 4):
            for protocol in list(server.server.server_state.connections):
                protocol.transport.abort()
            await until(lambda count=count: stream.reconnects == count)  # type: ignore[misc]
            await publisher.publish([trade()])
            assert (await anext(stream)).seq == count


async def test_it_reconnects_to_a_restarted_server(
    settings: Settings, redis_url: str, publisher: FeedPublisher
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
        with pytest.raises(ConnectionFailed, match="the connection was lost"):
            await anext(stream)


async def test_the_queue_of_a_slow_program_is_bounded(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"])
        count = 3 * QUEUE_TICKS_MAX
        await publisher.publish(trades(count))
        await publisher.flush()
        await until(lambda: stream.waiting >= QUEUE_TICKS_MAX)
        for _ in range(50):
            await asyncio.sleep(0)
        assert stream.waiting <= QUEUE_TICKS_MAX + 1000
        assert [(await anext(stream)).seq for _ in range(count)] == list(range(1, count + 1))
        await stream.unsubscribe(trades=["ES"])


def cut(server: RunningServer) -> None:
    for protocol in list(server.server.server_state.connections):
        protocol.transport.abort()


@pytest.mark.parametrize("encoding", list(Encoding))
async def test_nothing_is_missed_over_a_cut(
    server: RunningServer, publisher: FeedPublisher, encoding: Encoding
) -> None:
    async with connect(server.stream, encoding=encoding) as stream:
        await stream.subscribe(trades=["ES", "QUIET"], quotes=["*"])
        for count in range(5):
            await publisher.publish([*trades(100), quote("NQ")])
            await publisher.flush()
            cut(server)
            await publisher.publish([*trades(100), quote("NQ"), quote(f"NEW{count}")])
        await publisher.publish([trade("QUIET")])
        await publisher.flush()
        found: dict[tuple[str, str], list[int]] = {}
        for _ in range(1000 + 10 + 5 + 1):
            tick = await anext(stream)
            found.setdefault((type(tick).__name__, tick.symbol), []).append(tick.seq or 0)
        assert found.pop(("Trade", "ES")) == list(range(1, 1001))
        assert found.pop(("Quote", "NQ")) == list(range(1, 11))
        assert set(map(tuple, found.values())) == {(1,)}
        report = stream.report()
        assert report.balanced
        assert report.total("delivered") == 1016
        assert report.reconnects == stream.reconnects > 0


async def test_a_cut_before_the_first_tick(server: RunningServer, publisher: FeedPublisher) -> None:
    await publisher.publish(trades(10))
    await publisher.flush()
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["*"])
        cut(server)
        await publisher.publish([*trades(3), trade("NEW")])
        await publisher.flush()
        found = {(tick.symbol, tick.seq) for tick in [await anext(stream) for _ in range(4)]}
        assert found == {("ES", 11), ("ES", 12), ("ES", 13), ("NEW", 1)}


async def test_history_resumes_after_a_cut(server: RunningServer, publisher: FeedPublisher) -> None:
    await publisher.publish(trades(5000))
    await publisher.flush()
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"], quotes=["ES"], start=T0 + 1000)
        seen = [(await anext(stream)).seq for _ in range(50)]
        cut(server)
        seen += [(await anext(stream)).seq for _ in range(3950)]
        assert seen == list(range(1001, 5001))


async def test_a_gap_is_reported_in_order(
    server: RunningServer, publisher: FeedPublisher, redis: Redis
) -> None:
    gaps: list[Any] = []
    async with connect(server.stream, on_gap=gaps.append) as stream:
        await stream.subscribe(trades=["ES"])
        await publisher.publish(trades(3))
        assert [(await anext(stream)).seq for _ in range(3)] == [1, 2, 3]
        await redis.flushall()
        await publisher.publish(trades(2))
        assert gaps == []
        assert [(await anext(stream)).seq for _ in range(2)] == [1, 2]
        assert gaps == [Gap("trades", "ES", None, None, "epoch")]
        await until(lambda: bool(stream.report().streams[0].epoch))
        cut(server)
        await publisher.publish(trades(2))
        assert [(await anext(stream)).seq for _ in range(2)] == [3, 4]
        assert len(gaps) == 1
        assert stream.report().balanced


async def test_ticks_no_longer_retained_after_a_cut_are_a_gap(
    settings: Settings, redis_url: str, publisher: FeedPublisher, redis: Redis
) -> None:
    gaps: list[Any] = []
    async with running_server(settings, redis_url) as first:
        port = int(first.http.rsplit(":", 1)[1])
        context = connect(first.stream, on_gap=gaps.append)
        stream = await context.__aenter__()
        await stream.subscribe(trades=["ES"])
        await publisher.publish(trades(3))
        assert [(await anext(stream)).seq for _ in range(3)] == [1, 2, 3]
    await publisher.publish(trades(7))
    await publisher.flush()
    await redis.delete("tickcast:{live/trades/ES}:history")
    async with running_server(settings, redis_url, port):
        await until(lambda: stream.reconnects == 1)
        await publisher.publish(trades(1))
        assert (await anext(stream)).seq == 11
        assert gaps == [Gap("trades", "ES", 4, 10, "retention")]
        assert stream.report().balanced
        await context.__aexit__(None, None, None)


async def test_options_survive_a_cut(server: RunningServer, publisher: FeedPublisher) -> None:
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"], conflate_ms=250, slow="conflate")
        await stream.subscribe(quotes=["ES"])
        cut(server)
        await until(lambda: stream.reconnects == 1)
        (session,) = server.app_state["engine"].sessions
        options = {each.channel: options for each, options in session.subscriptions.items()}
        assert options["trades"].conflate_ms == 250
        assert options["trades"].slow.value == "conflate"
        assert options["quotes"].conflate_ms is None


@pytest.mark.parametrize("start", ["yesterday", 1.5, object()])
async def test_an_invalid_start(server: RunningServer, start: Any) -> None:
    async with connect(server.stream) as stream:
        with pytest.raises(ValueError, match="time"):
            await stream.subscribe(trades=["ES"], start=start)


async def test_a_second_cut_while_reconnecting(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    """Restoring everything takes several messages; a cut between them loses none of it."""
    async with connect(server.stream) as stream:
        for interval in range(10):
            await stream.subscribe(trades=[f"S{interval}"], conflate_ms=10 * interval)
        for _ in range(20):
            cut(server)
            await asyncio.sleep(0)
        await until(lambda: stream.connected and stream.reconnects > 0)
        reply = await stream.subscribe(quotes=["Q"])
        assert reply["trades"] == [f"S{interval}" for interval in range(10)]


async def test_a_slow_program_receives_skipped_gaps(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    gaps: list[Any] = []
    async with connect(server.stream, on_gap=gaps.append) as stream:
        await stream.subscribe(trades=["ES"])
        for _ in range(6):
            await publisher.publish(trades(20_000))
        await publisher.flush()
        seen: list[int] = []
        while not seen or seen[-1] < 120_000:
            seen.append((await anext(stream)).seq or 0)
        assert {gap.reason for gap in gaps} == {"skipped"}
        skipped = sum((gap.last_seq or 0) - (gap.first_seq or 0) + 1 for gap in gaps)
        assert len(seen) + skipped == 120_000
        assert stream.report().balanced


async def test_a_silent_server_is_detected(
    monkeypatch: pytest.MonkeyPatch, server: RunningServer, publisher: FeedPublisher
) -> None:
    monkeypatch.setattr("tickcast.client.connection._SILENCE_S", 0.2)
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["ES"])
        for protocol in list(server.server.server_state.connections):
            protocol.transport.pause_reading()
        await until(lambda: stream.reconnects == 1)
        await publisher.publish([trade()])
        assert (await anext(stream)).seq == 1


async def test_more_streams_than_fit_into_one_message(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    """A wildcard over this many streams resumes prefix by prefix, and nothing is sent twice."""
    symbols = [f"{number % 7}SYMBOL-{number:04}" for number in range(2500)]
    for _ in range(2):
        await publisher.publish([trade(symbol) for symbol in symbols])
    await publisher.flush()
    async with connect(server.stream) as stream:
        await stream.subscribe(trades=["*"])
        cut(server)
        await publisher.publish([trade(symbol) for symbol in [*symbols, "NEW"]])
        await publisher.flush()
        found = {(tick.symbol, tick.seq) for tick in [await anext(stream) for _ in range(2501)]}
        assert found == {("NEW", 1), *((symbol, 3) for symbol in symbols)}
        assert stream.reconnects == 1
        assert stream.report().balanced
        assert (await stream.subscribe(quotes=["ES"]))["trades"] == ["*"]


async def test_switching_the_encoding_resumes_every_stream(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async with connect(server.stream, encoding="json") as stream:
        await stream.subscribe(trades=["ES"])
        await publisher.publish(trades(3))
        found = [await anext(stream) for _ in range(3)]
        await stream.switch("msgpack")
        assert stream.encoding is Encoding.MSGPACK
        await publisher.publish(trades(3))
        found += [await anext(stream) for _ in range(3)]
        assert [tick.seq for tick in found] == [1, 2, 3, 4, 5, 6]
        assert stream.reconnects == 1
        assert stream.report().balanced
        assert stream._reconnector._socket is not None
        assert stream._reconnector._socket.subprotocol == MSGPACK_SUBPROTOCOL
