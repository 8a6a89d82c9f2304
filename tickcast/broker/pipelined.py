"""Sends commands to Redis in bulk, with one write and one wake-up for all their replies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import hiredis
from redis import exceptions
from redis.asyncio import Redis

from tickcast.broker.client import COMMAND_TIMEOUT_S, named, translated_errors
from tickcast.broker.resp import RedisConnection, RespReader, open_connection

Command = tuple[str | bytes | int, ...]


class PipelinedConnection:
    """A connection for sending commands in bulk, used by one caller at a time.

    redis-py's pipeline packs commands in Python and reads each reply with a separate timer, which
    took most of the time of a publisher of single ticks. Here hiredis does both.

    After a lost connection, the next call makes a new one. Nothing is ever sent twice.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._connection: RedisConnection | None = None
        self._transport: asyncio.Transport | None = None
        self._ended: asyncio.Future[None] | None = None
        self._replies: list[Any] = []
        self._expected = 0
        self._complete: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as we know."""
        return self._transport is not None and not self._transport.is_closing()

    async def open(self) -> None:
        """Connect. If this fails, nothing has been sent. Raises like `call`."""
        with translated_errors():
            await self._open()

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and return their replies in the same order.

        The reply to a command that Redis refuses is a `ResponseError`.

        Raises:
            BrokerUnavailable, BrokerUnsuitable: see `translated_errors`. It is not known which of
                the commands were carried out.
        """
        try:
            with translated_errors():
                return await self._call(commands)
        except BaseException:
            # Late replies would be mistaken for those of the next call.
            await self.close()
            raise

    async def _call(self, commands: Sequence[Command]) -> list[Any]:
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
        return [named(*each) for each in zip(self._replies, commands, strict=True)]

    async def _open(self) -> None:
        await self.close()
        self._connection, self._transport = await open_connection(self._client)
        self._ended = RespReader(self._transport, self._take).ended
        self._ended.add_done_callback(self._end)

    def _take(self, reply: Any) -> None:
        self._replies.append(reply)
        if len(self._replies) == self._expected and self._complete and not self._complete.done():
            self._complete.set_result(None)

    def _end(self, ended: asyncio.Future[None]) -> None:
        error = ended.exception() or exceptions.ConnectionError("connection closed")
        is_current = ended is self._ended
        if is_current and self._complete is not None and not self._complete.done():
            self._complete.set_exception(error)

    async def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection, self._transport = self._connection, None, None
        if connection is not None:
            await connection.disconnect(nowait=True)
