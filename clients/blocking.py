"""The client for programs without an event loop, such as scripts and notebooks.

with connect("ws://127.0.0.1:8000/stream") as stream:
    stream.subscribe(trades=["ES"])
    for tick in stream:
        print(tick.symbol, tick.price)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self

from anyio.from_thread import BlockingPortal, start_blocking_portal

from clients import stream as asynchronous
from clients.report import Report
from clients.state import Notice
from clients.stream import Stream
from feed.ticks import Tick


@contextmanager
def connect(url: str, **options: Any) -> Iterator[BlockingStream]:
    """Connect to a feed, and stay connected until the block is left.

    The connection is kept by a thread of its own. What waits for the program is bounded, as in
    `clients.connect`, whose options these are and whose errors these raise.
    """
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(asynchronous.connect(url, **options)) as stream,
    ):
        blocking = BlockingStream(portal, stream)
        try:
            yield blocking
        finally:
            blocking.stop()


class BlockingStream:
    """A connection to a feed: an iterator of ticks that waits for the next one.

    Its methods are those of `clients.Stream`. `on_gap` is called by the other thread, while this
    one waits: in its place among the ticks.
    """

    def __init__(self, portal: BlockingPortal, stream: Stream) -> None:
        self._portal = portal
        self._stream = stream
        self._ticks: deque[Tick] = deque()
        self._under_way: Future[list[Tick]] | None = None

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

    def read(self, timeout_s: float | None = None) -> list[Tick]:
        """What is waiting, as soon as there is something; nothing when the time is over.

        Args:
            timeout_s: how long to wait; None waits until the stream ends.
        """
        if self._ticks:
            ticks = list(self._ticks)
            self._ticks.clear()
            return ticks
        # What is being waited for when the time is over comes with the next call.
        under_way = self._under_way or self._portal.start_task_soon(self._stream.read)
        self._under_way = under_way
        try:
            ticks = under_way.result(timeout_s)
        except TimeoutError:
            if not under_way.done():
                return []
            raise
        self._under_way = None
        return ticks

    def stop(self) -> None:
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
