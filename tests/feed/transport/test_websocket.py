"""The protocol class with test endpoints: the behaviour of uvicorn's class, and handing over."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import Protocol as FrameParser

from feed.server.running import FeedServer
from feed.transport.handshake import EXTENSION, WebSocketProtocol
from tests.conftest import UNLIMITED, running_app, until
from tests.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Wire,
    close_frame,
    closing,
    frame,
    handshake,
    wired,
)  # fmt: skip
from tickcast.settings import Settings
from tickcast.wire.encoding import Encoding, build_frame
from tickcast.wire.errors import CloseCode


class Service:
    """An ASGI application that hands its clients over, and records the events it receives."""

    def __init__(self) -> None:
        self.sinks: list[WebSocketProtocol] = []
        self.heard: list[str | bytes] = []
        self.ends: list[int] = []
        self.gate = asyncio.Event()
        self.before_handing_over: Callable[[], Awaitable[Any]] = lambda: asyncio.sleep(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await receive()
        await send({"type": "websocket.accept"})
        sink: WebSocketProtocol = scope["extensions"][EXTENSION]
        self.sinks.append(sink)
        sink.on_shutdown = lambda: text("bye")
        await self.before_handing_over()
        sink.hand_over(self.take, self.ends.append)

    def take(self, message: str | bytes) -> Coroutine[Any, Any, None] | None:
        self.heard.append(message)
        return self.wait() if message == "wait" else None

    async def wait(self) -> None:
        await self.gate.wait()
        self.heard.append("waited")


def text(words: str) -> bytes:
    return build_frame(words.encode(), Encoding.JSON)


class Served:
    """The running application, one client of it, and their server."""

    def __init__(self, service: Service, server: FeedServer, client: ClientConnection) -> None:
        self.service = service
        self.server = server
        self.client = client

    @property
    def protocol(self) -> WebSocketProtocol:
        return protocol_of(self.server)


def protocol_of(server: FeedServer) -> WebSocketProtocol:
    connections: set[object] = set(server.server_state.connections)
    (protocol,) = connections
    assert isinstance(protocol, WebSocketProtocol)
    return protocol


@contextlib.asynccontextmanager
async def serving(service: ASGIApp, settings: Settings) -> AsyncIterator[tuple[FeedServer, str]]:
    async with running_app(service, settings) as running:
        yield running.server, running.ws


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    service = Service()
    async with (
        serving(service, Settings(**UNLIMITED)) as (server, url),
        connect(url, compression=None) as client,
    ):
        await until(lambda: service.sinks and not server.server_state.tasks)
        yield Served(service, server, client)


async def test_the_client_is_served_after_the_endpoint_returned(served: Served) -> None:
    await served.client.send("text")
    await served.client.send(b"bytes")
    await served.client.send(["in ", "pieces"])
    served.service.sinks[0].write(text("answer"))
    assert await served.client.recv() == "answer"
    await (await served.client.ping())
    assert served.service.heard == ["text", b"bytes", "in pieces"]
    assert served.service.ends == []


async def test_fragments_take_no_more_memory_than_their_payload() -> None:
    service = Service()
    async with serving(service, Settings(**UNLIMITED)) as (server, url), served_wire(url) as wire:
        fragments = frame(CONTINUATION, final=False) * 999 + frame(CONTINUATION, b"x", final=False)
        await wire.say(frame(TEXT, final=False) + fragments)
        protocol = protocol_of(server)
        await until(lambda: bytes(protocol._partial or b"") == b"x")
        await wire.say(frame(CONTINUATION, b"y"))
        await until(lambda: service.heard == ["xy"])


@pytest.mark.parametrize("closes", [False, True])
async def test_a_client_that_does_not_read_gets_one_pong_for_all_its_pings(closes: bool) -> None:
    service = Service()
    async with serving(service, Settings(**UNLIMITED)) as (server, url), served_wire(url) as wire:
        protocol = protocol_of(server)
        protocol.pause_writing()  # Pretend that its socket is full.
        await wire.say(b"".join(frame(PING, bytes([each])) for each in range(100)))
        await wire.say(frame(TEXT, b"behind them"))
        await until(lambda: service.heard)
        if closes:
            await wire.say(close_frame(1000))
            await until(lambda: service.ends)
        protocol.resume_writing()
        if not closes:
            assert await wire.hear() == (PONG, bytes([99]))
            await wire.say(frame(PING, b"next") + close_frame(1000))
            assert await wire.hear() == (PONG, b"next")
        assert await wire.rest() == [(CLOSE, closing(1000))]


@contextlib.asynccontextmanager
async def served_wire(url: str) -> AsyncIterator[Wire]:
    async with wired(url) as wire:
        await wire.say(handshake())
        await wire.answer()
        yield wire


async def test_messages_wait_for_the_one_before(served: Served) -> None:
    for message in ("wait", "a", "wait", "b"):
        await served.client.send(message)
    await until(lambda: served.service.heard)
    await asyncio.sleep(0.02)
    assert served.service.heard == ["wait"]
    assert served.protocol.read_paused
    served.service.gate.set()
    await until(lambda: served.service.heard[-1] == "b")
    assert served.service.heard == ["wait", "waited", "a", "wait", "waited", "b"]
    await served.client.send("c")
    await until(lambda: served.service.heard[-1] == "c")


@pytest.mark.parametrize("gone", [False, True])
async def test_messages_before_the_hand_over_are_delivered(gone: bool) -> None:
    service, handing_over = Service(), asyncio.Event()
    service.before_handing_over = handing_over.wait
    async with serving(service, Settings(**UNLIMITED)) as (server, url), connect(url) as client:
        if gone:
            client.transport.abort()
            await until(lambda: not server.server_state.connections)
            handing_over.set()
            await until(lambda: service.ends)
            assert service.ends == [1005]
        else:
            await client.send("early")
            await asyncio.sleep(0.02)
            handing_over.set()
            await client.send("next")
            await until(lambda: service.heard == ["early", "next"])


async def test_frames_right_behind_the_handshake_are_answered() -> None:
    service = Service()
    async with serving(service, Settings(**UNLIMITED)) as (_, url), wired(url) as wire:
        early = frame(PING, b"early") + frame(TEXT, b"a") + frame(BINARY, b"b" * 5000)
        await wire.say(handshake() + early)
        assert (await wire.answer())[0] == 101
        assert await wire.hear() == (PONG, b"early")
        await wire.say(close_frame(1000))
        assert await wire.rest() == [(CLOSE, closing(1000))]
    assert service.heard == ["a", b"b" * 5000]


@pytest.mark.parametrize("said", [frame(3), frame(TEXT, b"\xff")], ids=["opcode", "text"])
async def test_invalid_frames_before_the_response_end_the_connection(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    class Hesitant(Service):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "websocket":
                await self.gate.wait()
            await super().__call__(scope, receive, send)

    service = Hesitant()
    async with serving(service, Settings(**UNLIMITED)) as (server, url), wired(url) as wire:
        await wire.say(handshake())
        await until(lambda: server.server_state.tasks)
        await wire.say(said)
        assert await wire.rest() == []
        service.gate.set()
        await until(lambda: not server.server_state.tasks)
    assert caplog.records == []


async def test_every_kind_of_end_is_reported_once(served: Served) -> None:
    async def close() -> None:
        await served.client.close(4321)

    async def abort() -> None:
        served.client.transport.abort()

    async def finish() -> None:
        served.service.sinks[-1].finish(text("last"), CloseCode.SLOW_CLIENT, "slow")
        assert await served.client.recv() == "last"
        await served.client.wait_closed()
        assert served.client.close_code == CloseCode.SLOW_CLIENT

    async def talk_nonsense() -> None:
        frame = Frame(Opcode.TEXT, b"\xff")
        served.client.transport.write(frame.serialize(mask=True, extensions=[]))
        await served.client.wait_closed()
        assert served.client.close_code == CloseCode.INVALID_DATA

    async def shut_down() -> None:
        served.server.should_exit = True
        assert await served.client.recv() == "bye"
        await served.client.wait_closed()
        assert served.client.close_code == CloseCode.RESTART

    ways: dict[Callable[[], Awaitable[None]], int] = {
        close: 4321, abort: CloseCode.ABNORMAL, finish: CloseCode.SLOW_CLIENT,
        talk_nonsense: CloseCode.INVALID_DATA, shut_down: CloseCode.RESTART,
    }  # fmt: skip
    url = f"ws://127.0.0.1:{served.client.remote_address[1]}"
    for way, code in ways.items():
        await way()
        await until(lambda: served.service.ends)
        await until(lambda: not served.server.server_state.connections)
        assert served.service.ends == [code], way.__name__
        served.service.ends.clear()
        if way is not shut_down:
            served.client = await connect(url, compression=None)
            await until(lambda: not served.server.server_state.tasks)


async def test_messages_after_the_end_are_ignored(served: Served) -> None:
    await served.client.send("wait")
    await served.client.send("too late")
    await until(lambda: served.service.sinks[0]._waiting)
    served.service.sinks[0].finish(b"", CloseCode.SLOW_CLIENT)
    served.service.gate.set()
    await until(lambda: not served.server.server_state.connections)
    assert served.service.heard == ["wait", "waited"]


async def test_an_endpoint_that_fails_after_handing_over() -> None:
    service = Service()

    class Failing(Service):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await super().__call__(scope, receive, send)
            if scope["type"] == "websocket":
                raise RuntimeError

    service = Failing()
    async with serving(service, Settings(**UNLIMITED)) as (_, url), connect(url) as client:
        with pytest.raises(ConnectionClosed):
            await client.recv()
        await until(lambda: service.ends)


async def test_a_connection_keeps_little_memory(served: Served) -> None:
    """Memory limits the number of clients, so each attribute here has been measured."""
    protocol = served.protocol
    assert not hasattr(protocol, "__dict__")
    assert protocol._endpoint is None
    assert not served.server.server_state.tasks


async def test_a_client_that_is_gone_is_freed_at_once(served: Served) -> None:
    served.service.sinks.clear()
    gc.collect()
    gc.disable()
    try:
        await served.client.send("wait")
        await until(lambda: served.protocol.read_paused)
        served.service.gate.set()
        await served.client.close()
        await until(lambda: served.service.ends)
        kinds = (WebSocketProtocol, FrameParser)
        await until(lambda: not any(type(each) in kinds for each in gc.get_objects()))
    finally:
        gc.enable()


async def test_the_kernel_holds_little_for_a_client_that_does_not_read(served: Served) -> None:
    socket = served.protocol.transport.get_extra_info("socket")
    assert socket.getsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF) <= 512 * 1024
