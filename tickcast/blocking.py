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

from tickcast.client import stream as asynchronous
from tickcast.client.notices import Configured
from tickcast.client.private_replay import PrivateReplay
from tickcast.client.report import Report
from tickcast.client.state import Notice
from tickcast.client.stream import Stream
from tickcast.wire.playback import ReplayState
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time


@contextmanager
def connect(url: str, **options: Any) -> Iterator[BlockingStream]:
    """Connect to a feed and stay connected until the block exits.

    A separate thread maintains the connection. The options, the errors and the bound on the number
    of unread ticks are those of `clients.connect`.

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
            blocking.cancel_waiting()


class _Blocking:
    """A blocking iterator over ticks that another thread receives."""

    def __init__(self, portal: BlockingPortal, source: Stream | PrivateReplay) -> None:
        self._portal = portal
        self._source = source
        self._ticks: deque[Tick] = deque()
        self._under_way: Future[list[Tick]] | None = None

    def read(self, timeout_s: float | None = None) -> list[Tick]:
        """Return all unread ticks, waiting for at least one; an empty list after a timeout.

        Args:
            timeout_s: how long to wait; None waits until ticks arrive or the stream ends.
        """
        if self._ticks:
            ticks = list(self._ticks)
            self._ticks.clear()
            return ticks
        # After a timeout the pending read is kept, and the next call returns its ticks.
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

    def cancel_waiting(self) -> None:
        """Cancel the pending read."""
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
    """A connection to a feed: a blocking iterator of ticks.

    It has the methods of `clients.Stream`. The other thread calls `on_gap` and the other callbacks,
    in order with the ticks, while this thread waits.
    """

    def __init__(self, portal: BlockingPortal, stream: Stream) -> None:
        super().__init__(portal, stream)
        self._stream = stream
        self._replays: list[BlockingReplay] = []

    @property
    def connected(self) -> bool:
        """Whether all subscriptions are in place; False from a cut until they are restored."""
        return self._stream.connected

    @property
    def reconnects(self) -> int:
        """The number of times that the connection was re-established."""
        return self._stream.reconnects

    def report(self) -> Report:
        """Return the accounting of all ticks."""
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
        """Change the settings of the connection, as `clients.Stream.configure` does."""

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
        """Play a tape to this program alone, as `clients.Stream.replay` does."""

        async def ask() -> PrivateReplay:
            return await self._stream.replay(
                tape, channels, trades=trades, quotes=quotes, bars=bars, start=start, end=end,
                speed=speed,
            )  # fmt: skip

        replay = BlockingReplay(self._portal, self._portal.call(ask))
        self._replays = [each for each in self._replays if not each.ended]
        self._replays.append(replay)
        return replay

    def cancel_waiting(self) -> None:
        """Cancel the pending reads of the stream and of its replays."""
        for replay in self._replays:
            replay.cancel_waiting()
        super().cancel_waiting()


class BlockingReplay(_Blocking):
    """A tape played to this program alone. It has the methods of `clients.PrivateReplay`.

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
    def state(self) -> ReplayState:
        """The state that the server last reported."""
        return self._replay.state

    @property
    def ended(self) -> bool:
        """Whether the replay is over; unread ticks can still be read."""
        return self._replay.ended

    def pause(self) -> ReplayState:
        """Pause the replay and return its state."""
        return self._portal.call(self._replay.pause)

    def resume(self) -> ReplayState:
        """Resume the replay."""
        return self._portal.call(self._replay.resume)

    def seek(self, position: datetime | str | int) -> ReplayState:
        """Move the replay to another time, dropping unread ticks."""
        position_ns = int(Time.from_wire(position))
        self._drop()
        return self._portal.call(self._replay.seek, position_ns)

    def speed(self, speed: float | str) -> ReplayState:
        """Change the speed of the replay."""
        return self._portal.call(self._replay.speed, speed)

    def stop(self) -> ReplayState:
        """Stop the replay, dropping unread ticks."""
        self._drop()
        return self._portal.call(self._replay.stop)

    def _drop(self) -> None:
        self._ticks.clear()
        if self._under_way is not None:
            self._under_way.cancel()  # Also drops the ticks that it has received.
            self._under_way = None
