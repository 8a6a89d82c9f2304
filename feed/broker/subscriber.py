"""The server's one pub/sub connection: kept up, re-established, its subscriptions confirmed."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis

from feed.broker import keys
from feed.broker.client import channel_of, check_version, named, translated_errors
from feed.broker.replies import Connection, ReplyReader, open_connection
from feed.errors import BrokerUnavailable, TickcastError
from feed.tasks import end_tasks

_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MAX_S: Final = 1.0
_CONFIRM_TIMEOUT_S: Final = 5.0
_CHANNELS_PER_COMMAND: Final = 500
_HEARTBEAT_S: Final = 0.5
_SILENCE_S: Final = 2.0
"""How long a heartbeat may be on its way; its sender then knows within three seconds."""
_GRACE_S: Final = 0.1
"""Time to read what has come already, for an event loop that was busy when time ran out."""

logger = logging.getLogger("tickcast.broker")


class Subscriber:
    """Receives messages of channels that somebody asked for.

    After a cut it connects again with back-off, subscribes to everything once more and then calls
    `on_reconnect`: what was published in between has to be got from elsewhere.

    It sends itself a heartbeat through a channel of its own. A connection whose other end has
    fallen silent looks like a quiet one; and where publishing and receiving have come apart, such
    as between an old master and a new one, only a message that takes both ways tells.

    Attributes:
        delay_s: how long the last heartbeat took to come back.
    """

    def __init__(
        self,
        client: Redis,
        on_message: Callable[[str, bytes], None],
        on_reconnect: Callable[[], Awaitable[None]],
    ) -> None:
        self._client = client
        self._on_message = on_message
        self._on_reconnect = on_reconnect
        self._channels: set[str] = set()
        self._unconfirmed: dict[str, asyncio.Future[None]] = {}
        self._connection: Connection | None = None
        self._first_try = asyncio.Event()
        self._heartbeats = keys.heartbeat(secrets.token_hex(6))
        self._heard = asyncio.Event()
        self._connects = 0
        self.delay_s = 0.0

    @property
    def reconnects(self) -> int:
        """How many connections there have been after the first."""
        return max(0, self._connects - 1)

    @property
    def connected(self) -> bool:
        """Whether messages are flowing."""
        return self._connection is not None

    @property
    def channels(self) -> set[str]:
        """The channels whose messages come."""
        return set(self._channels)

    async def wait_for_first_try(self) -> None:
        """Return when the first attempt to connect has succeeded or failed."""
        await self._first_try.wait()

    async def run(self) -> None:
        """Connect and receive until cancelled."""
        delay = _BACKOFF_FIRST_S
        while True:
            try:
                await self._receive_until_cut()
            except TickcastError as error:
                if self._connection is not None:
                    delay = _BACKOFF_FIRST_S
                    logger.warning("lost Redis: %s", error)
                else:
                    logger.warning("Redis is away, trying again in %.1f s: %s", delay, error)
            finally:
                self._drop_connection()
                self._first_try.set()
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _BACKOFF_MAX_S)

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Return when Redis has confirmed that messages of the channels will come.

        Raises:
            BrokerUnavailable: it has not; the channels are not subscribed.
        """
        missing = [channel for channel in channels if channel not in self._channels]
        new = [channel for channel in missing if channel not in self._unconfirmed]
        if self._connection is None:
            raise BrokerUnavailable("no connection to Redis")
        for channel in new:
            self._unconfirmed[channel] = asyncio.get_running_loop().create_future()
        waiting = [self._unconfirmed[channel] for channel in missing]
        await self._send("SUBSCRIBE", new)
        if waiting:
            # Not gather(): it would pass our cancellation on to the others that wait here.
            _, late = await asyncio.wait(waiting, timeout=_CONFIRM_TIMEOUT_S)
            if late:
                raise BrokerUnavailable("Redis does not confirm subscriptions")
            for future in waiting:
                future.result()

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """No longer receive the channels."""
        gone = [channel for channel in channels if channel in self._channels]
        self._channels.difference_update(gone)
        if gone and self._connection is not None:
            await self._send("UNSUBSCRIBE", gone)

    async def _send(self, command: str, channels: list[str]) -> None:
        for start in range(0, len(channels), _CHANNELS_PER_COMMAND):
            if self._connection is None:
                raise BrokerUnavailable("no connection to Redis")
            part = channels[start : start + _CHANNELS_PER_COMMAND]
            with translated_errors():
                await self._connection.send_command(
                    command, *(channel_of(self._client, channel) for channel in part)
                )

    async def _receive_until_cut(self) -> None:
        await check_version(self._client)
        with translated_errors():
            connection, transport = await open_connection(self._client)
        tasks: list[asyncio.Task[None]] = []
        try:
            replies = ReplyReader(transport, self._take)
            self._connection = connection
            self._connects += 1
            self._first_try.set()
            logger.info("connected to Redis")
            work = (self._receive(replies), self._heartbeat(connection), self._resubscribe())
            tasks += [asyncio.create_task(each) for each in work]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            # First, and without waiting: this may be cancelled while the tasks end.
            await connection.disconnect(nowait=True)
            await end_tasks(tasks)

    async def _resubscribe(self) -> None:
        """Subscribe to everything once more, if this is not the first connection."""
        if not self._channels:
            return
        channels, self._channels = self._channels, set()
        try:
            await self.subscribe(sorted(channels))
        finally:
            # Not forgotten when this fails as well: the next connection tries again.
            self._channels |= channels
        await self._on_reconnect()

    async def _heartbeat(self, connection: Connection) -> None:
        """Give up a connection on which our own messages do not come back in time."""
        self._heard.clear()
        with translated_errors():
            await connection.send_command("SUBSCRIBE", channel_of(self._client, self._heartbeats))
        await self._heard.wait()
        while True:
            self._heard.clear()
            began = time.monotonic()
            try:
                async with asyncio.timeout(_SILENCE_S):
                    await self._send_heartbeat()
                    await self._heard.wait()
            except TimeoutError:
                await asyncio.sleep(_GRACE_S)
                if not self._heard.is_set():
                    raise BrokerUnavailable("Redis has fallen silent") from None
            self.delay_s = time.monotonic() - began
            await asyncio.sleep(_HEARTBEAT_S)

    async def _send_heartbeat(self) -> None:
        while True:
            try:
                with translated_errors():
                    await self._client.publish(channel_of(self._client, self._heartbeats), b"")
                return
            except BrokerUnavailable:
                # It may be that this one connection was cut, and the next has more luck.
                await asyncio.sleep(_GRACE_S)

    async def _receive(self, replies: ReplyReader) -> None:
        with translated_errors():
            await replies.ended

    def _take(self, reply: Any) -> None:
        if isinstance(reply, exceptions.RedisError):
            raise named(reply, ("SUBSCRIBE", *(self._unconfirmed or (self._heartbeats,))))
        if reply[0] == b"message":
            channel = keys.channel_in_first(reply[1].decode())
            if channel == self._heartbeats:
                self._heard.set()
            else:
                self._on_message(channel, reply[2])
        elif reply[0] == b"subscribe":
            channel = keys.channel_in_first(reply[1].decode())
            if channel == self._heartbeats:
                self._heard.set()
            else:
                self._confirm(channel)

    def _confirm(self, channel: str) -> None:
        self._channels.add(channel)
        confirmed = self._unconfirmed.pop(channel, None)
        if confirmed is not None and not confirmed.done():
            confirmed.set_result(None)

    def _drop_connection(self) -> None:
        self._connection = None
        for future in self._unconfirmed.values():
            if not future.done():
                future.set_exception(BrokerUnavailable("the connection to Redis was cut"))
                future.exception()  # Perhaps nobody waits any more: count it as seen.
        self._unconfirmed.clear()
