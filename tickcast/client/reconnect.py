"""Keep a client connected: connect, receive, and resume all streams after a disconnection."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tickcast.client.backoff import RateLimitDelays, ReconnectDelays
from tickcast.client.connection import (
    REPLY_TIMEOUT_S,
    PendingRequests,
    ServerAddress,
    describe_close,
    open_connection,
    receive_frame,
    refusal_of,
)
from tickcast.client.messages import Event, Notice, Refused
from tickcast.client.state import ClientState, Message, RequestedOptions
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import ConnectionFailed
from tickcast.wire.ticks import Tick

_EPOCH_REQUEST_S: Final = 1.0

logger = logging.getLogger("tickcast.client")

_NOTICES_KEPT = 100


class Reconnector:
    """Keeps a client connected; restores its subscriptions and settings after a disconnection."""

    def __init__(self, address: ServerAddress, state: ClientState, reconnect: bool) -> None:
        # Whether all subscriptions are in place; False until they are restored.
        self.connected = False
        # The encoding of the next connection.
        self.encoding: Encoding = state.encoding
        self.reconnects = 0
        # The latest server messages that are neither ticks nor replies.
        self.notices: deque[Notice] = deque(maxlen=_NOTICES_KEPT)
        self._address = address
        self._state = state
        self._reconnect = reconnect
        self._delays = ReconnectDelays()
        self._requests = PendingRequests()
        # Ticks and events for the program.
        self.queue = self._requests.queue
        self._socket: ClientConnection | None = None
        self._connected_at_s = 0.0
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect and start receiving.

        Raises:
            ConnectionFailed: the server can't be reached or refused the connection.
        """
        # Only once: a wrong address or key should fail at once, not be retried forever.
        self._socket = await self._open()
        self._set_connected()
        self._reader = asyncio.create_task(self._receive_forever(self._socket), name="stream")

    async def stop(self) -> None:
        """Close the connection and stop."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])  # Unlike `await`, it raises no CancelledError.
        self._end(StopAsyncIteration())
        if self._socket is not None:
            await self._socket.close()

    async def request(self, message: Message) -> Notice:
        """Send a request and return the server's reply; raises as `PendingRequests.request`."""
        assert self._socket is not None
        return await self._requests.request(self._socket, message)

    async def subscribe(
        self, channels: Mapping[str, Iterable[str]], snapshot: bool, options: RequestedOptions
    ) -> Notice:
        """Subscribe and return the server's reply; raises as `request` does.

        If the server does not know the protocol's extensions, retry without them.
        """
        state = self._state
        try:
            return await self.request(state.subscribe(channels, snapshot=snapshot, options=options))
        except Refused as error:
            if not (state.extended and error.is_unknown_extension):
                raise
        # The server may have refused an extension that the program did not ask for.
        reply = await self.request(
            state.subscribe(channels, snapshot=snapshot, options=options, plain=True)
        )
        state.extended = False
        return reply

    async def renew(self) -> None:
        """Close the connection, which makes the client reconnect."""
        if self.connected and self._socket is not None:
            await self._socket.close()

    # -- the connection

    async def _open(self) -> ClientConnection:
        self._state.encoding = self.encoding
        socket = await open_connection(self._address, self._state.subprotocol)
        self._state.begin_connection(socket.subprotocol)
        return socket

    def _set_connected(self) -> None:
        self.connected = True
        self._connected_at_s = asyncio.get_running_loop().time()

    async def _receive_forever(self, socket: ClientConnection) -> None:
        try:
            while True:
                try:
                    await self._receive(socket)
                except ConnectionClosed as closed:
                    socket = await self._reconnect_after(closed)
        except Exception as error:
            # Nothing awaits this task, so the error reaches the program through the queue.
            self._end(error)

    async def _receive(self, socket: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        # While a market opens, new streams come in one by one. A request for each could exceed the
        # server's limit on messages.
        epoch_request_at_s = 0.0
        while True:
            if self._state.needs_epoch:
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(epoch_request_at_s):
                        frame = await receive_frame(socket)
                    await self._pass_on(*self._state.receive_frame(frame))
            else:
                await self._pass_on(*self._state.receive_frame(await receive_frame(socket)))
            if loop.time() >= epoch_request_at_s and (message := self._state.request_epoch()):
                epoch_request_at_s = loop.time() + _EPOCH_REQUEST_S
                with suppress(ConnectionClosed):  # `recv` reports it, after what arrived before.
                    await socket.send(message.frame)

    async def _pass_on(self, items: list[Tick | Event], notices: Iterable[Notice]) -> None:
        for notice in notices:
            # Other `subscription` replies answer `request_epoch` or a restoring message.
            if not self._requests.resolve(notice) and notice["T"] != "subscription":
                self.notices.append(notice)
        if items:
            await self.queue.put(items)

    def _end(self, reason: Exception) -> None:
        self.connected = False
        self._requests.end(reason)

    # -- after a disconnection

    async def _reconnect_after(self, closed: ConnectionClosed) -> ClientConnection:
        """Reconnect, if the close code allows it, and resume every stream."""
        lasted_s = asyncio.get_running_loop().time() - self._connected_at_s
        self.connected = False
        if not self._reconnect:
            raise self._error_of(closed)
        delay_s = self._delay_after_close(closed, lasted_s)
        # Their outcome is unknown, so the program must decide whether to repeat them.
        self._requests.fail(ConnectionFailed("the connection was lost"))
        while True:
            await asyncio.sleep(delay_s)
            try:
                self._socket = await self._open_and_restore()
            except ConnectionClosed as closed_again:
                # It lasted 0 s, since not all subscriptions were restored: delays keep growing.
                delay_s = self._delay_after_close(closed_again, 0)
            except (ConnectionFailed, TimeoutError) as error:
                delay_s = self._delay_after_failure(error)
                logger.info("%s, trying again", error)
            else:
                self.reconnects += 1
                self._set_connected()
                return self._socket

    def _delay_after_close(self, closed: ConnectionClosed, lasted_s: float) -> float:
        code = closed.rcvd.code if closed.rcvd else 0
        delay_s = self._delays.after_close(code, lasted_s, self._state.retry_s)
        if delay_s is None:
            raise self._error_of(closed)
        return delay_s

    def _delay_after_failure(self, error: Exception) -> float:
        delay_s = self._delays.after_failure(*refusal_of(error))
        if delay_s is None or (isinstance(error, Refused) and not error.is_temporary):
            raise error
        return delay_s

    def _error_of(self, closed: ConnectionClosed) -> ConnectionFailed:
        return ConnectionFailed(f"{self._address.url}: {describe_close(closed)}")

    async def _open_and_restore(self) -> ClientConnection:
        socket = await self._open()
        try:
            try:
                await self._restore(socket)
            except Refused as error:
                if not (self._state.extended and error.is_unknown_extension):
                    raise
                logger.warning("%s: the ticks since the disconnection can't be requested", error)
                self._state.extended = False
                await self._restore(socket)
        except BaseException:  # Cancellation included, or the connection would leak.
            await socket.close()
            raise
        return socket

    async def _restore(self, socket: ClientConnection) -> None:
        """Restore settings and subscriptions, and process all other messages meanwhile."""
        delays = RateLimitDelays()
        for message in self._state.restore():
            while True:
                await socket.send(message.frame)
                reply = await self._receive_reply(message.id, socket)
                if reply["T"] != "error":
                    delays.reset()
                    break
                delay_s = delays.after_refusal(reply.get("code"))
                if delay_s is None:
                    raise Refused(reply)
                await self._receive_for(delay_s, socket)

    async def _receive_for(self, delay_s: float, socket: ClientConnection) -> None:
        """Wait for a time, and process messages meanwhile."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + delay_s
        while (left_s := until_s - loop.time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    frame = await receive_frame(socket)
                # Outside the timeout, so that no ticks are lost when the program is slow.
                await self._pass_on(*self._state.receive_frame(frame))

    async def _receive_reply(self, id_: int, socket: ClientConnection) -> Notice:
        async with asyncio.timeout(REPLY_TIMEOUT_S) as timeout:
            while True:
                items, notices = self._state.receive_frame(await receive_frame(socket))
                timeout.reschedule(None)  # Don't blame the server for a slow program.
                await self._pass_on(items, notices)
                timeout.reschedule(asyncio.get_running_loop().time() + REPLY_TIMEOUT_S)
                for notice in notices:
                    if notice.get("id") == id_:
                        return notice
