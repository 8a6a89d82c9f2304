"""The client to write programs with: typed ticks, and connections that come back by themselves."""

from __future__ import annotations

import os
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from msgspec import UNSET, UnsetType

from clients.books import Gap, Position
from clients.comeback import Wish, merge_channels
from clients.dialing import Address, address_of
from clients.life import Life
from clients.notices import Configured, Event, Handlers, Heartbeat, configured_in
from clients.private_replay import PrivateReplay
from clients.report import Report
from clients.state import ClientState, Notice, reading
from feed.encoding import Encoding
from feed.playback import State
from feed.ticks import Tick
from feed.times import Time


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
    on_replay: Callable[[State], None] | None = None,
    on_heartbeat: Callable[[Heartbeat], None] | None = None,
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
        on_replay: called with where the replay of the feed stands, once
            `Stream.configure(replay=True)` was said; also in its place.
        on_heartbeat: called with signs of life, after `Stream.configure(heartbeat_ms=…)`; likewise.

    Raises:
        ConnectionFailed: the server can't be reached, is not trusted or turned us away.
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
    address = address_of(url, token, headers or {}, tls)
    state = ClientState(Encoding(encoding))
    life = Life(address, state, reconnect)
    stream = Stream(address, state, life, Handlers(on_gap, on_replay, on_heartbeat))
    await life.begin()
    try:
        yield stream
    finally:
        await stream.close()


class Stream:
    """A connection to a feed: an asynchronous iterator of ticks. `connect` makes one."""

    def __init__(
        self, address: Address, state: ClientState, life: Life, handlers: Handlers
    ) -> None:
        self._address = address
        self._state = state
        self._life = life
        self._handlers = handlers
        self._replays: list[PrivateReplay] = []

    @property
    def connected(self) -> bool:
        """False from a cut until the subscriptions are held again."""
        return self._life.connected

    @property
    def encoding(self) -> Encoding:
        """That of the next connection; `switch` changes it."""
        return self._life.encoding

    @property
    def reconnects(self) -> int:
        """How often the connection was re-established."""
        return self._life.reconnects

    @property
    def notices(self) -> deque[Notice]:
        """The latest messages of the server that are neither ticks nor replies, as they came."""
        return self._life.notices

    @property
    def waiting(self) -> int:
        """What has arrived and was not asked for yet, in ticks."""
        return len(self._life.queue)

    def report(self) -> Report:
        """What has become of every tick, up to those that are `waiting`."""
        return self._state.books.report(self.reconnects)

    async def close(self) -> None:
        """Say good-bye and stop; iterations end."""
        for replay in self._replays:
            await replay.close()
        await self._life.end()

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
            ValueError: `start` is no time, or symbols are a string in place of a list.
        """
        wanted = merge_channels(channels, trades, quotes, bars)
        start_ns = None if start is None else int(Time.from_wire(start))
        return await self._life.subscribe(wanted, snapshot, Wish(conflate_ms, slow, start_ns))

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
            ValueError: symbols are a string in place of a list.
        """
        wanted = merge_channels(channels, (), (), ())
        for question in self._state.resume(wanted, positions, Wish(slow=slow)):
            await self._life.ask(question)

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
        wanted = merge_channels(channels, trades, quotes, bars)
        return await self._life.ask(self._state.unsubscribe(wanted))

    async def configure(
        self,
        *,
        heartbeat_ms: int | None = None,
        stamps: bool | None = None,
        slow: str | UnsetType | None = UNSET,
        conflate_ms: int | None = None,
        replay: bool | None = None,
    ) -> Configured:
        """Set what holds for the connection, and again for each that follows it after a cut.

        What is left out stays as it was; with nothing at all, this asks what holds.

        Args:
            heartbeat_ms: a sign of life so often, 100 to 60000, or 0 for none; see `on_heartbeat`.
            stamps: ticks tell when they were on their way: each is a `Stamped` one as well.
            slow: what is to happen when this program is too slow, for subscriptions that do not say
                it themselves; None is each channel's own.
            conflate_ms: as for `subscribe`, likewise.
            replay: be told where the replay of the feed stands, see `on_replay`.

        Raises:
            Refused: the server refused, with its error message; nothing has changed.
            ConnectionFailed: it did not answer.
        """
        said = {
            "heartbeat_ms": heartbeat_ms, "stamps": stamps, "conflate_ms": conflate_ms,
            "replay": replay,
        }  # fmt: skip
        changes: dict[str, Any] = {name: value for name, value in said.items() if value is not None}
        if not isinstance(slow, UnsetType):
            changes["slow"] = slow
        reply = await self._life.ask(self._state.configure(changes))
        with reading():
            return configured_in(reply)

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
        """Have a tape of the server played to this program alone, over a connection of its own.

        So neither holds up the other: the replay waits for who reads it, and this stream does not
        wait for the replay. It ends with this stream.

        Args:
            tape: its name, as the server's `GET /tapes` lists it.
            channels, trades, quotes, bars: which of its streams, as for `subscribe`.
            start, end: the part of it, in its own time, as `start` of `subscribe`; by default all.
            speed: how many times as fast as it happened, 0.01 to 10000; or `max`, which is as fast
                as it is read.

        Raises:
            Refused: the server refused; 416 where it has no such tape, or not these streams.
            ConnectionFailed: it can't be reached, turned us away, or did not answer.
            ValueError: `start` or `end` is no time, `speed` no speed, or symbols are a string.
        """
        wanted = merge_channels(channels, trades, quotes, bars)
        replay = await PrivateReplay.begin(
            self._address, self.encoding, tape, wanted, start=start, end=end, speed=speed
        )
        self._replays = [each for each in self._replays if not each.ended]
        self._replays.append(replay)
        return replay

    async def switch(self, encoding: Encoding | str) -> None:
        """Go on in another encoding: the connection is closed, and comes back as after a cut.

        Without `reconnect`, the stream ends instead.
        """
        self._life.encoding = Encoding(encoding)
        await self._life.renew()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Tick:
        while isinstance(next_ := await self._life.queue.get(), Event):
            self._handlers.take(next_)
        return next_

    async def read(self, most: int = 1000) -> list[Tick]:
        """What is waiting, at least one tick and at most so many: less work than one by one.

        Returns nothing when the stream has ended. Raises as the iteration does.
        """
        try:
            while isinstance(ticks := await self._life.queue.get_ticks(most), Event):
                self._handlers.take(ticks)
        except StopAsyncIteration:
            return []
        return ticks
