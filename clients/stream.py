"""The client to write programs with: typed ticks, and connections that come back by themselves.

async with connect("ws://127.0.0.1:8000/stream") as stream:
    await stream.subscribe(trades=["ES"])
    async for tick in stream:
        print(tick.symbol, tick.price)
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from clients.state import ClientState, Notice
from feed.errors import CloseCode, ConnectionFailed
from feed.ticks import Encoding, Tick

QUEUE_TICKS_MAX: Final = 10_000
"""Ticks received and not yet asked for. Above it the client stops reading, and the server sees a
slow client."""
FRAME_MAX_BYTES: Final = 16 * 1024 * 1024
REPLY_TIMEOUT_S: Final = 10.0
_BACKOFF_FIRST_S: Final = 0.2
_BACKOFF_MAX_S: Final = 10.0
_AT_ONCE: Final = range(4200, 4300)
_NEVER: Final = range(4000, 4100)

logger = logging.getLogger("tickcast.client")


@asynccontextmanager
async def connect(
    url: str,
    *,
    encoding: Encoding | str = Encoding.JSON,
    headers: Mapping[str, str] | None = None,
    reconnect: bool = True,
) -> AsyncIterator[Stream]:
    """Connect to a feed, and stay connected until the block is left.

    Args:
        url: ws:// or wss://, with the path `/stream` or `/v2/{feed}`.
        encoding: `json` or `msgpack`.
        headers: more headers for the handshake, such as credentials.
        reconnect: come back after a cut, and subscribe to everything again. The first connection
            is tried once, in any case.

    Raises:
        ConnectionFailed: the server can't be reached or turned us away.
    """
    stream = Stream(url, ClientState(Encoding(encoding)), dict(headers or {}), reconnect)
    await stream.open()
    try:
        yield stream
    finally:
        await stream.close()


class Stream:
    """A connection to a feed: an asynchronous iterator of ticks.

    Attributes:
        connected: False from a cut until the subscriptions are held again.
        reconnects: how often the connection was re-established.
        notices: the latest messages of the server that are neither ticks nor replies.
    """

    def __init__(
        self, url: str, state: ClientState, headers: dict[str, str], reconnect: bool
    ) -> None:
        self.connected = False
        self.reconnects = 0
        self.notices: deque[Notice] = deque(maxlen=100)
        self._url = url
        self._state = state
        self._headers = headers
        self._reconnect = reconnect
        self._socket: ClientConnection | None = None
        self._ticks: deque[Tick] = deque()
        self._replies: dict[int, asyncio.Future[Notice]] = {}
        self._changed = asyncio.Condition()
        self._ended: Exception | None = None
        self._retry_s = 0.0
        self._reader: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Ticks that have arrived and were not asked for yet."""
        return len(self._ticks)

    async def open(self) -> None:
        """Connect and start receiving; `connect` does this."""
        self._socket = await self._dial()
        self.connected = True
        self._reader = asyncio.create_task(self._receive_forever(self._socket), name="stream")

    async def close(self) -> None:
        """Say good-bye and stop; iterations end."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])
        await self._end(StopAsyncIteration())
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
    ) -> Notice:
        """Add subscriptions; returns the server's reply, which lists all of them.

        Args:
            channels: symbols by channel, for channels without a parameter here: `bars:5s`, ….
            trades, quotes, bars: symbols, prefixes such as `BTC-*`, or `*`.
            snapshot: get the latest tick of each stream first.

        Raises:
            ConnectionFailed: the server refused, with its error message, or did not answer.
        """
        wanted = _merge(channels, trades, quotes, bars)
        return await self._ask(*self._state.subscribe(wanted, snapshot=snapshot))

    async def unsubscribe(
        self,
        channels: Mapping[str, Iterable[str]] | None = None,
        *,
        trades: Iterable[str] = (),
        quotes: Iterable[str] = (),
        bars: Iterable[str] = (),
    ) -> Notice:
        """End subscriptions; returns and raises as `subscribe` does."""
        return await self._ask(*self._state.unsubscribe(_merge(channels, trades, quotes, bars)))

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Tick:
        if not self._ticks:
            async with self._changed:
                await self._changed.wait_for(lambda: self._ticks or self._ended)
                if not self._ticks:
                    assert self._ended is not None
                    raise self._ended
        tick = self._ticks.popleft()
        if len(self._ticks) == QUEUE_TICKS_MAX // 2:
            async with self._changed:
                self._changed.notify_all()
        return tick

    # -- the connection

    async def _dial(self) -> ClientConnection:
        try:
            return await open_websocket(
                self._url,
                subprotocols=[Subprotocol(self._state.subprotocol)],
                additional_headers=self._headers,
                compression=None,
                max_size=FRAME_MAX_BYTES,
                user_agent_header="tickcast",
            )
        except (OSError, TimeoutError, WebSocketException, ValueError) as error:
            raise ConnectionFailed(f"{self._url}: {error}") from error

    async def _receive_forever(self, socket: ClientConnection) -> None:
        try:
            while True:
                try:
                    await self._receive(socket)
                except ConnectionClosed as cut:
                    socket = await self._come_back(cut)
        except Exception as error:
            await self._end(error)

    async def _receive(self, socket: ClientConnection) -> None:
        while True:
            await self._take(*self._state.receive(await socket.recv()))

    async def _take(self, ticks: list[Tick], notices: list[Notice]) -> None:
        for notice in notices:
            self._take_notice(notice)
        if ticks:
            async with self._changed:
                self._ticks.extend(ticks)
                self._changed.notify_all()
                await self._changed.wait_for(self._has_room)

    def _has_room(self) -> bool:
        # A reply comes behind the ticks sent before it: read on while somebody waits for one.
        return len(self._ticks) <= QUEUE_TICKS_MAX or bool(self._replies)

    async def _end(self, reason: Exception) -> None:
        """Let everybody who waits know that nothing more will come."""
        self._ended = self._ended or reason
        self.connected = False
        self._fail_replies(ConnectionFailed("the stream has ended"))
        async with self._changed:
            self._changed.notify_all()

    # -- after a cut

    async def _come_back(self, cut: ConnectionClosed) -> ClientConnection:
        """Connect again, as the close code allows, and hold the same subscriptions again."""
        self.connected = False
        code = cut.rcvd.code if cut.rcvd else 0
        reason = cut.rcvd.reason if cut.rcvd else "connection cut"
        if not self._reconnect or code in _NEVER:
            raise ConnectionFailed(f"{self._url}: closed with {code} {reason}") from cut
        self._fail_replies(ConnectionFailed("the connection was cut"))
        if code == CloseCode.RESTART:
            await asyncio.sleep(self._retry_s)
        elif code not in _AT_ONCE:
            await asyncio.sleep(_BACKOFF_FIRST_S * random.random())
        delay = _BACKOFF_FIRST_S
        while True:
            try:
                self._socket = await self._dial()
                await self._subscribe_again(self._socket)
            except (ConnectionFailed, ConnectionClosed) as error:
                if isinstance(error.__cause__, InvalidStatus) and not _may_retry(error.__cause__):
                    raise
                logger.info("%s, trying again", error)
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, _BACKOFF_MAX_S)
            else:
                self.reconnects += 1
                self.connected = True
                return self._socket

    async def _subscribe_again(self, socket: ClientConnection) -> None:
        if not self._state.subscriptions:
            return
        id_, message = self._state.subscribe_again()
        await socket.send(message)
        while True:
            ticks, notices = self._state.receive(await socket.recv())
            await self._take(ticks, notices)
            for notice in notices:
                if notice.get("id") == id_:
                    if notice["T"] == "error":
                        await socket.close()
                        raise ConnectionFailed(f"refused: {notice['code']} {notice['msg']}")
                    return

    # -- replies

    async def _ask(self, id_: int, message: str | bytes) -> Notice:
        if self._ended:
            raise ConnectionFailed("the stream has ended") from self._ended
        assert self._socket is not None
        reply = self._replies[id_] = asyncio.get_running_loop().create_future()
        try:
            await self._socket.send(message)
            async with self._changed:
                self._changed.notify_all()
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                notice: Notice = await reply
        except ConnectionClosed:
            raise ConnectionFailed("the connection was cut") from None
        except TimeoutError:
            raise ConnectionFailed("the server does not answer") from None
        finally:
            self._replies.pop(id_, None)
        if notice["T"] == "error":
            raise ConnectionFailed(f"the server refused: {notice['code']} {notice['msg']}")
        return notice

    def _take_notice(self, notice: Notice) -> None:
        if notice["T"] == "shutdown":
            self._retry_s = notice["retry_ms"] / 1000
        reply = self._replies.get(notice.get("id", 0))
        if reply is not None and not reply.done():
            reply.set_result(notice)
        else:
            self.notices.append(notice)

    def _fail_replies(self, error: Exception) -> None:
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(error)


def _may_retry(error: InvalidStatus) -> bool:
    return error.response.status_code in (429, 502, 503, 504)


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
