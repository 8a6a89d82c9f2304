"""The client for programs without an event loop, such as scripts and notebooks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal
from msgspec import UNSET, UnsetType

from clients import stream as asynchronous
from clients.notices import Configured
from clients.private_replay import PrivateReplay
from clients.report import Report
from clients.state import Notice
from clients.stream import Stream
from feed.playback import State
from feed.ticks import Tick
from feed.times import Time


@contextmanager
def connect(url: str, **options: Any) -> Iterator[BlockingStream]:
    """Connect to a feed, and stay connected until the block is left.

    The connection is kept by a thread of its own. What waits for the program is bounded, as in
    `clients.connect`, whose options these are and whose errors these raise.

    >>> with connect(URL) as stream:
    ...     reply = stream.subscribe(trades=["ES"], start="2013-09-01T17:00:00Z")
    ...     tick = next(stream)
    >>> tick.symbol, tick.price, tick.time.rfc3339()
    ('ES', 100.0, '2013-09-01T17:00:00.083Z')
    """
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(asynchronous.connect(url, **options)) as stream,
    ):
        blocking = BlockingStream(portal, stream)
        try:
            yield blocking
        finally:
            blocking.give_up()


class _Blocking:
    """An iterator of ticks that waits for the next one, while another thread receives them."""

    def __init__(self, portal: BlockingPortal, source: Stream | PrivateReplay) -> None:
        self._portal = portal
        self._source = source
        self._ticks: deque[Tick] = deque()
        self._under_way: Future[list[Tick]] | None = None

    def read(self, timeout_s: float | None = None) -> list[Tick]:
        """What is waiting, as soon as there is something; nothing when the time is over.

        Args:
            timeout_s: how long to wait; None waits until it has ended.
        """
        if self._ticks:
            ticks = list(self._ticks)
            self._ticks.clear()
            return ticks
        # What is being waited for when the time is over comes with the next call.
        under_way = self._under_way or self._portal.start_task_soon(self._source.read)
        self._under_way = under_way
        try:
            ticks = under_way.result(timeout_s)
        except TimeoutError:
            if not under_way.done():
                return []
            raise
        self._under_way = None
        return ticks

    def give_up(self) -> None:
        """Wait for nothing more."""
        if self._under_way is not None:
            self._under_way.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tick:
        if not self._ticks:
            self._ticks.extend(self.read())
            if not self._ticks:
                raise StopIteration
        return self._ticks.popleft()


class BlockingStream(_Blocking):
    """A connection to a feed: an iterator of ticks that waits for the next one.

    Its methods are those of `clients.Stream`. `on_gap` and the like are called by the other thread,
    while this one waits: in their place among the ticks.
    """

    def __init__(self, portal: BlockingPortal, stream: Stream) -> None:
        super().__init__(portal, stream)
        self._stream = stream
        self._replays: list[BlockingReplay] = []

    @property
    def connected(self) -> bool:
        """False from a cut until the subscriptions are held again."""
        return self._stream.connected

    @property
    def reconnects(self) -> int:
        """How often the connection was re-established."""
        return self._stream.reconnects

    def report(self) -> Report:
        """What has become of every tick."""
        return self._portal.call(self._stream.report)

    def subscribe(
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
        """Add subscriptions, as `clients.Stream.subscribe` does."""

        async def ask() -> Notice:
            return await self._stream.subscribe(
                channels, trades=trades, quotes=quotes, bars=bars, snapshot=snapshot, start=start,
                conflate_ms=conflate_ms, slow=slow,
            )  # fmt: skip

        return self._portal.call(ask)

    def unsubscribe(
        self,
        channels: Mapping[str, Iterable[str]] | None = None,
        *,
        trades: Iterable[str] = (),
        quotes: Iterable[str] = (),
        bars: Iterable[str] = (),
    ) -> Notice:
        """End subscriptions, as `clients.Stream.unsubscribe` does."""

        async def ask() -> Notice:
            return await self._stream.unsubscribe(channels, trades=trades, quotes=quotes, bars=bars)

        return self._portal.call(ask)

    def configure(
        self,
        *,
        heartbeat_ms: int | None = None,
        stamps: bool | None = None,
        slow: str | UnsetType | None = UNSET,
        conflate_ms: int | None = None,
        replay: bool | None = None,
    ) -> Configured:
        """Set what holds for the connection, as `clients.Stream.configure` does."""

        async def ask() -> Configured:
            return await self._stream.configure(
                heartbeat_ms=heartbeat_ms, stamps=stamps, slow=slow, conflate_ms=conflate_ms,
                replay=replay,
            )  # fmt: skip

        return self._portal.call(ask)

    def replay(
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
    ) -> BlockingReplay:
        """Have a tape played to this program alone, as `clients.Stream.replay` does."""

        async def ask() -> PrivateReplay:
            return await self._stream.replay(
                tape, channels, trades=trades, quotes=quotes, bars=bars, start=start, end=end,
                speed=speed,
            )  # fmt: skip

        replay = BlockingReplay(self._portal, self._portal.call(ask))
        self._replays = [each for each in self._replays if not each.ended]
        self._replays.append(replay)
        return replay

    def give_up(self) -> None:
        """Wait for nothing more, of its replays neither."""
        for replay in self._replays:
            replay.give_up()
        super().give_up()


class BlockingReplay(_Blocking):
    """A tape that plays to this program alone. Its methods are those of `clients.PrivateReplay`.

    >>> with connect(URL) as stream:
    ...     replay = stream.replay("es-2013-09-01", trades=["ES"], start="2013-09-01T17:01:00Z")
    ...     first = next(replay)
    ...     state = replay.speed("max")
    ...     rest = list(replay)
    >>> first.time.rfc3339(), state.mode, len(rest)
    ('2013-09-01T17:01:00.083Z', <Mode.PLAYING: 'playing'>, 39)
    """

    def __init__(self, portal: BlockingPortal, replay: PrivateReplay) -> None:
        super().__init__(portal, replay)
        self._replay = replay

    @property
    def state(self) -> State:
        """Where it stood when the server last told."""
        return self._replay.state

    @property
    def ended(self) -> bool:
        """Whether nothing more will come, but for what is waiting."""
        return self._replay.ended

    def pause(self) -> State:
        """Have it stand still, and tell where."""
        return self._portal.call(self._replay.pause)

    def resume(self) -> State:
        """Have it go on."""
        return self._portal.call(self._replay.resume)

    def seek(self, position: datetime | str | int) -> State:
        """Have it go on from another place; what waits to be read is dropped."""
        position_ns = int(Time.from_wire(position))
        self._drop()
        return self._portal.call(self._replay.seek, position_ns)

    def speed(self, speed: float | str) -> State:
        """Have it go on at another speed."""
        return self._portal.call(self._replay.speed, speed)

    def stop(self) -> State:
        """End it; what waits to be read is dropped."""
        self._drop()
        return self._portal.call(self._replay.stop)

    def _drop(self) -> None:
        self._ticks.clear()
        if self._under_way is not None:
            self._under_way.cancel()  # Before it has got something, or with it.
            self._under_way = None
