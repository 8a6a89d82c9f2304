"""The publisher for user programs, which finds the store and publishes with a `FeedPublisher`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Literal, get_args

from tickcast.broker.client import check_version, make_client
from tickcast.broker.embedded import find_store
from tickcast.broker.publisher import FeedPublisher, PublisherStats
from tickcast.settings import load_settings
from tickcast.wire.errors import BrokerUnavailable, InvalidSettings
from tickcast.wire.ticks import DEFAULT_FEED, Tick, is_feed_name

OnFull = Literal["drop", "wait"]
_ON_FULL: Final = get_args(OnFull)


def ticks_of(
    frame: Any, channel: str, columns: Mapping[str, str] | None, symbol: str | None
) -> Iterator[list[Tick]]:
    """Check a table and return its ticks, in lists; see `Publisher.publish_frame`."""
    try:
        from tickcast.publishing.frames import read_frame  # noqa: PLC0415 - needs pyarrow
    except ImportError:
        raise InvalidSettings("publish_frame needs pyarrow: pip install pyarrow") from None
    return read_frame(frame, channel, columns or {}, symbol)


class Publisher:
    """Publishes ticks into a feed, each exactly once.

    It is an asynchronous context manager. Leaving its block waits until all ticks are published:

    >>> import asyncio
    >>> from tickcast import Publisher, Quote, Trade
    >>> async def publish():
    ...     async with Publisher(feed="live") as publisher:
    ...         await publisher.publish(Trade("AAPL", 187.1, 100))
    ...         await publisher.publish([Quote("AAPL", 187.0, 3, 187.1, 2), Trade("MSFT", 411, 5)])
    ...     return publisher.stats()
    >>> asyncio.run(publish()).published
    3

    While Redis is away, ticks are kept. `stats` counts what happens to each of them.

    Args:
        feed: the name of the feed; the server's `/stream` serves `live`.
        redis: the URL of the server's Redis. The default is the setting `redis_url`, or else the
            embedded store that a `tickcast serve` or `tickcast demo` of this user has started.
        on_full: what happens when too many ticks wait for Redis to come back. `drop` is for live
            sources: ticks are kept within the settings `outage_buffer_s` and `outage_buffer_bytes`,
            and the oldest are dropped. `wait` is for sources that can wait: `publish` waits, and
            nothing is dropped.
        on_outage: called when Redis becomes unreachable, with the reason.
        on_recovered: called when Redis is back, before the ticks that waited are sent. Callbacks
            are plain functions and must not block.

    Raises:
        InvalidSettings: the name, the URL or a setting in the environment is invalid.
        StoreUnavailable, BrokerUnavailable, BrokerUnsuitable: from `async with`, if there is no
            store that can be used.
    """

    def __init__(
        self,
        feed: str = DEFAULT_FEED,
        redis: str | None = None,
        *,
        on_full: OnFull = "drop",
        on_outage: Callable[[BrokerUnavailable], object] | None = None,
        on_recovered: Callable[[PublisherStats], object] | None = None,
    ) -> None:
        if not is_feed_name(feed):
            raise InvalidSettings(f"feed {feed!a} is not 1 to 32 characters of a-z 0-9 _ -")
        if on_full not in _ON_FULL:
            raise InvalidSettings(f"on_full {on_full!a} is not {' or '.join(_ON_FULL)}")
        self._feed = feed
        self._settings = load_settings(redis_url=redis)
        self._waits = on_full == "wait"
        self._on_outage = on_outage
        self._on_recovered = on_recovered
        self._exits = AsyncExitStack()
        self._publisher: FeedPublisher | None = None

    async def __aenter__(self) -> Publisher:
        client = make_client(await find_store(self._settings))
        async with AsyncExitStack() as exits:
            exits.push_async_callback(client.aclose)
            await check_version(client)
            self._publisher = await exits.enter_async_context(
                FeedPublisher(
                    client,
                    self._feed,
                    self._settings,
                    waits=self._waits,
                    on_outage=self._on_outage,
                    on_recovered=self._on_recovered,
                )
            )
            self._exits = exits.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exits.__aexit__(kind, error, traceback)

    @property
    def published(self) -> int:
        """Ticks known to be published."""
        return self._opened.published

    def stats(self) -> PublisherStats:
        """Return what has happened to the ticks so far."""
        return self._opened.stats()

    async def publish(self, ticks: Tick | Iterable[Tick]) -> None:
        """Accept a tick or several ticks, and return without waiting for Redis.

        Only a program that is far ahead of Redis has to wait.

        Raises:
            InvalidTick: a tick breaks the rules; neither it nor the ticks after it were accepted.
            BrokerUnsuitable: publishing has failed, and is not retried.
        """
        each = [ticks] if isinstance(ticks, Tick) else ticks
        await self._opened.publish(each)

    async def publish_frame(
        self,
        frame: Any,
        channel: str = "trades",
        columns: Mapping[str, str] | None = None,
        *,
        symbol: str | None = None,
    ) -> int:
        """Publish the rows of a table of polars, pandas or pyarrow, in their order.

        All rows are checked first. If one is invalid, nothing is published.

        Args:
            frame: the table; any object with `__arrow_c_stream__`.
            channel: the channel of all rows, such as `trades`, `quotes` or `bars:5m`.
            columns: the column of a field, if it has another name. Fields are named like the
                attributes of `Trade`, `Quote` and `Bar`. Other columns are ignored.
            symbol: the symbol of all rows, if there is no column for it.

        Returns:
            The number of rows.

        Raises:
            InvalidTick: a column is missing, or a row is invalid. The message names the column and
                the row, counted from 0.
            InvalidSettings: pyarrow is not installed.
        """
        rows = 0
        for ticks in ticks_of(frame, channel, columns, symbol):
            await self.publish_checked(ticks)
            rows += len(ticks)
        return rows

    async def publish_checked(self, ticks: Iterable[Tick]) -> None:
        """Accept ticks that are known to be valid. Otherwise like `publish`."""
        await self._opened.publish(ticks, checked=True)

    async def flush(self) -> None:
        """Wait until all ticks accepted so far are published or dropped. Raises like `publish`."""
        await self._opened.flush()

    @property
    def _opened(self) -> FeedPublisher:
        if self._publisher is None:
            raise RuntimeError("use the publisher in an `async with` block")
        return self._publisher
