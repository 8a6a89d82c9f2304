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
from feed.ingest.live_ticks import Feed, SequenceTrackers
from feed.transport.loop_time import paced
from tickcast.broker import keys
from tickcast.broker.store import Store, StreamHead
from tickcast.broker.subscriber import Subscriber
from tickcast.settings import Settings
from tickcast.tasks import BackgroundTasks
from tickcast.wire.errors import AccessDenied, BrokerUnavailable, TickcastError, log_level_of
from tickcast.wire.sequence import SequenceTracker
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import StreamKey

_OPEN_AGAIN_S: Final = 1.0
_OPENINGS_AT_ONCE: Final = 4
# Streams are opened, and the directory is processed, in parts of this size, so that other work can
# run in between.
_STREAMS_PER_OPENING: Final = 200
_LISTED_AT_ONCE: Final = 500

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
        self._hub = hub
        self._settings = settings
        # The feeds that clients use or have used recently.
        self._feeds: dict[str, Feed] = {}
        self._tasks = BackgroundTasks(logger)
        # Handlers of the channels that carry no ticks, such as announcements of new streams.
        self._listeners: dict[str, Callable[[bytes], None]] = {}
        self._trackers = SequenceTrackers(
            self.store, hub, self._feeds, self._tasks, wake, lambda: self.subscriber.connected,
            self._listeners,
        )  # fmt: skip
        # Messages go to the trackers without a detour: there is one for every batch of ticks.
        self.subscriber = Subscriber(client, self._trackers.receive, self._on_reconnect)
        # Queries to the store that several clients wait for.
        self._queries: dict[tuple[str, Feed], asyncio.Task[None]] = {}
        self._opening: dict[StreamKey, asyncio.Task[None]] = {}
        # Each opening takes a pooled connection. Without a limit, other users of the pool would
        # wait for one and fail after seconds.
        self._opening_turn = asyncio.Semaphore(_OPENINGS_AT_ONCE)
        # New streams that are to be opened from their first tick on. A dict keeps their order.
        self._new_streams: dict[StreamKey, None] = {}
        self._opener: asyncio.Task[None] | None = None
        self._unwanted_since_s: dict[StreamKey, float] = {}

    async def stop(self) -> None:
        """Cancel all background tasks."""
        await self._tasks.cancel_all()

    # -- messages from the broker

    async def listen(self, channel: str, on_message: Callable[[bytes], None]) -> None:
        """Subscribe to a channel that carries no ticks, and pass its messages to `on_message`.

        Raises BrokerUnavailable if Redis has not confirmed the subscription; call this again.
        """
        self._listeners[channel] = on_message
        await self.subscriber.subscribe([channel])

    def stop_listening(self, channel: str) -> None:
        """Undo `listen`; the next sweep unsubscribes from the channel."""
        self._listeners.pop(channel, None)

    def _on_announcement(self, feed: str, message: bytes) -> None:
        if (state := self._feeds.get(feed)) is not None:
            key = keys.from_member(feed, message.decode("utf-8", "replace"))
            self._open_covered(state, state.add_streams([key]))

    async def _on_reconnect(self) -> None:
        """Catch up with what was published while the connection was down."""
        for feed, state in list(self._feeds.items()):
            before = state.epoch
            epoch = await self.store.epoch(feed)
            if epoch < before:
                # The store is an older copy that lacks the numbers of the later epoch.
                epoch = await self.store.begin_epoch(feed, before)
            # Compare again: while the store was queried, a batch may have brought a later epoch.
            state.epoch = max(state.epoch, epoch)
            await self._trackers.restart_older(feed, state.epoch)
            if state.is_listed:
                await self._list_streams(feed, state)
                self._open_covered(state, state.streams)
        await self._trackers.compare_all()

    # -- what clients need

    @asynccontextmanager
    async def holding(
        self, feed: str, subscriptions: Iterable[Subscription]
    ) -> AsyncIterator[Feed]:
        """Keep every stream that the subscriptions cover open in the hub until the block ends.

        The caller subscribes at the hub inside the block, so that no tick is missed. Streams that
        appear meanwhile are opened as well. Yields the state of the feed, such as its epoch.

        Raises BrokerUnavailable.
        """
        subscriptions = tuple(subscriptions)
        wildcards = Counter(each for each in subscriptions if each.is_wildcard)
        state = self._feeds.get(feed)
        if state is None:
            state = self._feeds[feed] = Feed(self._settings.symbols_max)
        state.awaited_wildcards += wildcards
        state.waiting += 1
        try:
            await self._open_all(feed, state, Coverage(subscriptions))
            yield state
        finally:
            state.waiting -= 1
            state.awaited_wildcards -= wildcards

    async def _open_all(self, feed: str, state: Feed, coverage: Coverage) -> None:
        """Open all existing streams; those that appear meanwhile open because they are awaited."""
        if not state.epoch:
            await self._query_once("epoch", state, lambda: self._read_epoch(feed))
        if coverage.has_wildcards:
            await self.listen(keys.announcements(feed), partial(self._on_announcement, feed))
            if not state.is_listed:
                await self._query_once("streams", state, lambda: self._list_streams(feed, state))
        missing = await self._find_closed(feed, state.streams, coverage)
        if new := [key for key in missing if self._is_new(state, key)]:
            self._start_opening(new, from_first=True)
        if others := [key for key in missing if key not in self._opening]:
            self._start_opening(others)
        # Shielded, because others may wait for the same streams.
        tasks = {self._opening[key] for key in missing}
        await asyncio.gather(*(asyncio.shield(task) for task in tasks))

    async def _query_once(
        self, name: str, state: Feed, query: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Query the store once for all callers that need the same answer at the same time.

        When many clients reconnect to a server that has just started, there are thousands of them.
        """
        task = self._queries.get((name, state))
        if task is None:
            task = self._queries[name, state] = self._tasks.start(query())
            task.add_done_callback(lambda _: self._queries.pop((name, state), None))
        await asyncio.shield(task)

    async def _read_epoch(self, feed: str) -> None:
        self._trackers.enter_epoch(feed, await self.store.epoch(feed))

    async def _list_streams(self, feed: str, state: Feed) -> None:
        new: set[StreamKey] = set()
        part: list[StreamKey] = []
        async for key in self.store.iter_streams(feed):
            part.append(key)
            if len(part) == _LISTED_AT_ONCE:
                new |= state.add_streams(part)
                part.clear()
                await asyncio.sleep(0)
        new |= state.add_streams(part)
        if state.is_listed:
            # They were listed before, perhaps while this task waited, so these are new.
            self._open_covered(state, new)
        state.is_listed = True

    async def _find_closed(
        self, feed: str, known: set[StreamKey], coverage: Coverage
    ) -> list[StreamKey]:
        """The streams that the subscriptions cover and that are not open."""
        wanted = dict.fromkeys(StreamKey(feed, *each) for each in coverage.named)
        if coverage.has_wildcards:
            # Usually few streams are not open, and this is the fastest way to find them.
            closed = known.difference(self._hub.streams.by_key.keys())
            async for part in paced(closed):
                wanted.update((key, None) for key in part if coverage.covers_by_wildcard(key))
        return [key for key in wanted if not self._hub.is_open(key)]

    def _is_new(self, state: Feed, key: StreamKey) -> bool:
        """Whether holders of a wildcard must receive the stream from its first tick on."""
        if key in self._opening:
            return False
        return key in self._new_streams or (
            key not in state.streams and self._hub.groups.covers(key)
        )

    # -- opening streams

    def _start_opening(
        self, streams: list[StreamKey], from_first: bool = False
    ) -> asyncio.Task[None]:
        for key in streams:
            self._new_streams.pop(key, None)
        task = self._tasks.start(self._open_in_parts(streams, from_first))
        self._opening.update(dict.fromkeys(streams, task))
        return task

    async def _open_in_parts(self, streams: list[StreamKey], from_first: bool) -> None:
        try:
            for start in range(0, len(streams), _STREAMS_PER_OPENING):
                await self._open(streams[start : start + _STREAMS_PER_OPENING], from_first)
        finally:
            for key in streams:
                self._opening.pop(key, None)
                if from_first and not self._hub.is_open(key) and self._exists(key):
                    # A single failure must not hide the stream from wildcards permanently.
                    self._new_streams[key] = None

    def _exists(self, key: StreamKey) -> bool:
        """Whether the stream is known to have been published."""
        return key.feed in self._feeds and key in self._feeds[key.feed].streams

    async def _open(self, streams: list[StreamKey], from_first: bool) -> None:
        """Subscribe to streams and open them in the hub at their latest tick.

        With `from_first` the streams are new, and their ticks so far are delivered as well.
        """
        tracked = [(key, self._trackers.track(key)) for key in streams]
        late: set[str] = set()
        try:
            await self.subscriber.subscribe(keys.ticks(key) for key in streams)
            async with self._opening_turn:
                heads = await self._trackers.read_heads(streams)
                if from_first:
                    await self._open_from_first(tracked, heads)
                    return
            for (key, tracker), head in zip(tracked, heads, strict=True):
                self._hub.open_stream(
                    key, head.latest, head.published_us, epoch=head.epoch, seq=head.seq
                )
                self._trackers.deliver(key, tracker, tracker.start_after(head.epoch, head.seq))
                if head.epoch < self._trackers.epoch_of(key.feed):
                    late.add(key.feed)
            # These feeds entered an epoch after the store was queried, before the streams opened.
            for feed in late:
                self._trackers.restart_later(feed, self._trackers.epoch_of(feed))
        finally:
            for key in streams:
                if not self._hub.is_open(key):
                    self._trackers.forget(key)

    async def _open_from_first(
        self, tracked: list[tuple[StreamKey, SequenceTracker]], heads: list[StreamHead]
    ) -> None:
        for (_, tracker), head in zip(tracked, heads, strict=True):
            tracker.epoch = head.epoch
        histories = await self.store.histories(
            [(key, tracker.begin_repair()) for key, tracker in tracked]
        )
        for (key, tracker), history in zip(tracked, histories, strict=True):
            self._hub.open_stream(key, epoch=tracker.epoch)
            self._trackers.deliver(key, tracker, tracker.repair(history))

    def _open_covered(self, state: Feed, streams: Iterable[StreamKey]) -> None:
        """Open the streams that wildcards cover from their first tick on, in the background."""
        awaited = Coverage(state.awaited_wildcards)
        for key in streams:
            covered = self._hub.groups.covers(key) or awaited.covers(key)
            if covered and not self._hub.is_open(key) and key not in self._opening:
                self._new_streams[key] = None
        if self._new_streams and (self._opener is None or self._opener.done()):
            self._opener = self._tasks.start(self._open_new_streams())

    async def _open_new_streams(self) -> None:
        while self._new_streams:
            await self._open_new(list(self._new_streams)[:_STREAMS_PER_OPENING])

    async def _open_new(self, streams: list[StreamKey]) -> None:
        """Open new streams; if that fails, one by one, leaving out those that fail again."""
        try:
            await self._start_opening(streams, from_first=True)
        except (BrokerUnavailable, AccessDenied) as error:
            logger.log(log_level_of(error), "could not open new streams: %s", error)
            await asyncio.sleep(_OPEN_AGAIN_S)
        except Exception as error:
            if len(streams) > 1:
                for key in streams:
                    if key in self._new_streams:
                        await self._open_new([key])
                return
            (key,) = streams
            self._new_streams.pop(key, None)
            bug = None if isinstance(error, TickcastError) else error
            logger.error("left out the new stream %s: %s", key, error, exc_info=bug)

    # -- closing streams

    async def sweep_forever(self, interval_s: float = 1.0) -> None:
        """Close streams and feeds that have been unused for `linger_s`, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval_s)
            await self._sweep_streams(loop.time())
            self._sweep_feeds(loop.time())
            unused = self.subscriber.channels - self._trackers.channels - self._listeners.keys()
            try:
                self.subscriber.unsubscribe(unused)
            except TickcastError as error:
                logger.debug("could not unsubscribe: %s", error)

    async def _sweep_streams(self, now_s: float) -> None:
        since_s: dict[StreamKey, float] = {}
        async for part in paced(list(self._trackers)):
            for key, tracker in part:
                if self._is_wanted(key, tracker):
                    continue
                since_s[key] = self._unwanted_since_s.get(key, now_s)
                is_over = since_s[key] <= now_s - self._settings.linger_s
                if is_over and self._hub.is_open(key):
                    self._trackers.forget(key)
                    self._hub.close_stream(key)
        self._unwanted_since_s = since_s

    def _is_wanted(self, key: StreamKey, tracker: SequenceTracker) -> bool:
        state = self._feeds.get(key.feed)
        if state is not None and state.waiting:
            return True
        if tracker.seq or self._exists(key):
            return self._hub.is_wanted(key)
        # No such stream exists: a client made up its name. If it is ever published, it is announced
        # and opened for holders of a wildcard.
        return self._hub.is_named(key)

    def _sweep_feeds(self, now_s: float) -> None:
        for name, feed in list(self._feeds.items()):
            if feed.waiting or self._hub.groups.has_feed(name):
                feed.unused_since_s = None
            elif feed.unused_since_s is None:
                feed.unused_since_s = now_s
            elif feed.unused_since_s <= now_s - self._settings.linger_s:
                del self._feeds[name]
                self.stop_listening(keys.announcements(name))
