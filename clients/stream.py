"""The client to write programs with: typed ticks, and connections that come back by themselves.

async with connect("ws://127.0.0.1:8000/stream") as stream:
    await stream.subscribe(trades=["ES"])
    async for tick in stream:
        print(tick.symbol, tick.price)
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from clients.backoff import Backoff
from clients.books import Gap, Position
from clients.comeback import Wish
from clients.dialing import dial, next_frame, refusal_in
from clients.report import Report
from clients.state import ClientState, Message, Notice, Refused
from clients.tick_queue import TickQueue
from clients.tls import verifying_context
from feed.encoding import Encoding
from feed.errors import ConnectionFailed
from feed.ticks import Tick
from feed.times import Time

REPLY_TIMEOUT_S: Final = 10.0

logger = logging.getLogger("tickcast.client")


@asynccontextmanager
async def connect(
    url: str,
    *,
    encoding: Encoding | str = Encoding.JSON,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | str | os.PathLike[str] | None = None,
    reconnect: bool = True,
    on_gap: Callable[[Gap], None] | None = None,
) -> AsyncIterator[Stream]:
    """Connect to a feed, and stay connected until the block is left.

    Args:
        url: ws:// or wss://, with the path `/stream` or `/v2/{feed}`.
        encoding: `json` or `msgpack`.
        token: a JSON Web Token, or an API key's secret.
        headers: more headers for the handshake, such as other credentials.
        tls: how a wss:// server is verified: a PEM file of certificates to trust instead of the
            system's authorities, or a context.
        reconnect: come back after a cut, and go on with every stream where it was. The first
            connection is tried once, in any case.
        on_gap: called with ticks that will not come, in their place among the others: before the
            first tick after them is returned.

    Raises:
        ConnectionFailed: the server can't be reached, is not trusted or turned us away.
        InvalidSettings: the file of certificates can't be used.
    """
    if not url.startswith("wss://"):
        tls = None
    elif not isinstance(tls, ssl.SSLContext):
        tls = verifying_context(tls)
    shown = dict(headers or {})
    if token is not None:
        shown["Authorization"] = f"Bearer {token}"
    state = ClientState(Encoding(encoding))
    stream = Stream(url, state, shown, reconnect, on_gap or _ignore, tls)
    await stream.open()
    try:
        yield stream
    finally:
        await stream.close()


class Stream:
    """A connection to a feed: an asynchronous iterator of ticks.

    Attributes:
        connected: False from a cut until the subscriptions are held again.
        encoding: that of the next connection; `switch` changes it.
        reconnects: how often the connection was re-established.
        notices: the latest messages of the server that are neither ticks nor replies.
    """

    def __init__(
        self,
        url: str,
        state: ClientState,
        headers: dict[str, str],
        reconnect: bool,
        on_gap: Callable[[Gap], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.connected = False
        self.encoding = state.encoding
        self.reconnects = 0
        self.notices: deque[Notice] = deque(maxlen=100)
        self._url = url
        self._state = state
        self._headers = headers
        self._tls = tls
        self._reconnect = reconnect
        self._socket: ClientConnection | None = None
        self._on_gap = on_gap
        self._backoff = Backoff()
        self._replies: dict[int, asyncio.Future[Notice]] = {}
        # A reply comes behind the ticks sent before it: read on while somebody waits for one.
        self._queue = TickQueue(is_urgent=lambda: bool(self._replies))
        self._connected_s = 0.0
        self._reader: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Ticks that have arrived and were not asked for yet."""
        return len(self._queue)

    def report(self) -> Report:
        """What has become of every tick, up to those that are `waiting`."""
        return self._state.books.report(self.reconnects)

    async def open(self) -> None:
        """Connect and start receiving; `connect` does this."""
        self._socket = await self._dial()
        self._begin()
        self._reader = asyncio.create_task(self._receive_forever(self._socket), name="stream")

    async def close(self) -> None:
        """Say good-bye and stop; iterations end."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        self._end(StopAsyncIteration())
        if self._socket is not None:
            await self._socket.close()

    async def subscribe(
        self,
        channels: Mapping[str, Iterable[str]] | None = None,
        *,
        trades: Iterable[str] = (),
        quotes: Iterable[str] = (),
        bars: Iterable[str] = (),
        snapshot: bool = False,
        start: datetime | str | int | None = None,
        conflate_ms: int | None = None,
        slow: str | None = None,
    ) -> Notice:
        """Add subscriptions; returns the server's reply, which lists all of them.

        Args:
            channels: symbols by channel, for channels without a parameter here: `bars:5s`, ….
            trades, quotes, bars: symbols, prefixes such as `BTC-*`, or `*`.
            snapshot: get the latest tick of each stream first.
            start: get every retained tick from this time on first: a datetime with a time zone, an
                RFC 3339 string, or nanoseconds since the Unix epoch.
            conflate_ms: get at most one tick of each stream in so many ms, the latest.
            slow: `conflate`, `skip` or `close`: what is to happen when this program is too slow.

        Raises:
            ConnectionFailed: the server refused, with its error message, or did not answer.
            ValueError: `start` is no time.
        """
        wanted = _merge(channels, trades, quotes, bars)
        start_ns = None if start is None else int(Time.from_wire(start))
        wish = Wish(conflate_ms, slow, start_ns)
        try:
            return await self._ask(self._state.subscribe(wanted, snapshot=snapshot, wish=wish))
        except Refused as error:
            if not (self._state.extended and error.is_of_the_unknown):
                raise
        # What it does not know may be what the program has not asked for.
        plain = self._state.subscribe(wanted, snapshot=snapshot, wish=wish, plainly=True)
        reply = await self._ask(plain)
        self._state.extended = False
        return reply

    async def resume(
        self,
        channels: Mapping[str, Iterable[str]],
        positions: Iterable[Position],
        *,
        slow: str | None = None,
    ) -> None:
        """Add subscriptions that go on where an earlier program has stopped.

        What is not kept any more comes as a gap. Streams under a wildcard that have no position
        begin with their first tick that is kept; those that are named, with the next one.

        Args:
            channels: symbols by channel.
            positions: where the streams stand, as that program knew it.
            slow: as for `subscribe`.

        Raises:
            ConnectionFailed: the server refused, with its error message, or did not answer.
        """
        for question in self._state.resume(channels, positions, Wish(slow=slow)):
            await self._ask(question)

    def epoch_of(self, channel: str, symbol: str) -> str:
        """The epoch that a stream is in, up to those ticks that are `waiting`; empty if unknown."""
        return self._state.books.epoch_of(channel, symbol)

    async def unsubscribe(
        self,
        channels: Mapping[str, Iterable[str]] | None = None,
        *,
        trades: Iterable[str] = (),
        quotes: Iterable[str] = (),
        bars: Iterable[str] = (),
    ) -> Notice:
        """End subscriptions; returns and raises as `subscribe` does."""
        return await self._ask(self._state.unsubscribe(_merge(channels, trades, quotes, bars)))

    async def switch(self, encoding: Encoding | str) -> None:
        """Go on in another encoding: the connection is closed, and comes back as after a cut.

        Without `reconnect`, the stream ends instead.
        """
        self.encoding = Encoding(encoding)
        if self.connected and self._socket is not None:
            await self._socket.close()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Tick:
        while isinstance(next_ := await self._queue.get(), Gap):
            self._on_gap(next_)
        return next_

    async def read(self, most: int = 1000) -> list[Tick]:
        """What is waiting, at least one tick and at most so many: less work than one by one.

        Returns nothing when the stream has ended. Raises as the iteration does.
        """
        try:
            while isinstance(ticks := await self._queue.get_ticks(most), Gap):
                self._on_gap(ticks)
        except StopAsyncIteration:
            return []
        return ticks

    # -- the connection

    async def _dial(self) -> ClientConnection:
        self._state.encoding = self.encoding
        socket = await dial(self._url, self._state.subprotocol, self._headers, self._tls)
        self._state.connected(socket.subprotocol)
        return socket

    def _begin(self) -> None:
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
            self._end(error)

    async def _receive(self, socket: ClientConnection) -> None:
        while True:
            await self._take(*self._state.receive(await next_frame(socket)))
            if (question := self._state.ask_epoch()) is not None:
                with suppress(ConnectionClosed):  # `recv` will tell, after what has arrived.
                    await socket.send(question[1])

    async def _take(self, ticks: list[Tick | Gap], notices: list[Notice]) -> None:
        for notice in notices:
            self._take_notice(notice)
        if ticks:
            await self._queue.put(ticks)

    def _end(self, reason: Exception) -> None:
        """Let everybody who waits know that nothing more will come."""
        self.connected = False
        self._fail_replies(ConnectionFailed("the stream has ended"))
        self._queue.end(reason)

    # -- after a cut

    async def _come_back(self, cut: ConnectionClosed) -> ClientConnection:
        """Connect again, as the close code allows, and go on with every stream."""
        lasted_s = asyncio.get_running_loop().time() - self._connected_s
        self.connected = False
        if not self._reconnect:
            raise self._closed_by(cut)
        delay_s = self._delay_after(cut, lasted_s)
        self._fail_replies(ConnectionFailed("the connection was cut"))
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
                self._begin()
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
        words = f"{cut.rcvd.code} {cut.rcvd.reason}" if cut.rcvd else "0 connection cut"
        return ConnectionFailed(f"{self._url}: closed with {words}")

    async def _dial_again(self) -> ClientConnection:
        socket = await self._dial()
        try:
            try:
                await self._subscribe_again(socket)
            except Refused as error:
                if not (self._state.extended and error.is_of_the_unknown):
                    raise
                logger.warning("%s: what was missed can't be had", error)
                self._state.extended = False
                await self._subscribe_again(socket)
        except BaseException:
            await socket.close()
            raise
        return socket

    async def _subscribe_again(self, socket: ClientConnection) -> None:
        """Ask for everything that was held; what else comes meanwhile is taken as always."""
        for id_, message in self._state.subscribe_again():
            await socket.send(message)
            reply = await self._reply_to(id_, socket)
            if reply["T"] == "error":
                raise Refused(reply)

    async def _reply_to(self, id_: int, socket: ClientConnection) -> Notice:
        async with asyncio.timeout(REPLY_TIMEOUT_S) as patience:
            while True:
                ticks, notices = self._state.receive(await next_frame(socket))
                patience.reschedule(None)  # A program that is slow to take ticks is no fault.
                await self._take(ticks, notices)
                patience.reschedule(asyncio.get_running_loop().time() + REPLY_TIMEOUT_S)
                for notice in notices:
                    if notice.get("id") == id_:
                        return notice

    # -- replies

    async def _ask(self, question: Message) -> Notice:
        id_, message = question
        if self._queue.ended:
            raise ConnectionFailed("the stream has ended") from self._queue.ended
        assert self._socket is not None
        reply = self._replies[id_] = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send(message)
            self._queue.look_again()
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                notice: Notice = await reply
        except ConnectionClosed:
            raise ConnectionFailed("the connection was cut") from None
        except TimeoutError:
            raise ConnectionFailed("the server does not answer") from None
        finally:
            self._replies.pop(id_, None)
        if notice["T"] == "error":
            raise Refused(notice)
        return notice

    def _take_notice(self, notice: Notice) -> None:
        reply = self._replies.get(notice.get("id", 0))
        if reply is not None and not reply.done():
            reply.set_result(notice)
        elif notice["T"] != "subscription":
            self.notices.append(notice)

    def _fail_replies(self, error: Exception) -> None:
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(error)


def _ignore(gap: Gap) -> None:
    pass


def _merge(
    channels: Mapping[str, Iterable[str]] | None,
    trades: Iterable[str],
    quotes: Iterable[str],
    bars: Iterable[str],
) -> dict[str, list[str]]:
    merged = {channel: list(symbols) for channel, symbols in (channels or {}).items()}
    for channel, symbols in (("trades", trades), ("quotes", quotes), ("bars", bars)):
        merged.setdefault(channel, []).extend(symbols)
    return merged
