"""The asynchronous client API: typed ticks, with automatic reconnects."""

from __future__ import annotations

import inspect
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType

from tickcast.client.accounts import Gap, Position, Report
from tickcast.client.connection import ServerAddress
from tickcast.client.messages import (
    Configured,
    Event,
    EventHandlers,
    Heartbeat,
    Notice,
    reading_frame,
)
from tickcast.client.private_replay import PrivateReplay
from tickcast.client.reconnect import Reconnector
from tickcast.client.state import ClientState, RequestedOptions, merge_channels
from tickcast.wire.encoding import Encoding
from tickcast.wire.playback import ReplayState
from tickcast.wire.ticks import Bar, Quote, Tick, Trade
from tickcast.wire.times import Time

T = TypeVar("T")
Handler = Callable[[T], Awaitable[None] | None]
"""A function of one tick. If it returns an awaitable, that is awaited before the next tick."""


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
    on_replay: Callable[[ReplayState], None] | None = None,
    on_heartbeat: Callable[[Heartbeat], None] | None = None,
) -> AsyncIterator[Stream]:
    """Connect to a feed and stay connected until the block exits.

    Args:
        url: ws:// or wss://, with the path `/stream` or `/v2/{feed}`.
        encoding: `json` or `msgpack`.
        token: a JSON Web Token, or an API key's secret.
        headers: extra headers for the handshake, such as other credentials.
        tls: how to verify a wss:// server: a PEM file of certificates to trust instead of the
            system's authorities, or a context.
        reconnect: reconnect after a disconnection, and resume every stream where it was. The first
            connection is attempted only once in any case.
        on_gap: called with each gap, in order with the ticks: before the first tick after the gap
            is returned.
        on_replay: called with the state of the feed's replay, in order with the ticks; requires
            `Stream.configure(replay=True)`.
        on_heartbeat: called with each heartbeat, in order with the ticks; requires
            `Stream.configure(heartbeat_ms=…)`.

    Raises:
        ConnectionFailed: the server can't be reached, is not trusted or refused the connection.
        InvalidSettings: the file of certificates can't be used.

    >>> import asyncio
    >>> async def main():
    ...     async with connect(URL, encoding="msgpack") as stream:
    ...         await stream.subscribe(trades=["*"], start=0)
    ...         async for tick in stream:
    ...             return tick.symbol, tick.price
    >>> asyncio.run(main())
    ('ES', 100.0)
    """
    address = ServerAddress.of(url, token, headers or {}, tls)
    state = ClientState(Encoding(encoding))
    reconnector = Reconnector(address, state, reconnect)
    stream = Stream(address, state, reconnector, EventHandlers(on_gap, on_replay, on_heartbeat))
    await reconnector.start()
    try:
        yield stream
    finally:
        await stream.close()


class Stream:
    """A connection to a feed: an asynchronous iterator of ticks. `connect` opens one."""

    def __init__(
        self,
        address: ServerAddress,
        state: ClientState,
        reconnector: Reconnector,
        handlers: EventHandlers,
    ) -> None:
        self._address = address
        self._state = state
        self._reconnector = reconnector
        self._handlers = handlers
        # Private replays that this stream has started; they end with it.
        self._replays: list[PrivateReplay] = []

    @property
    def connected(self) -> bool:
        """Whether all subscriptions are in place; False until they are restored."""
        return self._reconnector.connected

    @property
    def encoding(self) -> Encoding:
        """The encoding of the next connection; `switch` changes it."""
        return self._reconnector.encoding

    @property
    def reconnects(self) -> int:
        """The number of times that the connection was re-established."""
        return self._reconnector.reconnects

    @property
    def notices(self) -> deque[Notice]:
        """The latest server messages that are neither ticks nor replies, as received."""
        return self._reconnector.notices

    @property
    def waiting(self) -> int:
        """The number of ticks that have arrived and were not read yet."""
        return len(self._reconnector.queue)

    def report(self) -> Report:
        """Return the accounting of all ticks received, including those `waiting`."""
        return self._state.accounts.report(self.reconnects)

    async def close(self) -> None:
        """Close the connection, which ends any iteration."""
        for replay in self._replays:
            await replay.close()
        await self._reconnector.stop()

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
        """Add subscriptions and return the server's reply, which lists all subscriptions.

        Args:
            channels: symbols by channel, for channels without a parameter here: `bars:5s`, ….
            trades, quotes, bars: symbols, prefixes such as `BTC-*`, or `*`.
            snapshot: get the latest tick of each stream first.
            start: get every retained tick from this time on first: a datetime with a time zone, an
                RFC 3339 string, or nanoseconds since the Unix epoch.
            conflate_ms: get at most one tick of each stream, the latest, in each interval of this
                many milliseconds.
            slow: `conflate`, `skip` or `close`: what the server does if this program is too slow.

        Raises:
            ConnectionFailed: the server refused, with its error message, or did not answer.
            ValueError: `start` is not a valid time, or symbols are a string instead of a list.
        """
        named = merge_channels(channels, trades, quotes, bars)
        start_ns = None if start is None else int(Time.from_wire(start))
        return await self._reconnector.subscribe(
            named, snapshot, RequestedOptions(conflate_ms, slow, start_ns)
        )

    async def resume(
        self,
        channels: Mapping[str, Iterable[str]],
        positions: Iterable[Position],
        *,
        slow: str | None = None,
    ) -> None:
        """Add subscriptions that resume where an earlier program stopped.

        Ticks that are no longer retained are reported as a gap. Streams without a position begin
        with their first retained tick if under a wildcard, or with the next tick if named.

        Args:
            channels: symbols by channel.
            positions: the positions of the streams that the earlier program saved.
            slow: as for `subscribe`.

        Raises:
            ConnectionFailed: the server refused, with its error message, or did not answer.
            ValueError: symbols are a string instead of a list.
        """
        named = merge_channels(channels)
        # Each after the reply to the one before, as in `Reconnector._restore`.
        for message in self._state.resume(named, positions, RequestedOptions(slow=slow)):
            await self._reconnector.request(message)

    def epoch_of(self, channel: str, symbol: str) -> str:
        """Return the epoch of a stream, including ticks that are `waiting`; empty if unknown."""
        return self._state.accounts.epoch_of(channel, symbol)

    async def unsubscribe(
        self,
        channels: Mapping[str, Iterable[str]] | None = None,
        *,
        trades: Iterable[str] = (),
        quotes: Iterable[str] = (),
        bars: Iterable[str] = (),
    ) -> Notice:
        """End subscriptions; returns and raises as `subscribe` does."""
        named = merge_channels(channels, trades, quotes, bars)
        return await self._reconnector.request(self._state.unsubscribe(named))

    async def configure(
        self,
        *,
        heartbeat_ms: int | None = None,
        stamps: bool | None = None,
        slow: str | UnsetType | None = UNSET,
        conflate_ms: int | None = None,
        replay: bool | None = None,
    ) -> Configured:
        """Change the settings of the connection. They survive reconnects.

        Omitted settings keep their values. Without arguments, this returns the current settings.

        Args:
            heartbeat_ms: the heartbeat interval, 100 to 60000, or 0 for none; see `on_heartbeat`.
            stamps: add transit timestamps to ticks, so that each is `Stamped` as well.
            slow: what the server does if this program is too slow, for subscriptions without
                `slow`; None leaves it to each channel's default.
            conflate_ms: as in `subscribe`, for subscriptions without `conflate_ms`.
            replay: report the state of the feed's replay; see `on_replay`.

        Raises:
            Refused: the server refused, with its error message; nothing has changed.
            ConnectionFailed: the server did not answer.
        """
        given = {
            "heartbeat_ms": heartbeat_ms, "stamps": stamps, "conflate_ms": conflate_ms,
            "replay": replay,
        }  # fmt: skip
        # None means "not given", except for `slow`, where it is a value of its own.
        changes: dict[str, Any] = {
            name: value for name, value in given.items() if value is not None
        }
        if not isinstance(slow, UnsetType):
            changes["slow"] = slow
        reply = await self._reconnector.request(self._state.configure(changes))
        with reading_frame():  # The server may have left out a setting.
            return Configured(**{name: reply[name] for name in Configured._fields})

    async def replay(
        self,
        tape: str,
        channels: Mapping[str, Iterable[str]] | None = None,
        *,
        trades: Iterable[str] = (),
        quotes: Iterable[str] = (),
        bars: Iterable[str] = (),
        start: datetime | str | int | None = None,
        end: datetime | str | int | None = None,
        speed: float | str = 1.0,
    ) -> PrivateReplay:
        """Play one of the server's tapes to this program alone, over a separate connection.

        The connection is separate so that neither holds up the other: the replay waits for its
        reader, and this stream does not wait for the replay. The replay ends with this stream.

        Args:
            tape: its name, as listed by the server's `GET /tapes`.
            channels, trades, quotes, bars: the streams to play, as in `subscribe`.
            start, end: the part to play, in recorded time, in the formats of `start` in
                `subscribe`; by default the whole tape.
            speed: a multiple of the original speed, 0.01 to 10000; or `max`, which is as fast as
                the program reads.

        Raises:
            Refused: the server refused; 416 if it lacks the tape or these streams.
            ConnectionFailed: the server can't be reached, refused the connection or did not answer.
            ValueError: `start`, `end` or `speed` is invalid, or symbols are a string.
        """
        named = merge_channels(channels, trades, quotes, bars)
        replay = await PrivateReplay.start(
            self._address, self.encoding, tape, named, start=start, end=end, speed=speed
        )
        # Forget those that have ended, or a long-lived stream would collect them.
        self._replays = [each for each in self._replays if not each.ended]
        self._replays.append(replay)
        return replay

    async def switch(self, encoding: Encoding | str) -> None:
        """Reconnect with another encoding, and resume every stream.

        Without `reconnect`, the stream ends instead.
        """
        self._reconnector.encoding = Encoding(encoding)
        await self._reconnector.renew()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Tick:
        # Events are in the queue with the ticks, so that callbacks run in order with them.
        while isinstance(item := await self._reconnector.queue.get(), Event):
            self._handlers.notify(item)
        return item

    async def read(self, max_ticks: int = 1000) -> list[Tick]:
        """Return unread ticks, 1 to `max_ticks`. This is cheaper than iterating over them.

        Returns an empty list if the stream has ended. Raises as the iteration does.
        """
        try:
            while isinstance(ticks := await self._reconnector.queue.get_ticks(max_ticks), Event):
                self._handlers.notify(ticks)
        except StopAsyncIteration:
            return []
        return ticks


async def listen(
    stream: Stream | PrivateReplay,
    *,
    on_trade: Handler[Trade] | None = None,
    on_quote: Handler[Quote] | None = None,
    on_bar: Handler[Bar] | None = None,
) -> None:
    """Call a function with each tick, one at a time and in order, until the stream ends.

    A slow function makes a slow client: see `slow` of `Stream.subscribe`. Exceptions from the
    functions and from iterating over the stream propagate to the caller. For events other than
    ticks, pass `on_gap`, `on_replay` or `on_heartbeat` to `connect`.

    >>> import asyncio
    >>> async def main():
    ...     async with connect(URL) as stream:
    ...         replay = await stream.replay("es-2013-09-01", trades=["ES"], speed="max")
    ...         prices = []
    ...         await listen(replay, on_trade=lambda trade: prices.append(trade.price))
    ...         return max(prices)
    >>> asyncio.run(main())
    1640.25
    """
    while ticks := await stream.read():
        for tick in ticks:
            # Awaited at once: callbacks must not overtake each other.
            done: Awaitable[None] | None = None
            if isinstance(tick, Trade):
                done = on_trade(tick) if on_trade else None
            elif isinstance(tick, Quote):
                done = on_quote(tick) if on_quote else None
            elif on_bar:
                done = on_bar(tick)
            if inspect.isawaitable(done):
                await done
