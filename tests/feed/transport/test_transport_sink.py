"""The sink without a socket: a client that was handed over sends messages, and leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from feed.transport.transport_sink import Ending, TransportSink
from tests.conftest import until


class Socket:
    """A substitute for the protocol class that records whether it reads."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Task[None]] = set()
        self.transport: Any = Transport()
        self.reads = True
        self.finished: list[int] = []

    def hand_over(self, sink: TransportSink) -> None:
        pass

    def finish(self, last_words: bytes, code: int, reason: str) -> None:
        self.finished.append(code)

    def stop_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def limit_address(self, limiter: object) -> None:
        pass


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.write = self.written.append

    def set_write_buffer_limits(self, high: int) -> None:
        pass


class Client:
    """Record messages; the message `wait` blocks until the gate opens."""

    def __init__(self) -> None:
        self.socket = Socket()
        self.sink = TransportSink(self.socket)
        self.heard: list[str | bytes] = []
        self.ends: list[int] = []
        self.gate = asyncio.Event()
        self.sink.hand_over(self.take, self.ends.append)

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


async def test_messages_wait_for_the_one_before_them() -> None:
    client = Client()
    for message in ("a", "wait", "b", "wait", "c"):
        client.sink.receive(message)
    assert (client.heard, client.socket.reads) == (["a", "wait"], False)
    client.gate.set()
    await until(lambda: client.socket.reads)
    assert client.heard == ["a", "wait", "waited", "b", "wait", "waited", "c"]
    client.sink.receive("d")
    assert client.heard[-1] == "d"


async def test_the_end_is_told_once_and_nothing_is_heard_after_it() -> None:
    client = Client()
    for message in ("wait", "b"):
        client.sink.receive(message)
    Ending(client.sink).put_nowait({"code": 1001})
    client.sink.end(1006)
    client.sink.receive("c")
    assert client.ends == []
    client.gate.set()
    await until(lambda: client.socket.reads)
    assert client.ends == [1001]
    assert client.heard == ["wait", "waited"]


async def test_nothing_is_written_after_detaching() -> None:
    client = Client()
    pauses: list[None] = []
    client.sink.on_pause = lambda: pauses.append(None)
    client.sink.write(b"a")
    client.sink.detach()
    client.sink.write(b"b")
    assert client.socket.transport.written == [b"a"]
    assert len(pauses) == 1


@pytest.mark.parametrize(
    "messages", [("fail", "b"), ("wait", "fail", "b"), ("wait", "fail at once"), ("fail at once",)]
)
async def test_a_message_that_fails_ends_its_connection(
    messages: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise the client would wait forever for an answer."""
    client = Client()
    for message in messages:
        client.sink.receive(message)
    client.gate.set()
    await until(lambda: client.socket.reads)
    assert client.socket.finished == [1011]
    assert "ZeroDivisionError" in caplog.text
    client.sink.receive("c")
    assert client.heard[-1] == "c"
