"""Reads what Redis sends in bulk: all complete replies of one read are handled in one go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import hiredis
from redis import exceptions
from redis.asyncio import Redis

READ_BYTES: Final = 64 * 1024
"""The most that is read in one turn of the event loop: a flood must leave time for the clients."""

_ERRORS: Final[dict[str, type[exceptions.RedisError]]] = {
    "LOADING": exceptions.BusyLoadingError,
    "MASTERDOWN": exceptions.MasterDownError,
    "NOAUTH": exceptions.AuthenticationError,
    "NOPERM": exceptions.NoPermissionError,
    "NOSCRIPT": exceptions.NoScriptError,
    "READONLY": exceptions.ReadOnlyError,
}


class Connection(Protocol):
    """What is used of redis-py's connection: it connects and logs in."""

    _writer: asyncio.StreamWriter

    async def connect(self) -> None: ...
    async def disconnect(self, nowait: bool) -> None: ...


async def open_connection(client: Redis) -> tuple[Connection, asyncio.Transport]:
    """A connection of its own, logged in, to whatever the client is for; and its transport.

    Raises what redis-py raises; nothing is left open then.
    """
    connection: Connection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.connect()
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection, cast("asyncio.Transport", connection._writer.transport)


class ReplyReader(asyncio.BufferedProtocol):
    """Takes a connected transport over, on which no reply is due, and hands on what comes.

    No task is woken and nothing is awaited: for the many small messages of a busy feed that costs
    more than all parsing. An error that Redis answers with is handed on as redis-py's exception.

    Attributes:
        ended: fails when the connection is cut, or with what `on_reply` raises.
        received_s: when the last bytes arrived, on `time.monotonic`; 0 before the first.
    """

    def __init__(self, transport: asyncio.Transport, on_reply: Callable[[Any], None]) -> None:
        self._transport = transport
        self._on_reply = on_reply
        self._parser = hiredis.Reader(
            protocolError=exceptions.ConnectionError, replyError=_to_error
        )
        self._buffer = bytearray(READ_BYTES)
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.received_s = 0.0
        # Stopped in between, because a loop chooses how to read when it starts to.
        transport.pause_reading()
        transport.set_protocol(self)
        transport.resume_reading()
        if transport.is_closing():
            self.connection_lost(None)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received_s = time.monotonic()
        if nbytes == READ_BYTES:
            # More is waiting, and uvloop would go on until it has read all of it.
            self._transport.pause_reading()
            self._loop.call_soon(self._transport.resume_reading)
        if not self.ended.done():
            try:
                self._parser.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type]
                while (reply := self._parser.gets()) is not False:
                    self._on_reply(reply)
            except Exception as error:
                self.ended.set_exception(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(exc or exceptions.ConnectionError("connection closed"))


def _to_error(words: str) -> Exception:
    """An error that Redis answers with, as redis-py knows it; it begins with the kind."""
    code = words.partition(" ")[0]
    return _ERRORS.get(code, exceptions.ResponseError)(words, status_code=code)
