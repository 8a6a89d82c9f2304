"""Live ticks from the broker to the clients.

`SequenceTrackers` passes each batch on to the hub: complete, in order and in its feed's epoch.
`Flusher` decides when the hub sends what it has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping
from typing import Final

from feed.fanout.hub import Hub
from tickcast.broker import keys
from tickcast.broker.store import Store, StreamHead
from tickcast.tasks import BackgroundTasks
from tickcast.wire.errors import BrokerUnavailable, InvalidTick
from tickcast.wire.sequence import (
    Batch,
    GapReason,
    SequenceEvent,
    SequenceGap,
    SequenceTracker,
)
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.ticks import CHANNELS, StreamKey, is_symbol
from tickcast.wire.times import Instant

_RETRY_PAUSE_S: Final = 0.1
_REPAIRS_AT_ONCE: Final = 8
# Timers have a resolution of 1 ms. This margin keeps them from firing before the due time.
_TIMER_MARGIN_S: Final = 0.001

logger = logging.getLogger("tickcast.upstream")

# A stream with its tracker.
_Tracked = tuple[StreamKey, SequenceTracker]


class Feed:
    """The state of one feed while clients use it."""

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        # Empty until it has been read.
        self.epoch = ""
        # The streams that are known to exist: all of them once the directory has been listed, which
        # only wildcards need.
        self.streams: set[StreamKey] = set()
        self.is_listed = False
        # How many clients are waiting for streams of the feed, and the wildcards that they will
        # subscribe to.
        self.waiting = 0
        self.awaited_wildcards: Counter[Subscription] = Counter()
        # When the last client left, on the loop's clock; None while the feed is used.
        self.unused_since_s: float | None = None

    def add_streams(self, listed: Iterable[StreamKey]) -> set[StreamKey]:
        """Add streams to the known ones, up to the limit. Returns the new ones."""
        valid = {key for key in listed if key.channel in CHANNELS and is_symbol(key.symbol)}
        new = valid - self.streams
        room = self._streams_max - len(self.streams)
        if len(new) > room:
            logger.warning("a feed has more than symbols_max streams: %d left out", len(new) - room)
            new = set(sorted(new)[:room])
        self.streams |= new
        return new


class SequenceTrackers:
    """A tracker for each stream that is open or about to be opened.

    Incoming batches pass through the stream's tracker into the hub. Missing ticks are read from
    history. If the store itself has lost numbers, a new epoch begins.

    Args:
        feeds: the feeds in use, by name.
        wake: called when a flush is needed.
        is_connected: returns whether the broker appears to be connected.
        listeners: handlers of the channels that carry no ticks, by channel.
    """

    def __init__(
        self,
        store: Store,
        hub: Hub,
        feeds: dict[str, Feed],
        tasks: BackgroundTasks,
        wake: Callable[[], None],
        is_connected: Callable[[], bool],
        listeners: Mapping[str, Callable[[bytes], None]],
    ) -> None:
        self._store = store
        self._hub = hub
        self._feeds = feeds
        self._tasks = tasks
        self._wake = wake
        self._is_connected = is_connected
        self._listeners = listeners
        self._by_channel: dict[str, _Tracked] = {}
        # Trackers, not keys: a stream that was closed and reopened has a new tracker, and the
        # repair of the old one must not prevent its repair.
        self._repairing: set[SequenceTracker] = set()
        self._checking: set[SequenceTracker] = set()
        self._repair_turn = asyncio.Semaphore(_REPAIRS_AT_ONCE)

    def __iter__(self) -> Iterator[_Tracked]:
        return iter(self._by_channel.values())

    @property
    def channels(self) -> KeysView[str]:
        """The broker channels that carry their ticks."""
        return self._by_channel.keys()

    def track(self, key: StreamKey) -> SequenceTracker:
        """Return the tracker of a stream, creating it if there is none."""
        return self._by_channel.setdefault(keys.ticks(key), (key, SequenceTracker()))[1]

    def forget(self, key: StreamKey) -> None:
        """Forget a stream's tracker."""
        self._by_channel.pop(keys.ticks(key), None)

    # -- the path of a batch

    def receive(self, channel: str, message: bytes) -> None:
        """Process a message from the broker."""
        tracked = self._by_channel.get(channel)
        if tracked is None:
            if (listener := self._listeners.get(channel)) is not None:
                listener(message)
            return
        try:
            batch = Batch.parse(message)
        except InvalidTick as error:
            logger.warning("ignored a message on %s: %s", channel, error)
            return
        key, tracker = tracked
        self.enter_epoch(key.feed, batch.epoch)
        events = tracker.add_batch(batch)
        self.deliver(key, tracker, events)
        if not events and not tracker.behind:
            self._check(key, tracker)

    def deliver(
        self, key: StreamKey, tracker: SequenceTracker, events: list[SequenceEvent]
    ) -> None:
        """Pass batches and gaps to the hub; start a repair if the tracker is behind."""
        for event in events:
            if isinstance(event, SequenceGap):
                if event.reason is GapReason.EPOCH:
                    # Routine: each replay begins one. `_begin_epoch` warns if numbers were lost.
                    logger.info("%s %s: a new epoch has begun", *key[1:])
                else:
                    logger.warning("%s %s: %s ticks lost (%s)", key.channel, key.symbol,
                                   event.ticks or "all", event.reason.value)  # fmt: skip
                self._hub.announce(key, event, Instant.now(), tracker.epoch)
            elif self._hub.publish(key, event.ticks, event.published_us, event.epoch):
                self._wake()
        if tracker.behind and tracker not in self._repairing and self._hub.is_open(key):
            self._repairing.add(tracker)
            self._tasks.start(self._repair(key, tracker))

    def _is_current(self, key: StreamKey, tracker: SequenceTracker) -> bool:
        """Whether the tracker still belongs to its stream, and the stream is open.

        While a task waited for the store, the stream may have been closed and reopened.
        """
        tracked = self._by_channel.get(keys.ticks(key))
        return tracked is not None and tracked[1] is tracker and self._hub.is_open(key)

    # -- missing ticks

    async def _repair(self, key: StreamKey, tracker: SequenceTracker) -> None:
        """Read history until a tracker that fell behind has caught up."""
        try:
            while tracker.behind and self._is_current(key, tracker):
                try:
                    async with self._repair_turn:
                        events = await self._store.read_after(key, tracker)
                except BrokerUnavailable as error:
                    logger.debug("could not read history: %s", error)
                    if not self._is_connected():
                        return  # The next connection starts the repair again.
                    events = []
                if not self._is_current(key, tracker):
                    return
                self.deliver(key, tracker, events)
                if tracker.behind and not events:
                    await asyncio.sleep(_RETRY_PAUSE_S)
        finally:
            self._repairing.discard(tracker)

    def _check(self, key: StreamKey, tracker: SequenceTracker) -> None:
        """Check a tracker after a batch that brought only numbers it already had.

        That is normal after a repair. Otherwise the store has assigned the numbers twice.
        """
        if tracker not in self._checking and tracker not in self._repairing:
            self._checking.add(tracker)
            task = self._tasks.start(self._compare([(key, tracker)]))
            task.add_done_callback(lambda _: self._checking.discard(tracker))

    async def compare_all(self) -> None:
        """Catch up with the store after an interruption. Raises BrokerUnavailable."""
        await self._compare([(key, tracker) for key, tracker in self if self._hub.is_open(key)])

    async def _compare(self, tracked: list[_Tracked]) -> None:
        """Repair the trackers that lag behind the store; if the store lags, begin a new epoch."""
        # Take the numbers before asking the store, because the trackers advance meanwhile.
        reached = [(tracker.epoch, tracker.seq) for _, tracker in tracked]
        heads = await self._store.heads([key for key, _ in tracked])
        lost: dict[str, list[_Tracked]] = {}
        lost_epochs: dict[str, str] = {}
        for (key, tracker), (epoch, seq), head in zip(tracked, reached, heads, strict=True):
            if not self._is_current(key, tracker):
                continue
            if seq and (head.epoch, head.seq) < (epoch, seq):
                lost.setdefault(key.feed, []).append((key, tracker))
                lost_epochs[key.feed] = max(epoch, lost_epochs.get(key.feed, ""))
            elif (head.epoch, head.seq) > (tracker.epoch, tracker.seq):
                tracker.behind = True
            self.deliver(key, tracker, [])
        for feed, streams in lost.items():
            await self._begin_epoch(feed, lost_epochs[feed], streams)

    async def _begin_epoch(self, feed: str, lost_epoch: str, tracked: list[_Tracked]) -> None:
        """Restart the streams whose numbers the store has lost, all in one epoch.

        Args:
            lost_epoch: the epoch of the lost numbers, which may differ from the trackers' current
                one. If another server or a publisher has begun a new epoch since, the streams enter
                that one.
        """
        logger.warning(
            "feed %s: the store has lost numbers (streams: %d, such as %s %s); a new epoch begins",
            feed, len(tracked), *tracked[0][0][1:],
        )  # fmt: skip
        epoch = await self._store.begin_epoch(feed, lost_epoch)
        await self._store.restart([key for key, _ in tracked], epoch)
        self.enter_epoch(feed, epoch)
        for key, tracker in tracked:
            if self._is_current(key, tracker):
                tracker.behind = True
                self.deliver(key, tracker, [])

    # -- epochs

    def epoch_of(self, feed: str) -> str:
        """The feed's epoch; empty if it is not known."""
        return self._feeds[feed].epoch if feed in self._feeds else ""

    def enter_epoch(self, feed: str, epoch: str) -> None:
        """Move a feed and all its streams, including quiet ones, to an epoch.

        Clients know only the epoch of the feed. If a quiet stream stayed behind, a client would
        mistake its old numbers for numbers of the new epoch.
        """
        state = self._feeds.get(feed)
        if state is not None and epoch > state.epoch:
            state.epoch = epoch
            self.restart_later(feed, epoch)

    def restart_later(self, feed: str, epoch: str) -> None:
        """Run `restart_older` in the background until it succeeds."""
        self._tasks.start(self._restart_until_done(feed, epoch))

    async def _restart_until_done(self, feed: str, epoch: str) -> None:
        # If the connection is lost, the next one does this again.
        while self._is_connected():
            try:
                await self.restart_older(feed, epoch)
            except BrokerUnavailable as error:
                logger.debug("could not restart streams: %s", error)
                await asyncio.sleep(_RETRY_PAUSE_S)
            else:
                return

    async def restart_older(self, feed: str, epoch: str) -> None:
        """Restart, in this epoch, the streams of a feed that are in an earlier one."""
        older = [
            (key, tracker)
            for key, tracker in self
            if key.feed == feed and tracker.epoch < epoch and self._hub.is_open(key)
        ]
        await self._store.restart([key for key, _ in older], epoch)
        await self._compare(older)

    async def read_heads(self, streams: list[StreamKey]) -> list[StreamHead]:
        """Read the heads of streams; restart those in an earlier epoch than their feed."""
        heads: list[StreamHead] = []
        older: dict[str, list[StreamKey]] = {}
        for key, head in zip(streams, await self._store.heads(streams), strict=True):
            epoch = self.epoch_of(key.feed)
            if head.epoch >= epoch:
                self.enter_epoch(key.feed, head.epoch)
                heads.append(head)
                continue
            heads.append(StreamHead(epoch, 0, None, 0))
            if head.epoch:
                older.setdefault(epoch, []).append(key)
        for epoch, restarted in older.items():
            await self._store.restart(restarted, epoch)
        return heads


class Flusher:
    """Flushes at the end of the loop turn in which ticks arrived, and less often under load.

    After a flush that took `d` seconds, the next one starts no sooner than `pace * d` later, or
    `window_s` later if that is less. An idle server therefore adds no delay, while a busy one has
    time left for reading and sends more ticks with each write.
    """

    def __init__(self, hub: Hub, pace: float, window_s: float) -> None:
        self._hub = hub
        self._pace = pace
        self._window_s = window_s
        self._not_before_s = 0.0
        self._next: asyncio.Handle | None = None
        # Wakes the flusher when conflated ticks are due.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = 0.0

    def wake(self) -> None:
        """Schedule a flush if none is scheduled. Cheap to call often."""
        if self._next is None:
            loop = asyncio.get_running_loop()
            # Rounded down to the resolution of timers: a pause of 0.5 ms would take 1 ms, for
            # little gain.
            pause_ms = int((self._not_before_s - time.perf_counter()) * 1000)
            self._next = (
                loop.call_later(pause_ms / 1000, self._flush)
                if pause_ms > 0
                else loop.call_soon(self._flush)
            )

    def _flush(self) -> None:
        self._next = None
        began_s = time.perf_counter()
        now = Instant.now()
        try:
            self._hub.flush(now)
        finally:
            # Do this even after a bug, which the loop logs. Otherwise conflation would stop.
            ended_s = time.perf_counter()
            took_s = ended_s - began_s
            self._hub.counters.flush_s.observe(took_s)
            self._not_before_s = ended_s + min(self._pace * took_s, self._window_s)
            self._set_timer(now)

    def _set_timer(self, now: Instant) -> None:
        """Schedule the next flush of conflated ticks."""
        due_s = self._hub.due_s()
        if due_s is None or (self._timer and self._timer_due_s <= due_s):
            return
        if self._timer:
            self._timer.cancel()
        delay_s = max(0.0, due_s - now.monotonic_s) + _TIMER_MARGIN_S
        self._timer_due_s = due_s
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.wake()
