"""The sink without a socket: a client that was handed over sends messages, and leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from feed.server.running import server_config
from feed.transport.handshake import WebSocketProtocol
from tests.conftest import until
from tests.wire import TEXT, frame, handshake
from tickcast.settings import Settings


class Transport(asyncio.Transport):
    """Records what is written, and whether it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.write = self.written.append  # type: ignore[assignment, method-assign]
        self.reads = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class Client:
    """Record messages; the message `wait` blocks until the gate opens."""

    def __init__(self) -> None:
        self.transport = Transport()

        async def accept(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "websocket.accept"})
            self.transport.written.clear()
            self.sink.hand_over(self.take, self.ends.append)

        config = server_config(accept, Settings())
        config.load()
        self.sink = WebSocketProtocol(config, ServerState(), {})
        self.sink.connection_made(self.transport)
        self.sink.begin_handshake(handshake())
        self.heard: list[str | bytes] = []
        self.ends: list[int] = []
        self.gate = asyncio.Event()

    def take(self, message: str | bytes) -> Coroutine[Any, Any, None] | None:
        self.heard.append(message)
        if message == "fail at once":
            raise ZeroDivisionError
        if message == "fail":
            return self.fail()
        return self.wait() if message == "wait" else None

    async def fail(self) -> None:
        await self.wait()
        raise ZeroDivisionError

    async def wait(self) -> None:
        await self.gate.wait()
        self.heard.append("waited")

    def send(self, *messages: str) -> None:
        for message in messages:
            self.sink.data_received(frame(TEXT, message.encode()))


@pytest.fixture
async def client() -> Client:
    client = Client()
    await until(lambda: client.sink.is_accepted)
    return client


async def test_messages_wait_for_the_one_before_them(client: Client) -> None:
    client.send("a", "wait", "b", "wait", "c")
    assert (client.heard, client.transport.reads) == (["a", "wait"], False)
    client.gate.set()
    await until(lambda: client.transport.reads)
    assert client.heard == ["a", "wait", "waited", "b", "wait", "waited", "c"]
    client.send("d")
    assert client.heard[-1] == "d"


async def test_the_end_is_reported_once_and_nothing_is_received_after_it(client: Client) -> None:
    client.send("wait", "b")
    client.sink.finish(b"", 1001)
    client.sink.end(1006)
    client.send("c")
    assert client.ends == []
    client.gate.set()
    await until(lambda: client.ends and client.heard[-1] == "waited")
    assert client.ends == [1001]
    assert client.heard == ["wait", "waited"]


async def test_nothing_is_written_after_the_end(client: Client) -> None:
    pauses: list[None] = []
    client.sink.on_pause = lambda: pauses.append(None)
    client.sink.write(b"a")
    client.sink.finish(b"", 1000)
    client.sink.write(b"b")
    assert client.transport.written == [b"a", b"\x88\x02\x03\xe8"]
    assert len(pauses) == 1


@pytest.mark.parametrize(
    "messages", [("fail", "b"), ("wait", "fail", "b"), ("wait", "fail at once"), ("fail at once",)]
)
async def test_a_message_that_fails_ends_its_connection(
    client: Client, messages: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise the client would wait forever for an answer."""
    client.send(*messages)
    client.gate.set()
    await until(lambda: client.ends)
    assert client.ends == [1011]
    assert "ZeroDivisionError" in caplog.text
    heard = list(client.heard)
    client.send("c")
    assert client.heard == heard
