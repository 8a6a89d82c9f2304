"""Reads what Redis sends in bulk: all complete replies of one read are handled in one go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import hiredis
from redis import exceptions

READ_BYTES: Final = 64 * 1024
"""The most that is read in one turn of the event loop: a flood must leave time for the clients."""


class ReplyReader(asyncio.BufferedProtocol):
    """Takes a connected transport over, on which no reply is due, and hands on what comes.

    No task is woken and nothing is awaited: for the many small messages of a busy feed that costs
    more than all parsing. An error that Redis answers with is handed on as a `ResponseError`.

    Attributes:
        ended: fails when the connection is cut, or with what `on_reply` raises.
    """

    def __init__(self, transport: asyncio.Transport, on_reply: Callable[[Any], None]) -> None:
        self._transport = transport
        self._on_reply = on_reply
        self._parser = hiredis.Reader(
            protocolError=exceptions.ConnectionError, replyError=exceptions.ResponseError
        )
        self._buffer = bytearray(READ_BYTES)
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        # Stopped in between, because a loop chooses how to read when it starts to.
        transport.pause_reading()
        transport.set_protocol(self)
        transport.resume_reading()
        if transport.is_closing():
            self.connection_lost(None)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
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
