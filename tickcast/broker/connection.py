"""Connections to Redis that handle replies and commands in bulk.

redis-py packs commands in Python and reads every reply with a timer, which took most of the time of
a publisher and of a server. It still connects and authenticates here; hiredis does the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, cast

import hiredis
from redis import exceptions
from redis.asyncio import Redis

from tickcast.broker.client import COMMAND_TIMEOUT_S, name_denied_command, translated_errors

# Limits one turn of the event loop, so that a flood of messages leaves time for the clients.
READ_BYTES: Final = 64 * 1024

_ERRORS: Final[dict[str, type[exceptions.RedisError]]] = {
    "LOADING": exceptions.BusyLoadingError,
    "MASTERDOWN": exceptions.MasterDownError,
    "NOAUTH": exceptions.AuthenticationError,
    "NOPERM": exceptions.NoPermissionError,
    "NOSCRIPT": exceptions.NoScriptError,
    "READONLY": exceptions.ReadOnlyError,
}

RedisCommand = tuple[str | bytes | int, ...]


class RedisConnection(Protocol):
    """The part of redis-py's connection that is used here."""

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
    """

    def __init__(self, transport: asyncio.Transport, on_reply: Callable[[Any], None]) -> None:
        self._transport = transport
        self._on_reply = on_reply
        self._parser = hiredis.Reader(
            protocolError=exceptions.ConnectionError, replyError=_to_error
        )
        self._buffer = bytearray(READ_BYTES)
        self._loop = asyncio.get_running_loop()
        # Fails when the connection is lost, or with the exception that `on_reply` raises.
        self.ended: asyncio.Future[None] = self._loop.create_future()
        # When the last bytes arrived, on `time.monotonic`; 0 before the first.
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


def _to_error(text: str) -> Exception:
    """Convert an error reply, which starts with its code, to redis-py's exception."""
    code = text.partition(" ")[0]
    return _ERRORS.get(code, exceptions.ResponseError)(text, status_code=code)


class PipelinedConnection:
    """A connection for sending commands in bulk, used by one caller at a time.

    All replies to a call wake its task once. After a lost connection, the next call makes a new
    one. Nothing is ever sent twice.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._connection: RedisConnection | None = None
        self._transport: asyncio.Transport | None = None
        self._reader: RespReader | None = None
        # The call in progress: the replies so far, their final number, and their arrival.
        self._replies: list[Any] = []
        self._expected = 0
        self._complete: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as we know."""
        return self._transport is not None and not self._transport.is_closing()

    async def open(self) -> None:
        """Connect. If this fails, nothing has been sent."""
        with translated_errors():
            await self._open()

    async def call(self, commands: Sequence[RedisCommand]) -> list[Any]:
        """Send commands and return their replies in the same order.

        The reply to a command that Redis refuses is a `ResponseError`. If this raises, it is not
        known which of the commands were carried out.
        """
        try:
            with translated_errors():
                return await self._call(commands)
        except BaseException:
            # Late replies would be mistaken for those of the next call.
            await self.close()
            raise

    async def _call(self, commands: Sequence[RedisCommand]) -> list[Any]:
        if not self.is_open:
            await self._open()
        transport = cast("asyncio.Transport", self._transport)
        self._replies, self._expected = [], len(commands)
        self._complete = asyncio.get_running_loop().create_future()
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]
        transport.write(b"".join(packed))
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await self._complete
        except TimeoutError:
            raise exceptions.TimeoutError(f"none within {COMMAND_TIMEOUT_S:g} s") from None
        return [name_denied_command(*each) for each in zip(self._replies, commands, strict=True)]

    async def _open(self) -> None:
        await self.close()
        self._connection, self._transport = await open_connection(self._client)
        self._reader = RespReader(self._transport, self._add_reply)
        self._reader.ended.add_done_callback(self._fail)

    def _add_reply(self, reply: Any) -> None:
        self._replies.append(reply)
        if len(self._replies) == self._expected and self._complete and not self._complete.done():
            self._complete.set_result(None)

    def _fail(self, ended: asyncio.Future[None]) -> None:
        error = ended.exception() or exceptions.ConnectionError("connection closed")
        # An earlier connection may report its end late.
        is_current = self._reader is not None and ended is self._reader.ended
        if is_current and self._complete is not None and not self._complete.done():
            self._complete.set_exception(error)

    async def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection, self._transport = self._connection, None, None
        if connection is not None:
            await connection.disconnect(nowait=True)
