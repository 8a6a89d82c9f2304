"""Reads replies from Redis in bulk: all complete replies of one read are handled together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

import hiredis
from redis import exceptions
from redis.asyncio import Redis

READ_BYTES: Final = 64 * 1024
"""Limit for one turn of the event loop, so that a flood leaves time for the clients."""

_ERRORS: Final[dict[str, type[exceptions.RedisError]]] = {
    "LOADING": exceptions.BusyLoadingError,
    "MASTERDOWN": exceptions.MasterDownError,
    "NOAUTH": exceptions.AuthenticationError,
    "NOPERM": exceptions.NoPermissionError,
    "NOSCRIPT": exceptions.NoScriptError,
    "READONLY": exceptions.ReadOnlyError,
}


class RedisConnection(Protocol):
    """The part of redis-py's connection that is used here: it connects and logs in."""

    _writer: asyncio.StreamWriter

    async def connect(self) -> None: ...
    async def disconnect(self, nowait: bool) -> None: ...


async def open_connection(client: Redis) -> tuple[RedisConnection, asyncio.Transport]:
    """Open a separate, authenticated connection to a client's server; return it and its transport.

    If this raises one of redis-py's exceptions, nothing is left open.
    """
    connection: RedisConnection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.connect()
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection, cast("asyncio.Transport", connection._writer.transport)


class RespReader(asyncio.BufferedProtocol):
    """Takes over a connected transport that expects no reply, and passes replies to a callback.

    It wakes no task and awaits nothing: for the many small messages of a busy feed, that would cost
    more than all parsing. Error replies are passed on as redis-py's exceptions.

    Attributes:
        ended: fails when the connection is cut, or with the exception that `on_reply` raises.
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
        # Pause in between, because the event loop selects the way to read when reading starts.
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
            # There is more to read, and uvloop would not stop until it has read everything.
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
    """Convert an error reply, which starts with its code, to redis-py's exception."""
    code = words.partition(" ")[0]
    return _ERRORS.get(code, exceptions.ResponseError)(words, status_code=code)
