"""Keep a client connected: dial, receive, and resume all streams after a cut."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tickcast.client.backoff import Backoff, Pace
from tickcast.client.connecting import ServerAddress, dial, next_frame, refusal_in, words_of
from tickcast.client.notices import Event
from tickcast.client.requests import REPLY_TIMEOUT_S, PendingRequests
from tickcast.client.resume import RequestedOptions
from tickcast.client.state import ClientState, Message, Notice, Refused
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import ConnectionFailed
from tickcast.wire.ticks import Tick

logger = logging.getLogger("tickcast.client")


class Reconnector:
    """Keeps a client connected, and restores its subscriptions and settings after each cut.

    Args:
        reconnect: whether to reconnect after a cut.

    Attributes:
        connected: whether all subscriptions are in place; False from a cut until they are restored.
        encoding: the encoding of the next connection.
        reconnects: how often the client has reconnected.
        notices: the latest server messages that are neither ticks nor replies.
        queue: ticks and events for the program.
    """

    def __init__(self, address: ServerAddress, state: ClientState, reconnect: bool) -> None:
        self.connected = False
        self.encoding: Encoding = state.encoding
        self.reconnects = 0
        self.notices: deque[Notice] = deque(maxlen=100)
        self._address = address
        self._state = state
        self._reconnect = reconnect
        self._backoff = Backoff()
        self._conversation = PendingRequests()
        self.queue = self._conversation.queue
        self._socket: ClientConnection | None = None
        self._connected_s = 0.0
        self._reader: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Connect and start receiving.

        Raises:
            ConnectionFailed: the server can't be reached or refused the connection.
        """
        self._socket = await self._dial()
        self._settle()
        self._reader = asyncio.create_task(self._receive_forever(self._socket), name="stream")

    async def end(self) -> None:
        """Close the connection and stop."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        self._stop(StopAsyncIteration())
        if self._socket is not None:
            await self._socket.close()

    async def ask(self, question: Message) -> Notice:
        """Send a request and return the server's reply; raises as `PendingRequests.ask` does."""
        assert self._socket is not None
        return await self._conversation.ask(self._socket, question)

    async def subscribe(
        self, wanted: Mapping[str, Iterable[str]], snapshot: bool, wish: RequestedOptions
    ) -> Notice:
        """Subscribe and return the server's reply; raises as `ask` does.

        If the server does not know the protocol's extensions, retry without them.
        """
        try:
            return await self.ask(self._state.subscribe(wanted, snapshot=snapshot, wish=wish))
        except Refused as error:
            if not (self._state.extended and error.is_of_the_unknown):
                raise
        # The server may have refused an extension that the program did not ask for.
        plain = self._state.subscribe(wanted, snapshot=snapshot, wish=wish, plainly=True)
        reply = await self.ask(plain)
        self._state.extended = False
        return reply

    async def renew(self) -> None:
        """Close the connection and reconnect as after a cut."""
        if self.connected and self._socket is not None:
            await self._socket.close()

    # -- the connection

    async def _dial(self) -> ClientConnection:
        self._state.encoding = self.encoding
        socket = await dial(self._address, self._state.subprotocol)
        self._state.connected(socket.subprotocol)
        return socket

    def _settle(self) -> None:
        self.connected = True
        self._connected_s = asyncio.get_running_loop().time()

    async def _receive_forever(self, socket: ClientConnection) -> None:
        try:
            while True:
                try:
                    await self._receive(socket)
                except ConnectionClosed as cut:
                    socket = await self._come_back(cut)
        except Exception as error:
            self._stop(error)

    async def _receive(self, socket: ClientConnection) -> None:
        while True:
            await self._take(*self._state.receive(await next_frame(socket)))
            if (question := self._state.ask_epoch()) is not None:
                with suppress(ConnectionClosed):  # `recv` reports it, after what arrived before.
                    await socket.send(question[1])

    async def _take(self, seen: list[Tick | Event], notices: Iterable[Notice]) -> None:
        for notice in notices:
            if not self._conversation.answer(notice) and notice["T"] != "subscription":
                self.notices.append(notice)
        if seen:
            await self.queue.put(seen)

    def _stop(self, reason: Exception) -> None:
        self.connected = False
        self._conversation.end(reason)

    # -- after a cut

    async def _come_back(self, cut: ConnectionClosed) -> ClientConnection:
        """Reconnect, if the close code allows it, and resume every stream."""
        lasted_s = asyncio.get_running_loop().time() - self._connected_s
        self.connected = False
        if not self._reconnect:
            raise self._closed_by(cut)
        delay_s = self._delay_after(cut, lasted_s)
        self._conversation.fail(ConnectionFailed("the connection was cut"))
        while True:
            await asyncio.sleep(delay_s)
            try:
                self._socket = await self._dial_again()
            except ConnectionClosed as again:
                delay_s = self._delay_after(again, 0)
            except (ConnectionFailed, TimeoutError) as error:
                delay_s = self._delay_after_failure(error)
                logger.info("%s, trying again", error)
            else:
                self.reconnects += 1
                self._settle()
                return self._socket

    def _delay_after(self, cut: ConnectionClosed, lasted_s: float) -> float:
        code = cut.rcvd.code if cut.rcvd else 0
        delay_s = self._backoff.after_close(code, lasted_s, self._state.retry_s)
        if delay_s is None:
            raise self._closed_by(cut)
        return delay_s

    def _delay_after_failure(self, error: Exception) -> float:
        delay_s = self._backoff.after_failure(*refusal_in(error))
        if delay_s is None or (isinstance(error, Refused) and not error.is_passing):
            raise error
        return delay_s

    def _closed_by(self, cut: ConnectionClosed) -> ConnectionFailed:
        return ConnectionFailed(f"{self._address.url}: {words_of(cut)}")

    async def _dial_again(self) -> ClientConnection:
        socket = await self._dial()
        try:
            try:
                await self._say_again(socket)
            except Refused as error:
                if not (self._state.extended and error.is_of_the_unknown):
                    raise
                logger.warning("%s: what was missed can't be had", error)
                self._state.extended = False
                await self._say_again(socket)
        except BaseException:
            await socket.close()
            raise
        return socket

    async def _say_again(self, socket: ClientConnection) -> None:
        """Restore settings and subscriptions, and process all other messages meanwhile."""
        pace = Pace()
        for id_, message in self._state.say_again():
            while True:
                await socket.send(message)
                reply = await self._reply_to(id_, socket)
                if reply["T"] != "error":
                    pace.granted()
                    break
                delay_s = pace.after_refusal(reply.get("code"))
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
                    frame = await next_frame(socket)
                # Outside the timeout, so that no ticks are lost when the program is slow.
                await self._take(*self._state.receive(frame))

    async def _reply_to(self, id_: int, socket: ClientConnection) -> Notice:
        async with asyncio.timeout(REPLY_TIMEOUT_S) as patience:
            while True:
                seen, notices = self._state.receive(await next_frame(socket))
                patience.reschedule(None)  # Don't blame the server for a slow program.
                await self._take(seen, notices)
                patience.reschedule(asyncio.get_running_loop().time() + REPLY_TIMEOUT_S)
                for notice in notices:
                    if notice.get("id") == id_:
                        return notice
