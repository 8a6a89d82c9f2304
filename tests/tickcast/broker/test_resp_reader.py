from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import exceptions

from tests.conftest import until
from tickcast.broker.connection import READ_BYTES, RespReader


class Line:
    """A socket whose other end plays Redis."""

    def __init__(self, transport: asyncio.Transport, far: socket.socket) -> None:
        self.received: list[Any] = []
        self.transport = transport
        self.far = far
        self.reader = RespReader(transport, self.received.append)


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    near, far = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=near)
    transport: asyncio.Transport = writer.transport  # type: ignore[assignment]
    yield Line(transport, far)
    transport.abort()
    far.close()
    await asyncio.sleep(0)


async def test_replies_may_be_split_anywhere(line: Line) -> None:
    replies = (
        b"*3\r\n$7\r\nmessage\r\n$1\r\nA\r\n$3\r\nx\r\n\r\n+PONG\r\n*2\r\n$4\r\npong\r\n$0\r\n"
    )
    replies += b"\r\n"
    for byte in replies * 2:
        line.far.send(bytes((byte,)))
        await asyncio.sleep(0.001)
    line.far.send(replies)
    await until(lambda: len(line.received) == 9)
    assert line.received == [[b"message", b"A", b"x\r\n"], b"PONG", [b"pong", b""]] * 3
    assert not line.reader.ended.done()


async def test_a_flood_leaves_turns_of_the_loop_to_other_tasks(line: Line) -> None:
    message = b"*3\r\n$7\r\nmessage\r\n$1\r\nA\r\n$100\r\n" + bytes(100) + b"\r\n"
    in_one_read = READ_BYTES // len(message) + 1
    line.far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * READ_BYTES)
    line.far.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += line.far.send(message * 10)
    assert sent > 2 * READ_BYTES
    counts = [0]
    while counts[-1] < sent // len(message):
        counts.append(len(line.received))
        assert counts[-1] - counts[-2] <= in_one_read
        await asyncio.sleep(0)


async def test_an_error_reply_becomes_an_exception(line: Line) -> None:
    line.far.send(b"-NOPERM not you\r\n")
    await until(lambda: line.received)
    assert isinstance(line.received[0], exceptions.ResponseError)
    assert str(line.received[0]) == "NOPERM not you"


async def test_invalid_bytes_end_the_reader(line: Line) -> None:
    line.far.send(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(exceptions.ConnectionError, match="Protocol error"):
        await line.reader.ended
    line.far.send(b"+PONG\r\n")
    await asyncio.sleep(0.01)
    assert line.received == []


async def test_the_end_of_the_connection_ends_the_reader(line: Line) -> None:
    line.far.close()
    with pytest.raises(exceptions.ConnectionError, match="closed"):
        await line.reader.ended


async def test_a_closed_transport_ends_the_reader(line: Line) -> None:
    line.transport.close()
    with pytest.raises(exceptions.ConnectionError, match="closed"):
        await RespReader(line.transport, line.received.append).ended


async def test_an_exception_of_the_callback_ends_the_reader(line: Line) -> None:
    line.reader._on_reply = lambda reply: 1 // 0  # type: ignore[assignment]
    line.far.send(b"+PONG\r\n")
    with pytest.raises(ZeroDivisionError):
        await line.reader.ended


async def test_asyncios_event_loop_works_too() -> None:
    """asyncio's own loop uses the same interface for reading."""

    async def receive() -> list[Any]:
        near, far = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=near)
        received: list[Any] = []
        reader = RespReader(writer.transport, received.append)  # type: ignore[arg-type]
        far.send(b"+PONG\r\n" * 20_000)
        far.close()
        with contextlib.suppress(exceptions.ConnectionError):
            await reader.ended
        writer.transport.abort()
        return received

    received = await asyncio.to_thread(asyncio.run, receive())
    assert received == [b"PONG"] * 20_000
