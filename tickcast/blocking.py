"""The client and the publisher for programs without an event loop, such as scripts and notebooks.

A separate thread runs the event loop. `Stream`, `PrivateReplay` and `tickcast.Publisher` document
the methods.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from tickcast.broker.publisher import PublisherStats
from tickcast.client import stream as asynchronous
from tickcast.client.accounts import Report
from tickcast.client.private_replay import PrivateReplay
from tickcast.client.stream import Stream
from tickcast.publishing import publisher as asynchronous_publisher
from tickcast.wire.playback import ReplayState
from tickcast.wire.ticks import DEFAULT_FEED, Tick
from tickcast.wire.times import Time

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Stream | PrivateReplay)


@contextmanager
def connect(url: str, **options: Any) -> Iterator[BlockingStream]:
    """Connect to a feed and stay connected until the block exits.

    A separate thread maintains the connection. The options, the errors and the bound on the number
    of unread ticks are those of `tickcast.connect`.

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
            # A pending read would keep the other thread, and so the program, from ending.
            blocking.cancel_reads()


class _BlockingIterator(Generic[S]):
    """A blocking iterator over ticks that another thread receives."""

    def __init__(self, portal: BlockingPortal, source: S) -> None:
        self._portal = portal
        self._source = source
        self._ticks: deque[Tick] = deque()
        # A read that outlived its timeout. The next one returns its ticks, so none are lost.
        self._pending_read: Future[list[Tick]] | None = None

    def read(self, timeout_s: float | None = None) -> list[Tick]:
        """Return all unread ticks, waiting for at least one; an empty list after a timeout.

        Args:
            timeout_s: how long to wait; None waits until ticks arrive or the stream ends.
        """
        if self._ticks:
            ticks = list(self._ticks)
            self._ticks.clear()
            return ticks
        pending = self._pending_read or self._portal.start_task_soon(self._source.read)
        self._pending_read = pending
        try:
            ticks = pending.result(timeout_s)
        except TimeoutError:
            if not pending.done():
                return []
            raise
        self._pending_read = None
        return ticks

    def cancel_reads(self) -> None:
        """Cancel the pending read."""
        if self._pending_read is not None:
            self._pending_read.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tick:
        if not self._ticks:
            # All unread ticks at once: crossing threads for each tick would be slow.
            self._ticks.extend(self.read())
            if not self._ticks:
                raise StopIteration
        return self._ticks.popleft()


def _blocking(
    method: Callable[Concatenate[S, P], Awaitable[R]],
) -> Callable[Concatenate[_BlockingIterator[S], P], R]:
    """Return a method that waits until the other thread has run this one."""

    @wraps(method)
    def call(self: _BlockingIterator[S], /, *args: P.args, **options: P.kwargs) -> R:
        return self._portal.call(partial(method, self._source, *args, **options))

    return call


class BlockingStream(_BlockingIterator[Stream]):
    """A connection to a feed: a blocking iterator of ticks.

    It has the methods of `tickcast.Stream`. The other thread calls `on_gap` and the other
    callbacks, in order with the ticks, while this thread waits.
    """

    def __init__(self, portal: BlockingPortal, stream: Stream) -> None:
        super().__init__(portal, stream)
        self._replays: list[BlockingReplay] = []

    @property
    def connected(self) -> bool:
        """Whether all subscriptions are in place; False until they are restored."""
        return self._source.connected

    @property
    def reconnects(self) -> int:
        """The number of times that the connection was re-established."""
        return self._source.reconnects

    def report(self) -> Report:
        """Return the accounting of all ticks."""
        return self._portal.call(self._source.report)

    subscribe = _blocking(Stream.subscribe)
    unsubscribe = _blocking(Stream.unsubscribe)
    configure = _blocking(Stream.configure)
    _start_replay = _blocking(Stream.replay)

    def replay(self, tape: str, *args: Any, **options: Any) -> BlockingReplay:
        """Play a tape to this program alone, as `tickcast.Stream.replay` does."""
        replay = BlockingReplay(self._portal, self._start_replay(tape, *args, **options))
        self._replays = [each for each in self._replays if not each.ended]
        self._replays.append(replay)
        return replay

    def cancel_reads(self) -> None:
        """Cancel the pending reads of the stream and of its replays."""
        for replay in self._replays:
            replay.cancel_reads()
        super().cancel_reads()


class BlockingReplay(_BlockingIterator[PrivateReplay]):
    """A tape played to this program alone. It has the methods of `tickcast.PrivateReplay`.

    >>> with connect(URL) as stream:
    ...     replay = stream.replay("es-2013-09-01", trades=["ES"], start="2013-09-01T17:01:00Z")
    ...     first = next(replay)
    ...     state = replay.speed("max")
    ...     rest = list(replay)
    >>> first.time.rfc3339(), state.mode, len(rest)
    ('2013-09-01T17:01:00.083Z', <ReplayMode.PLAYING: 'playing'>, 39)
    """

    @property
    def state(self) -> ReplayState:
        """The state that the server last reported."""
        return self._source.state

    @property
    def ended(self) -> bool:
        """Whether the replay is over; unread ticks can still be read."""
        return self._source.ended

    pause = _blocking(PrivateReplay.pause)
    resume = _blocking(PrivateReplay.resume)
    speed = _blocking(PrivateReplay.speed)
    _seek = _blocking(PrivateReplay.seek)
    _stop = _blocking(PrivateReplay.stop)

    def seek(self, position: datetime | str | int) -> ReplayState:
        """Move the replay to another time, dropping unread ticks."""
        position_ns = int(Time.from_wire(position))  # An invalid time drops nothing.
        self._drop_ticks()
        return self._seek(position_ns)

    def stop(self) -> ReplayState:
        """Stop the replay, dropping unread ticks."""
        self._drop_ticks()
        return self._stop()

    def _drop_ticks(self) -> None:
        self._ticks.clear()
        if self._pending_read is not None:
            self._pending_read.cancel()  # Also drops the ticks that it has received.
            self._pending_read = None


class BlockingPublisher:
    """Publishes ticks into a feed, from any number of threads. Programs import it as `Publisher`.

    It has the arguments and the methods of `tickcast.Publisher`. The ticks of one thread are
    published in its order. Callbacks run in the thread that publishes, and must not call the
    publisher.

    >>> from tickcast import Trade
    >>> from tickcast.blocking import Publisher
    >>> with Publisher(feed="live") as publisher:
    ...     publisher.publish(Trade("AAPL", 187.1, 100))
    ...     publisher.publish(Trade("MSFT", 411, n) for n in range(9))
    >>> publisher.stats().published
    10
    """

    def __init__(self, feed: str = DEFAULT_FEED, redis: str | None = None, **options: Any) -> None:
        self._publisher = asynchronous_publisher.Publisher(feed, redis, **options)
        self._exits = ExitStack()
        self._portal: BlockingPortal | None = None
        self._pid = 0

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            portal = exits.enter_context(start_blocking_portal())
            exits.enter_context(portal.wrap_async_context_manager(self._publisher))
            self._exits = exits.pop_all()
        self._portal, self._pid = portal, os.getpid()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._exits.__exit__(kind, error, traceback)
        finally:
            self._portal = None

    @property
    def published(self) -> int:
        """Ticks known to be published."""
        return self._publisher.published

    def stats(self) -> PublisherStats:
        """Return what has happened to the ticks so far. This also works after the block."""
        if self._portal is None:
            return self._publisher.stats()
        return self._opened.call(self._publisher.stats)

    def publish(self, ticks: Tick | Iterable[Tick]) -> None:
        """Accept a tick or several ticks. Several are cheaper: each call wakes another thread."""
        # An iterable may be slow, and would hold up the ticks of other threads there.
        each = [ticks] if isinstance(ticks, Tick) else list(ticks)
        self._opened.call(self._publisher.publish, each)

    def publish_frame(
        self,
        frame: Any,
        channel: str = "trades",
        columns: Mapping[str, str] | None = None,
        *,
        symbol: str | None = None,
    ) -> int:
        """Publish the rows of a table of polars, pandas or pyarrow, in their order."""
        portal, publish = self._opened, self._publisher.publish_checked
        rows = 0
        for ticks in asynchronous_publisher.ticks_of(frame, channel, columns, symbol):
            portal.call(publish, ticks)
            rows += len(ticks)
        return rows

    def flush(self) -> None:
        """Wait until all ticks accepted so far are published or dropped."""
        self._opened.call(self._publisher.flush)

    @property
    def _opened(self) -> BlockingPortal:
        if self._portal is None:
            raise RuntimeError("use the publisher in a `with` block")
        if self._pid != os.getpid():
            # Only the thread that forked exists here, and calls would wait forever.
            raise RuntimeError(
                "open a publisher in each process; this one was open before the fork"
            )
        return self._portal


# What programs import, so that they differ in one line from programs with an event loop.
Publisher = BlockingPublisher
