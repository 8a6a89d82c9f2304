"""Feeds the hub: manages the broker subscriptions that clients need, and opens their streams."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

from redis.asyncio import Redis

from feed.fanout.hub import Hub
from feed.ingest.feeds import Feed, Feeds
from feed.ingest.sequences import SequenceTrackers
from feed.transport.slices import paced
from tickcast.broker import keys
from tickcast.broker.store import Store, StreamHead
from tickcast.broker.subscriber import Subscriber
from tickcast.settings import Settings
from tickcast.tasks import BackgroundTasks
from tickcast.wire.errors import (
    AccessDenied,
    BrokerUnavailable,
    InvalidTick,
    TickcastError,
    log_level_of,
)
from tickcast.wire.sequence import Batch, SequenceTracker
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import StreamKey

_OPEN_AGAIN_S: Final = 1.0
_OPENINGS_AT_ONCE: Final = 4
_OPEN_BATCH: Final = 200
_LISTED_BATCH: Final = 500

logger = logging.getLogger("tickcast.upstream")


class Upstream:
    """Connects the broker to the hub.

    A stream stays subscribed while a client wants it, and for `linger_s` after that. If a client
    holds a wildcard in a feed, new streams of the feed are opened from their first tick on.
    """

    def __init__(
        self, client: Redis, hub: Hub, settings: Settings, wake: Callable[[], None]
    ) -> None:
        self.store = Store(client)
        self.subscriber = Subscriber(client, self._on_message, self._on_reconnect)
        self._hub = hub
        self._settings = settings
        self._feeds = Feeds(settings.symbols_max)
        self._tasks = BackgroundTasks(logger)
        self._runs = SequenceTrackers(
            self.store, hub, self._feeds, self._tasks, wake, lambda: self.subscriber.connected
        )
        self._asking: dict[tuple[str, Feed], asyncio.Task[None]] = {}
        self._opening: dict[StreamKey, asyncio.Task[None]] = {}
        # Each opening takes a pooled connection. Without a limit, other users of the pool would
        # wait for one and fail after seconds.
        self._opening_turn = asyncio.Semaphore(_OPENINGS_AT_ONCE)
        self._announced: dict[StreamKey, None] = {}
        self._opener: asyncio.Task[None] | None = None
        self._unwanted_since: dict[StreamKey, float] = {}
        self._others: dict[str, Callable[[bytes], None]] = {}

    # -- what clients need

    async def listen(self, channel: str, on_message: Callable[[bytes], None]) -> None:
        """Subscribe to a channel that carries no ticks, and pass its messages to `on_message`.

        Raises:
            BrokerUnavailable: Redis has not confirmed the subscription; call this again.
        """
        self._others[channel] = on_message
        await self.subscriber.subscribe([channel])

    def stop_listening(self, channel: str) -> None:
        """Undo `listen`; the next sweep unsubscribes from the channel."""
        self._others.pop(channel, None)

    @asynccontextmanager
    async def holding(
        self, feed: str, subscriptions: Iterable[Subscription]
    ) -> AsyncIterator[Feed]:
        """Keep every stream that the subscriptions cover open in the hub until the block ends.

        The caller subscribes at the hub inside the block, so that no tick is missed. Streams that
        appear meanwhile are opened as well. Yields the state of the feed, such as its epoch.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        subscriptions = tuple(subscriptions)
        wildcards = Counter(each for each in subscriptions if each.is_wildcard)
        known = self._feeds.use(feed)
        known.wanted += wildcards
        known.wanting += 1
        try:
            await self._open_all(feed, known, Coverage(subscriptions))
            yield known
        finally:
            known.wanting -= 1
            known.wanted -= wildcards

    async def _open_all(self, feed: str, known: Feed, coverage: Coverage) -> None:
        """Open all existing streams; those that appear meanwhile open because they are wanted."""
        if not known.epoch:
            await self._ask_once(("epoch", known), partial(self._ask_epoch, feed))
        if coverage.has_wildcards:
            await self.subscriber.subscribe([keys.announcements(feed)])
            if not known.listed:
                await self._ask_once(
                    ("directory", known), lambda: self._read_directory(feed, known)
                )
        missing = await self._not_open(feed, known.streams, coverage)
        if new := [key for key in missing if self._is_new(known, key)]:
            self._begin_opening(new, from_first=True)
        if others := [key for key in missing if key not in self._opening]:
            self._begin_opening(others)
        # Shielded, because others may wait for the same streams.
        tasks = {self._opening[key] for key in missing}
        await asyncio.gather(*(asyncio.shield(task) for task in tasks))

    async def _ask_once(
        self, what: tuple[str, Feed], ask: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Query the store once for all callers that need the same answer at the same time.

        When many clients reconnect to a server that has just started, there are thousands of them.
        """
        task = self._asking.get(what)
        if task is None:
            task = self._asking[what] = self._tasks.start(ask())
            task.add_done_callback(lambda _: self._asking.pop(what, None))
        await asyncio.shield(task)

    async def _ask_epoch(self, feed: str) -> None:
        self._runs.enter_epoch(feed, await self.store.epoch(feed))

    async def _read_directory(self, feed: str, known: Feed) -> None:
        new: set[StreamKey] = set()
        some: list[StreamKey] = []
        async for key in self.store.listed(feed):
            some.append(key)
            if len(some) == _LISTED_BATCH:
                new |= known.add_streams(some)
                some.clear()
                await asyncio.sleep(0)
        new |= known.add_streams(some)
        if known.listed:
            # The directory was read before, perhaps while this task waited, so these are new.
            self._open_covered(known, new)
        known.listed = True

    async def _not_open(
        self, feed: str, known: set[StreamKey], coverage: Coverage
    ) -> list[StreamKey]:
        wanted = dict.fromkeys(StreamKey(feed, *each) for each in coverage.named)
        if coverage.has_wildcards:
            # Usually few streams are not open, and this is the fastest way to find them.
            closed = known.difference(self._hub.streams.by_key.keys())
            async for some in paced(closed):
                wanted.update((key, None) for key in some if coverage.covers_by_wildcard(key))
        return [key for key in wanted if not self._hub.is_open(key)]

    def _is_new(self, known: Feed, key: StreamKey) -> bool:
        """Whether holders of a wildcard must receive the stream from its first tick on."""
        if key in self._opening:
            return False
        return key in self._announced or (key not in known.streams and self._hub.groups.covers(key))

    def _begin_opening(
        self, streams: list[StreamKey], from_first: bool = False
    ) -> asyncio.Task[None]:
        for key in streams:
            self._announced.pop(key, None)
        task = self._tasks.start(self._open_in_parts(streams, from_first))
        self._opening.update(dict.fromkeys(streams, task))
        return task

    async def _open_in_parts(self, streams: list[StreamKey], from_first: bool) -> None:
        """Open streams in batches, so that other work can run in between."""
        try:
            for start in range(0, len(streams), _OPEN_BATCH):
                await self._open(streams[start : start + _OPEN_BATCH], from_first)
        finally:
            for key in streams:
                self._opening.pop(key, None)
                if from_first and not self._hub.is_open(key) and self._feeds.has(key):
                    # A single failure must not hide the stream from wildcards permanently.
                    self._announced[key] = None

    async def _open(self, streams: list[StreamKey], from_first: bool) -> None:
        """Subscribe to streams and open them in the hub at their latest tick.

        With `from_first` the streams are new, and their ticks so far are delivered as well.
        """
        runs = [(key, self._runs.begin(key)) for key in streams]
        late: set[str] = set()
        try:
            await self.subscriber.subscribe(keys.ticks(key) for key in streams)
            async with self._opening_turn:
                heads = await self._runs.heads(streams)
                if from_first:
                    await self._open_new(runs, heads)
                    return
            for (key, run), head in zip(runs, heads, strict=True):
                self._hub.open_stream(
                    key, head.latest, head.published_us, epoch=head.epoch, seq=head.seq
                )
                self._runs.deliver(key, run, run.start_after(head.epoch, head.seq))
                if head.epoch < self._feeds.epoch_of(key.feed):
                    late.add(key.feed)
            # These feeds entered an epoch after the store was queried, before the streams opened.
            for feed in late:
                self._runs.restart_later(feed, self._feeds.epoch_of(feed))
        finally:
            for key in streams:
                if not self._hub.is_open(key):
                    self._runs.drop(key)

    async def _open_new(
        self, runs: list[tuple[StreamKey, SequenceTracker]], heads: list[StreamHead]
    ) -> None:
        for (_, run), head in zip(runs, heads, strict=True):
            run.epoch = head.epoch
        histories = await self.store.histories([(key, run.begin_repair()) for key, run in runs])
        for (key, run), history in zip(runs, histories, strict=True):
            self._hub.open_stream(key, epoch=run.epoch)
            self._runs.deliver(key, run, run.repair(history))

    # -- messages from the broker

    def _on_message(self, channel: str, data: bytes) -> None:
        entry = self._runs.of(channel)
        if entry is None:
            if (other := self._others.get(channel)) is not None:
                other(data)
                return
            for feed, known in self._feeds:
                if channel == keys.announcements(feed):
                    member = data.decode("utf-8", "replace")
                    new = known.add_streams([keys.from_member(feed, member)])
                    self._open_covered(known, new)
            return
        key, run = entry
        try:
            batch = Batch.parse(data)
        except InvalidTick as error:
            logger.warning("ignored a message on %s: %s", channel, error)
            return
        self._runs.receive(key, run, batch)

    def _open_covered(self, known: Feed, streams: Iterable[StreamKey]) -> None:
        """Open the streams that wildcards cover from their first tick on, in batches."""
        wanted = Coverage(known.wanted)
        for key in streams:
            covered = self._hub.groups.covers(key) or wanted.covers(key)
            if covered and not self._hub.is_open(key) and key not in self._opening:
                self._announced[key] = None
        if self._announced and (self._opener is None or self._opener.done()):
            self._opener = self._tasks.start(self._open_announced())

    async def _open_announced(self) -> None:
        while self._announced:
            batch = list(self._announced)[:_OPEN_BATCH]
            try:
                await self._begin_opening(batch, from_first=True)
            except (BrokerUnavailable, AccessDenied) as error:
                logger.log(log_level_of(error), "could not open new streams: %s", error)
                await asyncio.sleep(_OPEN_AGAIN_S)
            except Exception:
                await self._open_apart(batch)

    async def _open_apart(self, streams: list[StreamKey]) -> None:
        """Open new streams one by one after a batch has failed, leaving out those that fail."""
        for key in streams:
            if key not in self._announced:
                continue
            try:
                await self._begin_opening([key], from_first=True)
            except (BrokerUnavailable, AccessDenied) as error:
                logger.log(log_level_of(error), "could not open a new stream: %s", error)
            except Exception as error:
                self._announced.pop(key, None)
                bug = None if isinstance(error, TickcastError) else error
                logger.error("left out the new stream %s: %s", key, error, exc_info=bug)

    async def _on_reconnect(self) -> None:
        """Catch up with what was published while the connection was down."""
        for feed, known in self._feeds:
            before = known.epoch
            epoch = await self.store.epoch(feed)
            if epoch < before:
                # The store is an older copy that lacks the numbers of the later epoch.
                epoch = await self.store.begin_epoch(feed, before)
            # Compare again: while the store was queried, a batch may have brought a later epoch.
            known.epoch = max(known.epoch, epoch)
            await self._runs.restart_older(feed, known.epoch)
            if known.listed:
                await self._read_directory(feed, known)
                self._open_covered(known, known.streams)
        await self._runs.compare_all()

    # -- upkeep

    async def sweep_forever(self, interval_s: float = 1.0) -> None:
        """Close streams and feeds that have been unused for `linger_s`, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval_s)
            await self._sweep_streams(loop.time())
            self._feeds.sweep(loop.time(), self._settings.linger_s, self._hub.groups.has_feed)
            announcements = (keys.announcements(feed) for feed, _ in self._feeds)
            wanted = {*self._runs.channels, *self._others, *announcements}
            try:
                self.subscriber.unsubscribe(self.subscriber.channels - wanted)
            except TickcastError as error:
                logger.debug("could not unsubscribe: %s", error)

    async def _sweep_streams(self, now: float) -> None:
        """Close the streams that have been unused for `linger_s`."""
        since: dict[StreamKey, float] = {}
        over = now - self._settings.linger_s
        async for some in paced(list(self._runs)):
            for key, run in some:
                if self._is_wanted(key, run):
                    continue
                since[key] = self._unwanted_since.get(key, now)
                if since[key] <= over and self._hub.is_open(key):
                    self._runs.drop(key)
                    self._hub.close_stream(key)
        self._unwanted_since = since

    def _is_wanted(self, key: StreamKey, run: SequenceTracker) -> bool:
        known = self._feeds.get(key.feed)
        if known is not None and known.wanting:
            return True
        if run.seq or self._feeds.has(key):
            return self._hub.is_wanted(key)
        # No such stream exists: a client made up its name. If it is ever published, it is announced
        # and opened for holders of a wildcard.
        return self._hub.is_named(key)

    async def close(self) -> None:
        """Cancel all background tasks."""
        await self._tasks.close()
