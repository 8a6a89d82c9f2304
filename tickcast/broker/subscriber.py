"""A pub/sub connection with confirmed subscriptions, reconnects and a check that it is alive."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Final

import hiredis
from redis import exceptions
from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.client import (
    channel_of,
    check_version,
    database_of,
    name_denied_command,
    translated_errors,
)
from tickcast.broker.connection import (
    PipelinedConnection,
    RedisCommand,
    RespReader,
    open_connection,
)
from tickcast.tasks import OutageLog, cancel_and_wait
from tickcast.wire.errors import BrokerUnavailable, TickcastError

_BACKOFF_FIRST_S: Final = 0.1
_BACKOFF_MAX_S: Final = 1.0
_CONFIRM_TIMEOUT_S: Final = 5.0
_CHANNELS_PER_COMMAND: Final = 500
_HEARTBEAT_S: Final = 0.5
# Between two heartbeats, however often `diagnose` is called.
_HEARTBEAT_MIN_S: Final = 0.02
# The connection is closed after this time without a byte.
_SILENCE_S: Final = 2.0
# How long `diagnose` waits for a heartbeat.
_DIAGNOSIS_S: Final = 1.0
_POLL_S: Final = 0.1

logger = logging.getLogger("tickcast.broker")


class Subscriber:
    """Receives the messages of subscribed channels.

    When the connection is lost, it reconnects with back-off, subscribes to all channels again and
    then calls `on_reconnect`: messages published in the meantime must be read from elsewhere.

    The subscriber publishes heartbeats to itself through a separate channel. Without them, a dead
    connection would look like a quiet one. Only a message that goes in and comes out can show that
    publishing and receiving use different servers, such as an old master and a new one. Heartbeats
    have a separate connection, because in the pool they would wait behind the handshakes of many
    clients. The subscriber closes its connection

    - when not a byte has arrived for two seconds, or
    - when Redis passed a heartbeat on to no receiver, and none has arrived for two seconds.

    Only time in which the event loop was able to read counts: a busy loop is not Redis's fault.
    """

    def __init__(
        self,
        client: Redis,
        on_message: Callable[[str, bytes], None],
        on_reconnect: Callable[[], Awaitable[None]],
    ) -> None:
        self._client = client
        # Names of channels differ between databases; database 0 is the usual case.
        self._database = database_of(client)
        self._on_message = on_message
        self._on_reconnect = on_reconnect
        # Channels to receive on this connection and the next ones.
        self._channels: set[str] = set()
        # Channels that Redis has confirmed on this connection, and those it has yet to confirm.
        self._confirmed: set[str] = set()
        self._unconfirmed: dict[str, asyncio.Future[None]] = {}
        # The present connection.
        self._transport: asyncio.Transport | None = None
        self._reader: RespReader | None = None
        self._connects = 0
        self._first_attempt = asyncio.Event()
        self._outage_log = OutageLog()
        self._heartbeats = keys.heartbeat(secrets.token_hex(6))
        # Callers of `diagnose` wait for this answer, and want a heartbeat without delay.
        self._diagnosis: asyncio.Future[str | None] | None = None
        self._heartbeat_wanted = asyncio.Event()
        # Send times of the last heartbeats: with a PING, accepted by Redis, and returned.
        self._pinged_s = self._accepted_s = self._returned_s = 0.0
        # Send time of the first heartbeat that Redis passed on to no receiver.
        self._undelivered_since_s: float | None = None
        self._received_s = 0.0
        # How long the last heartbeat took to come back.
        self.delay_s = 0.0

    @property
    def reconnects(self) -> int:
        """The number of connections after the first."""
        return max(0, self._connects - 1)

    @property
    def connected(self) -> bool:
        """Whether messages are flowing."""
        return self._transport is not None

    @property
    def received_s(self) -> float:
        """When the last bytes arrived, on `time.monotonic`; 0 before the first."""
        received_s = self._reader.received_s if self._reader is not None else 0.0
        return max(self._received_s, received_s)

    @property
    def channels(self) -> set[str]:
        """The channels to receive."""
        return set(self._channels)

    async def wait_for_first_attempt(self) -> None:
        """Return when the first attempt to connect has succeeded or failed."""
        await self._first_attempt.wait()

    async def diagnose(self) -> str | None:
        """Return the reason why Redis can't be used now, or None if it can.

        A heartbeat is sent at once. It must return within a second, not counting time in which the
        event loop was busy.
        """
        for _ in range(round(_DIAGNOSIS_S / _POLL_S)):
            if not self.connected:
                break
            if self._diagnosis is None:
                self._diagnosis = asyncio.get_running_loop().create_future()
            self._heartbeat_wanted.set()
            await asyncio.wait([diagnosis := self._diagnosis], timeout=_POLL_S)
            if diagnosis.done():
                return diagnosis.result()
        return "Redis does not answer" if self.connected else "no connection to Redis"

    async def run(self) -> None:
        """Connect and receive until cancelled."""
        delay = _BACKOFF_FIRST_S
        while True:
            try:
                await self._receive_until_lost()
            except TickcastError as error:
                if self.connected:
                    delay = _BACKOFF_FIRST_S
                    self._outage_log.reset()
                if self._outage_log.should_log(time.monotonic(), error):
                    logger.warning("Redis is away, trying again until it is back: %s", error)
            finally:
                self._drop_connection()
                self._first_attempt.set()
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, _BACKOFF_MAX_S)

    # -- channels
    #
    # Commands are written at once, without awaiting, so that Redis receives them in the order in
    # which the sets here change.

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Subscribe to channels, and return when Redis has confirmed it.

        Raises BrokerUnavailable if Redis has not confirmed; the channels are not subscribed.
        """
        missing = [channel for channel in channels if channel not in self._confirmed]
        new = [channel for channel in missing if channel not in self._unconfirmed]
        self._write("SUBSCRIBE", new)
        for channel in new:
            self._unconfirmed[channel] = asyncio.get_running_loop().create_future()
        waiting = [self._unconfirmed[channel] for channel in missing]
        if waiting:
            # Not gather(): it would cancel the futures, for which other callers may be waiting.
            _, late = await asyncio.wait(waiting, timeout=_CONFIRM_TIMEOUT_S)
            if late:
                raise BrokerUnavailable("Redis does not confirm subscriptions")
            for future in waiting:
                future.result()

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Stop receiving channels.

        Channels that Redis has not confirmed yet stay subscribed; call this again later for them.

        Raises:
            BrokerUnavailable: the connection is lost. The next one does not include the channels.
        """
        gone = [
            channel
            for channel in channels
            if channel in self._channels and channel not in self._unconfirmed
        ]
        self._channels.difference_update(gone)
        self._confirmed.difference_update(gone)
        if gone:
            self._write("UNSUBSCRIBE", gone)

    def _write(self, command: str, channels: list[str]) -> None:
        if self._transport is None or self._transport.is_closing():
            raise BrokerUnavailable("no connection to Redis")
        for start in range(0, len(channels), _CHANNELS_PER_COMMAND):
            part = channels[start : start + _CHANNELS_PER_COMMAND]
            part = [channel_of(self._client, channel) for channel in part]
            self._transport.write(hiredis.pack_command((command, *part)))  # type: ignore[arg-type]

    # -- the connection

    async def _receive_until_lost(self) -> None:
        await check_version(self._client)
        with translated_errors():
            connection, transport = await open_connection(self._client)
        tasks: list[asyncio.Task[None]] = []
        try:
            reader = RespReader(transport, self._dispatch)
            self._reader, self._transport = reader, transport
            self._connects += 1
            self._first_attempt.set()
            logger.info("connected to Redis")
            self._write("SUBSCRIBE", [self._heartbeats])
            work = (
                self._receive(reader),
                self._send_heartbeats(),
                self._watch(reader),
                self._resubscribe(),
            )
            tasks += [asyncio.create_task(each) for each in work]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            # Disconnect first and without waiting: this may be cancelled while the tasks end.
            await connection.disconnect(nowait=True)
            await cancel_and_wait(tasks)

    async def _resubscribe(self) -> None:
        """Subscribe to all channels again, unless this is the first connection."""
        if self._channels:
            await self.subscribe(sorted(self._channels))
            await self._on_reconnect()

    async def _receive(self, reader: RespReader) -> None:
        with translated_errors():
            await reader.ended

    def _dispatch(self, reply: Any) -> None:
        if isinstance(reply, exceptions.RedisError):
            channels = self._unconfirmed or (self._heartbeats,)
            raise name_denied_command(reply, ("SUBSCRIBE", *channels))
        if reply[0] == b"message":
            channel = reply[1].decode()
            if self._database:
                channel = keys.channel_in_first(channel)
            if channel == self._heartbeats:
                self._receive_heartbeat(float(reply[2]))
            else:
                self._on_message(channel, reply[2])
        elif reply[0] == b"subscribe":
            self._confirm(keys.channel_in_first(reply[1].decode()))

    def _confirm(self, channel: str) -> None:
        if channel == self._heartbeats:
            return
        self._channels.add(channel)
        self._confirmed.add(channel)
        confirmed = self._unconfirmed.pop(channel, None)
        if confirmed is not None and not confirmed.done():
            confirmed.set_result(None)

    def _drop_connection(self) -> None:
        self._received_s = self.received_s
        self._transport = self._reader = None
        # The channels stay, for the next connection.
        self._confirmed.clear()
        self._undelivered_since_s = None
        self._end_diagnosis("no connection to Redis")
        for future in self._unconfirmed.values():
            if not future.done():
                future.set_exception(BrokerUnavailable("the connection to Redis was lost"))
                future.exception()  # Mark it as retrieved: there may be no waiter left.
        self._unconfirmed.clear()

    # -- whether it is alive

    async def _send_heartbeats(self) -> None:
        connection = PipelinedConnection(self._client)
        try:
            while True:
                self._heartbeat_wanted.clear()
                await self._send_heartbeat(connection)
                await asyncio.sleep(_HEARTBEAT_MIN_S)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_HEARTBEAT_S - _HEARTBEAT_MIN_S):
                        await self._heartbeat_wanted.wait()
        finally:
            await connection.close()

    async def _send_heartbeat(self, connection: PipelinedConnection) -> None:
        sent_s = time.monotonic()
        channel = channel_of(self._client, self._heartbeats)
        commands: list[RedisCommand] = [("PUBLISH", channel, repr(sent_s))]
        if self._diagnosis is not None:
            # A Redis that is loading its data passes messages on, but refuses a PING.
            commands.append(("PING",))
            self._pinged_s = sent_s
        try:
            receivers, *ping = await connection.call(commands)
        except BrokerUnavailable as error:
            # Perhaps only this connection was lost; `_watch` checks whether messages arrive.
            logger.debug("could not send a heartbeat: %s", error)
            return
        try:
            _raise_if_error(receivers)
        except BrokerUnavailable as error:
            self._end_diagnosis(str(error))
            return
        try:
            _raise_if_error(*ping)
        except TickcastError as error:
            # This may be a missing permission, which does not keep messages from arriving.
            self._end_diagnosis(str(error))
            return
        if receivers == 0 and self._returned_s < sent_s and self._undelivered_since_s is None:
            self._undelivered_since_s = sent_s
        self._accepted_s = sent_s
        self._end_diagnosis_if_returned()

    def _receive_heartbeat(self, sent_s: float) -> None:
        self._returned_s = sent_s
        self.delay_s = time.monotonic() - sent_s
        if self._undelivered_since_s is not None and sent_s >= self._undelivered_since_s:
            self._undelivered_since_s = None
        self._end_diagnosis_if_returned()

    def _end_diagnosis_if_returned(self) -> None:
        if self._pinged_s == self._accepted_s == self._returned_s:
            self._end_diagnosis(None)

    def _end_diagnosis(self, problem: str | None) -> None:
        diagnosis, self._diagnosis = self._diagnosis, None
        if diagnosis is not None:
            diagnosis.set_result(problem)

    async def _watch(self, reader: RespReader) -> None:
        """Raise when messages have stopped arriving on the connection."""
        silent_s = undelivered_s = 0.0
        polled_s = time.monotonic()
        while True:
            await asyncio.sleep(_POLL_S)
            now_s = time.monotonic()
            # Limit the step if the loop is late: it may not have read yet what has arrived.
            passed_s = min(now_s - polled_s, 2 * _POLL_S)
            silent_s = 0.0 if reader.received_s > polled_s else silent_s + passed_s
            undelivered_s = 0.0 if self._undelivered_since_s is None else undelivered_s + passed_s
            polled_s = now_s
            if silent_s > _SILENCE_S:
                raise BrokerUnavailable("Redis has fallen silent")
            if undelivered_s > _SILENCE_S:
                raise BrokerUnavailable("messages published to Redis do not arrive from it")


def _raise_if_error(*replies: object) -> None:
    """Raise the first reply that is an error, translated by `translated_errors`."""
    with translated_errors():
        for reply in replies:
            if isinstance(reply, exceptions.RedisError):
                raise reply
