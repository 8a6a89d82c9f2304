"""A client that is written from the protocol's description alone, and resumes by hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from tests.faults.accounts import CHANNELS, Accounts, Sums
from tickcast.wire.encoding import Encoding

_RETRY_S: Final = (0.02, 0.1)
_REPLY_TIMEOUT_S: Final = 20.0
_CUT: Final = 1006

Message = dict[str, Any]


class Refused(Exception):
    """The server answered with an error that a client can't recover from."""


class Auditor:
    """Stay subscribed to trades of one feed until cancelled, and resume after every cut.

    Args:
        url: of the feed.
        symbols: the symbols to subscribe to; `*` is possible too.
        options: more options of its first `subscribe`.

    Attributes:
        accounts: its accounts, over all connections.
        live: True while its subscription is confirmed.
        reconnects: how often it has resumed.
        notices: messages that are neither ticks nor replies.
        closed_with: the close code of each connection that ended; 1006 for a cut.
        absence_s: how long it stays away after a cut; with 0 it reconnects at once.
        stamps: whether it asks for `tr` and `tw`.
    """

    def __init__(
        self,
        url: str,
        symbols: Sequence[str],
        encoding: Encoding = Encoding.JSON,
        **options: object,
    ) -> None:
        self.accounts = Accounts()
        self.live = False
        self.reconnects = 0
        self.notices: list[Message] = []
        self.closed_with: list[int] = []
        self.absence_s = 0.0
        self.stamps = False
        self._url = url
        self._symbols = list(symbols)
        self._encoding = encoding
        self._options = options
        self._epoch = ""
        self._epochs: dict[str, str] = {}
        self._unnamed: set[str] = set()
        self._last_id = 0
        self._asking = 0
        self._socket: ClientConnection | None = None

    def __repr__(self) -> str:
        place = {symbol: each.last for (_, symbol), each in self.accounts.streams.items()}
        return f"<Auditor of {' '.join(self._symbols)}, {self._encoding.value}, at {place}>"

    @property
    def sums(self) -> Sums:
        return self.accounts.sums

    def expect_from_first(self) -> None:
        """Require the very first tick of each symbol that it names."""
        for symbol in self._symbols:
            if "*" not in symbol:
                self.accounts.expect("trades", symbol, 0)

    def has(self, symbol: str, id_: int) -> bool:
        """Return whether it has received a tick of the symbol with this id or a later one."""
        account = self.accounts.streams.get(("trades", symbol))
        return account is not None and account.last_id >= id_

    def cut(self) -> None:
        """Drop the connection without a close frame, as a network does."""
        if self._socket is not None:
            self._socket.transport.abort()

    def on_tick(self, message: Message) -> None:
        """Called with each tick; subclasses override it."""

    def on_subscription(self) -> None:
        """Called whenever a subscription is confirmed, before its first tick."""

    async def run(self) -> None:
        """Connect, subscribe and receive; repeat after every cut, until cancelled."""
        while True:
            try:
                await self._converse()
            except ConnectionClosed as closed:
                self.closed_with.append(closed.rcvd.code if closed.rcvd else _CUT)
                if self.closed_with[-1] in range(4000, 4100):
                    raise Refused(str(closed)) from closed
            except InvalidStatus as error:
                if error.response.status_code not in (429, 503):
                    raise
            except (OSError, TimeoutError, WebSocketException):
                pass  # The server is down. The test decides how long it may be.
            finally:
                self.live = False
                # If it were cancelled during a closing handshake, the connection would stay open.
                self.cut()
                self._socket = None
            await asyncio.sleep(self.absence_s or random.uniform(*_RETRY_S))

    # -- one connection

    async def _converse(self) -> None:
        async with open_websocket(
            self._url,
            subprotocols=[Subprotocol(f"tickcast.v1.{self._encoding.value}")],
            compression=None,
            max_size=None,
            close_timeout=1,
        ) as socket:
            self._socket = socket
            await self._subscribe(socket)
            while True:
                self._take_frame(await socket.recv())
                if self._unnamed and not self._asking:
                    # A gap says that there is a new numbering, but not which.
                    await self._say(socket, action="list")

    async def _subscribe(self, socket: ClientConnection) -> None:
        resumes = bool(self._epoch)
        if self.stamps:
            await self._say(socket, action="configure", stamps=True)
        while True:
            options = {"resume": self._place()} if resumes else self._options
            id_ = await self._say(socket, action="subscribe", trades=self._symbols, **options)
            if await self._is_accepted(socket, id_):
                break
            await asyncio.sleep(random.uniform(*_RETRY_S))
        self.live = True
        self.reconnects += resumes

    def _place(self) -> Message | list[Message]:
        """Return its position in each stream, and the beginning for streams that are new to it."""
        places = {self._epoch: {each: 0 for each in self._symbols if "*" in each}}
        for (_, symbol), account in self.accounts.streams.items():
            epoch = self._epochs.setdefault(symbol, self._epoch)
            places.setdefault(epoch, {})[symbol] = account.last
        maps: list[Message] = [{"epoch": epoch, "trades": places[epoch]} for epoch in places]
        return maps if len(maps) > 1 else maps[0]

    async def _is_accepted(self, socket: ClientConnection, id_: int) -> bool:
        """Wait for the answer to a subscribe; return False if the server asks to try again."""
        async with asyncio.timeout(_REPLY_TIMEOUT_S):
            while self._asking == id_:
                try:
                    self._take_frame(await socket.recv())
                except Refused as error:
                    if error.args[0]["code"] != 503:
                        raise
                    self._asking = 0
                    return False
        return True

    async def _say(self, socket: ClientConnection, **fields: object) -> int:
        self._last_id += 1
        self._asking = self._last_id
        is_json = self._encoding is Encoding.JSON
        encode = msgspec.json.encode if is_json else msgspec.msgpack.encode
        await socket.send(encode({**fields, "id": self._asking}), text=is_json)
        return self._asking

    # -- messages of the server

    def _take_frame(self, frame: str | bytes) -> None:
        for message in _decode(frame):
            if message["T"] in CHANNELS:
                self.accounts.take(message)
                self.on_tick(message)
            else:
                self._take_notice(message)

    def _take_notice(self, message: Message) -> None:
        kind = message["T"]
        if kind == "error":
            raise Refused(message)
        if kind == "subscription":
            self._epoch = message["epoch"]
            self._epochs.update(dict.fromkeys(self._unnamed, self._epoch))
            self._unnamed.clear()
            self._asking = 0
            self.on_subscription()
        elif kind not in ("success", "configured"):
            self.notices.append(message)
            self.accounts.take(message)
            if message.get("reason") == "epoch":
                self._unnamed.add(message["S"])


def _decode(frame: str | bytes) -> list[Message]:
    messages: list[Message] = (
        msgspec.json.decode(frame) if isinstance(frame, str) else msgspec.msgpack.decode(frame)
    )
    return messages
