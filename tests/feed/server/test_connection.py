"""The protocol over real sockets, from handshake to close."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import msgpack
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from feed.access.admission import AdmittedClient
from feed.fanout.outbox import Outbox
from feed.server.connection import Connection
from feed.server.session import Session
from feed.transport.handshake import WebSocketProtocol
from tests.builders import bar, quote, trade, trades
from tests.conftest import RunningServer, running_server, until
from tests.talk import talking
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings


async def test_ticks_reach_clients_of_both_encodings(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async with (
        talking(server.stream) as json_client,
        talking(server.stream + "?encoding=msgpack") as msgpack_client,
    ):
        for client in (json_client, msgpack_client):
            reply = await client.ask(action="subscribe", trades=["ES"], quotes=["ES"], bars=["ES"])
            assert reply["trades"] == reply["quotes"] == reply["bars"] == ["ES"]
        await publisher.publish([trade(price=1.5, size=2, id=7, venue="X", side="S")])
        await publisher.publish([quote()])
        await publisher.publish([bar()])
        for client in (json_client, msgpack_client):
            ticks = {tick["T"]: tick for tick in await client.ticks(3)}
            assert list(ticks["t"]) == ["T", "S", "i", "x", "p", "s", "tks", "t", "seq"]
            assert ticks["t"]["p"] == 1.5
            assert ticks["t"]["seq"] == ticks["q"]["seq"] == ticks["b"]["seq"] == 1
        assert ticks["t"]["t"] == msgpack.Timestamp(1_378_054_800, 83_000_000)


@pytest.mark.parametrize(
    ("options", "subprotocol", "binary"),
    [
        ({}, None, False),
        ({"subprotocols": ["tickcast.v1.json"]}, "tickcast.v1.json", False),
        ({"subprotocols": ["x", "tickcast.v1.msgpack"]}, "tickcast.v1.msgpack", True),
        ({"additional_headers": {"Content-Type": "application/msgpack"}}, None, True),
        ({"subprotocols": ["unknown"]}, None, False),
    ],
)
async def test_the_handshake_chooses_the_encoding(
    server: RunningServer, options: dict[str, Any], subprotocol: str | None, binary: bool
) -> None:
    async with connect(server.stream, **options) as socket:
        assert socket.subprotocol == subprotocol
        assert isinstance(await socket.recv(), bytes) == binary


async def test_either_kind_of_frame_in_any_fragments(server: RunningServer) -> None:
    async with talking(server.stream) as talk:
        await talk.say(action="ping", id=1)
        await talk.say(_binary=True, action="ping", id=2)
        text = json.dumps({"action": "ping", "id": 3})
        await talk.socket.send([text[:5], text[5:9], text[9:]])
        packed = msgpack.packb({"action": "ping", "id": "4"})
        await talk.socket.send([packed[:1], b"", packed[1:]])
        assert [(await talk.hear())["id"] for _ in range(4)] == [1, 2, 3, "4"]


async def test_wildcards_get_streams_that_appear_later_from_their_first_tick(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    await publisher.publish([trade("OLD")])
    await publisher.flush()
    async with talking(server.stream) as everything, talking(server.stream) as prefix:
        await everything.ask(action="subscribe", trades=["*"])
        await prefix.ask(action="subscribe", trades=["NEW-*"])
        for round_ in range(5):
            for symbol in ("OLD", "NEW-1", "NEW-2", f"NEW-{round_ + 3}"):
                await publisher.publish(trades(20, symbol))
        await publisher.flush()
        seen: dict[str, list[int]] = {}
        for tick in await everything.ticks(5 * 80):
            seen.setdefault(tick["S"], []).append(tick["seq"])
        assert seen.pop("OLD") == list(range(2, 102))
        assert seen.pop("NEW-1") == seen.pop("NEW-2") == list(range(1, 101))
        assert list(seen.values()) == [list(range(1, 21))] * 5
        assert {tick["S"] for tick in await prefix.ticks(5 * 60)} == {
            f"NEW-{number}" for number in range(1, 8)
        }


async def test_a_snapshot_is_the_latest_tick_of_each_stream(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    await publisher.publish(trades(5, "A"))
    await publisher.publish(trades(3, "B"))
    await publisher.flush()
    async with talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["*", "NEVER"], snapshot=True)
        snapshot = {tick["S"]: (tick["seq"], tick["snap"]) for tick in await talk.ticks(2)}
        assert snapshot == {"A": (5, True), "B": (3, True)}
        await publisher.publish([trade("A")])
        (live,) = await talk.ticks(1)
        assert live["seq"] == 6
        assert "snap" not in live


async def test_actions_on_many_streams_are_answered_in_their_order(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    await publisher.publish([trade(f"M{number:03}") for number in range(350)])
    await publisher.flush()
    async with talking(server.stream) as talk:
        await talk.say(action="subscribe", trades=["*"], snapshot=True, id=0)
        await talk.say(action="configure", stamps=True, id=1)
        await talk.say(action="subscribe", trades=["M1*"], positions=True, conflate_ms=50, id=2)
        await talk.say(action="ping", id=3)
        await talk.say(action="unsubscribe", trades=["*", "M1*"], id=4)
        await talk.say(action="list", id=5)
        heard = [await talk.hear() for _ in range(6 + 350)]
        assert [each["id"] for each in heard if "id" in each] == [0, 1, 2, 3, 4, 5]
        assert {each["S"] for each in heard[1:351]} == {f"M{number:03}" for number in range(350)}
        assert heard[-1]["trades"] == []
        await publisher.publish([trade("M001")])
        await publisher.flush()
        assert (await talk.ask(action="ping"))["T"] == "pong"


async def test_feeds_are_kept_apart(server: RunningServer, redis: Any, settings: Settings) -> None:
    async with (
        talking(server.ws + "/v2/sim") as sim,
        talking(server.ws + "/v2/live") as live,
        FeedPublisher(redis, "sim", settings) as publisher,
    ):
        await sim.ask(action="subscribe", trades=["*"])
        await live.ask(action="subscribe", trades=["*"])
        await publisher.publish([trade()])
        assert (await sim.ticks(1))[0]["S"] == "ES"
        assert (await live.ask(action="ping"))["T"] == "pong"


@pytest.mark.parametrize(
    "path", ["/v2/UPPER", "/v2/" + "x" * 33, "/v2/a.b", "/v2/", "/stream/", "/nowhere", "/"]
)
async def test_unknown_feeds_are_not_found(server: RunningServer, path: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(server.ws + path):
            pass
    assert caught.value.response.status_code == 404


async def test_only_listed_feeds_where_feeds_are_listed(
    settings: Settings, redis_url: str, runtime_dir: Any
) -> None:
    listed = Settings(runtime_dir=str(runtime_dir), feeds=("sim",))
    async with running_server(listed, redis_url) as server:
        async with talking(server.ws + "/v2/sim"):
            pass
        with pytest.raises(InvalidStatus, match="404"):
            async with connect(server.stream):
                pass


async def test_the_epoch_is_reported_and_stays(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async with talking(server.stream) as talk:
        before = (await talk.ask(action="list", id=1))["epoch"]
        await publisher.publish([trade()])
        await talk.ask(action="subscribe", trades=["ES"], snapshot=True)
        assert (await talk.ask(action="list", id=2))["epoch"] == before


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x85\x00\x00\x00\x00\xff\xff\xff\xff\xff", 1007),
        (b"\x01\x81\x00\x00\x00\x00\xc3\x80\x81\x00\x00\x00\x00\x28", 1007),
        (b"\x81\x02{}", 1002),
        (b"\x83\x80\x00\x00\x00\x00", 1002),
        (b"\xc1\x80\x00\x00\x00\x00", 1002),
        (b"\x09\x80\x00\x00\x00\x00", 1002),
        (b"\x80\x80\x00\x00\x00\x00", 1002),
        (b"\x89\xfe\x00\x7e\x00\x00\x00\x00" + b"x" * 126, 1002),
        (b"\x88\x81\x00\x00\x00\x00\x03", 1002),
        (b"\x82\xff\x40" + b"\x00" * 7 + b"\x00" * 4, 1009),
        (b"\x81\xff\x00\x00\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00", 1009),
    ],
)  # fmt: skip
async def test_faults_of_framing_close_as_the_rfc_says(
    server: RunningServer, frame: bytes, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with talking(server.stream) as talk:
        talk.socket.transport.write(frame)
        with pytest.raises(ConnectionClosed) as caught:
            await talk.hear()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == code
    assert "Traceback" not in caplog.text


async def test_control_frames_amid_a_fragmented_message(server: RunningServer) -> None:
    async with talking(server.stream) as talk:
        text = json.dumps({"action": "ping", "id": 1}).encode()
        protocol = talk.socket.protocol
        for frame in (
            Frame(Opcode.TEXT, text[:7], fin=False),
            Frame(Opcode.PING, b"hello"),
            Frame(Opcode.CONT, text[7:], fin=True),
        ):
            talk.socket.transport.write(frame.serialize(mask=True, extensions=[]))
        assert (await talk.hear())["id"] == 1
        assert protocol.state.name == "OPEN"


async def test_the_server_pings_and_gives_up_on_the_dead(
    settings: Settings, redis_url: str, runtime_dir: Any
) -> None:
    quick = Settings(runtime_dir=str(runtime_dir), ping_interval_s=0.1, ping_timeout_s=0.2)
    async with running_server(quick, redis_url) as server:
        async with talking(server.stream) as alive:
            with pytest.raises(TimeoutError):
                await alive.hear(timeout_s=0.8)
            assert (await alive.ask(action="ping"))["T"] == "pong"
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.http.split(":")[-1]))
        writer.write(
            b"GET /stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        async with asyncio.timeout(5):
            received = await reader.read()
        assert b"connected" in received
        assert b"\x89\x04" in received  # a ping …
        assert b"\x03\xf3" in received[-40:]  # … and 1011 when no pong came
        writer.close()


async def test_subscriptions_at_the_broker_come_and_go_with_the_clients(
    runtime_dir: Any, redis_url: str, redis: Any
) -> None:
    brief = Settings(runtime_dir=str(runtime_dir), linger_s=0)
    async with running_server(brief, redis_url) as server:
        async with talking(server.stream) as first, talking(server.stream) as second:
            await first.ask(action="subscribe", trades=["A", "B"], quotes=["*"])
            await second.ask(action="subscribe", trades=["B"])
            channels = await redis.pubsub_channels("tickcast:{*")
            assert len(channels) == 3
            await first.socket.close()
            async with asyncio.timeout(10):
                while len(await redis.pubsub_channels("tickcast:{*")) != 2:
                    await asyncio.sleep(0.02)
            assert set(await redis.pubsub_channels("tickcast:{*")) == {
                b"tickcast:{live/trades/B}:ticks",
                b"tickcast:{live}:announcements",
            }
        async with asyncio.timeout(10):
            while await redis.pubsub_channels("tickcast:{*"):
                await asyncio.sleep(0.02)


async def test_many_clients_may_ask_for_new_streams_at_once(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async def follow(number: int) -> None:
        async with talking(server.stream) as talk:
            reply = await talk.ask(action="subscribe", trades=[f"S{number}", f"T{number % 7}"])
            assert reply["T"] == "subscription", reply
            ready.release()
            (tick,) = await talk.ticks(1)
            assert tick["S"] == f"S{number}"

    ready = asyncio.Semaphore(0)
    clients = [asyncio.create_task(follow(number)) for number in range(300)]
    for _ in clients:
        await ready.acquire()
    await publisher.publish([trade(f"S{number}") for number in range(300)])
    await asyncio.gather(*clients)


async def test_a_wildcard_gets_first_ticks_of_streams_that_others_ask_for_by_name(
    server: RunningServer, publisher: FeedPublisher
) -> None:
    async with talking(server.stream) as everything, talking(server.stream) as named:
        await everything.ask(action="subscribe", trades=["*"])
        for number in range(30):
            symbol = f"S{number}"
            asking = asyncio.create_task(named.ask(action="subscribe", trades=[symbol]))
            for _ in range(5):
                await publisher.publish([trade(symbol)])
                await asyncio.sleep(0)
            await publisher.flush()
            ticks = await everything.ticks(5)
            assert [(tick["S"], tick["seq"]) for tick in ticks] == [
                (symbol, seq) for seq in range(1, 6)
            ]
            assert (await asking)["T"] == "subscription"


async def test_streams_of_invented_names_are_closed_even_if_a_wildcard_covers_them(
    runtime_dir: Any, redis_url: str, redis: Any, publisher: FeedPublisher
) -> None:
    brief = Settings(runtime_dir=str(runtime_dir), linger_s=0)
    async with running_server(brief, redis_url) as server, talking(server.stream) as everything:
        await everything.ask(action="subscribe", trades=["*"])
        async with talking(server.stream) as talk:
            await talk.ask(action="subscribe", trades=[f"MADE-UP-{n}" for n in range(1000)])
            assert len(await redis.pubsub_channels("tickcast:{*")) == 1001
        async with asyncio.timeout(10):
            while await redis.pubsub_channels("tickcast:{*") != [b"tickcast:{live}:announcements"]:
                await asyncio.sleep(0.02)
        await publisher.publish(trades(3, "MADE-UP-7"))
        assert [tick["seq"] for tick in await everything.ticks(3)] == [1, 2, 3]


async def test_a_client_that_left_is_freed_without_a_collection(
    server: RunningServer,
) -> None:
    """Collections are rare by design, so waiting for one would make memory grow meanwhile."""
    kinds = (Connection, Session, Outbox, WebSocketProtocol, WebSocketProtocol, AdmittedClient)
    engine = server.app_state["engine"]
    gc.collect()
    gc.disable()
    try:
        for last_words in ("close", "cut", "wrong"):
            async with talking(server.stream) as talk:
                await talk.ask(action="configure", heartbeat_ms=1000)
                await talk.ask(action="subscribe", trades=["*"], start=0)
                if last_words == "cut":
                    talk.socket.transport.abort()
                elif last_words == "wrong":
                    talk.socket.transport.write(b"\xff" * 20)
        await until(lambda: not engine.sessions and not server.server.server_state.connections)
        await until(lambda: not [each for each in gc.get_objects() if type(each) in kinds])
    finally:
        gc.enable()
