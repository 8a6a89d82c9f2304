"""The runs of all carried streams: fills their gaps and keeps them in the epochs of their feeds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, KeysView
from typing import Final

from feed.fanout.hub import Hub
from feed.ingest.feeds import Feeds
from tickcast.broker import keys
from tickcast.broker.store import Store, StreamHead
from tickcast.tasks import BackgroundTasks
from tickcast.wire.errors import BrokerUnavailable
from tickcast.wire.sequence import Batch, SequenceEvent, SequenceGap, SequenceTracker
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Instant

_REPAIR_PAUSE_S: Final = 0.1
_REPAIRS_AT_ONCE: Final = 8

logger = logging.getLogger("tickcast.upstream")


class SequenceTrackers:
    """One run for each stream that is open or about to be opened.

    Incoming batches pass through the stream's run into the hub. Missing ticks are read from
    history. If the store itself has lost numbers, a new epoch begins.

    Args:
        wake: called when a flush is needed.
        is_connected: returns whether the broker appears to be connected.
    """

    def __init__(
        self,
        store: Store,
        hub: Hub,
        feeds: Feeds,
        tasks: BackgroundTasks,
        wake: Callable[[], None],
        is_connected: Callable[[], bool],
    ) -> None:
        self._store = store
        self._hub = hub
        self._feeds = feeds
        self._tasks = tasks
        self._wake = wake
        self._is_connected = is_connected
        self._by_channel: dict[str, tuple[StreamKey, SequenceTracker]] = {}
        # Runs, not keys: a stream that was closed and reopened has a new run, and the repair of the
        # old one must not prevent its repair.
        self._repairing: set[SequenceTracker] = set()
        self._repair_turn = asyncio.Semaphore(_REPAIRS_AT_ONCE)
        self._checking: set[SequenceTracker] = set()

    def __iter__(self) -> Iterator[tuple[StreamKey, SequenceTracker]]:
        return iter(self._by_channel.values())

    @property
    def channels(self) -> KeysView[str]:
        """The broker channels that carry their ticks."""
        return self._by_channel.keys()

    def of(self, channel: str) -> tuple[StreamKey, SequenceTracker] | None:
        """The stream of a broker channel, and its run."""
        return self._by_channel.get(channel)

    def begin(self, key: StreamKey) -> SequenceTracker:
        """Return the run of a stream, creating it if there is none."""
        return self._by_channel.setdefault(keys.ticks(key), (key, SequenceTracker()))[1]

    def drop(self, key: StreamKey) -> None:
        """Forget a stream's run."""
        self._by_channel.pop(keys.ticks(key), None)

    def receive(self, key: StreamKey, run: SequenceTracker, batch: Batch) -> None:
        """Take a batch that was just published."""
        self.enter_epoch(key.feed, batch.epoch)
        due = run.add_batch(batch)
        self.deliver(key, run, due)
        if not due and not run.behind:
            self._check(key, run)

    def deliver(self, key: StreamKey, run: SequenceTracker, due: list[SequenceEvent]) -> None:
        """Pass batches and gaps of a run to the hub; start a repair if the run is behind."""
        for item in due:
            if isinstance(item, SequenceGap):
                logger.warning("%s %s: %s ticks lost (%s)", key.channel, key.symbol,
                               item.ticks or "all", item.reason.value)  # fmt: skip
                self._hub.announce(key, item, Instant.now(), run.epoch)
            elif self._hub.publish(key, item.ticks, item.published_us, item.epoch):
                self._wake()
        if run.behind and run not in self._repairing and self._hub.is_open(key):
            self._repairing.add(run)
            self._tasks.start(self._repair(key, run))

    def _is_current(self, key: StreamKey, run: SequenceTracker) -> bool:
        """Whether the run still belongs to its stream, and the stream is open.

        While a task waited for the store, the stream may have been closed and reopened.
        """
        entry = self._by_channel.get(keys.ticks(key))
        return entry is not None and entry[1] is run and self._hub.is_open(key)

    # -- missing ticks

    async def compare_all(self) -> None:
        """Catch up with the store after an interruption.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        await self._compare([(key, run) for key, run in self if self._hub.is_open(key)])

    async def _compare(self, runs: list[tuple[StreamKey, SequenceTracker]]) -> None:
        """Repair the runs that lag behind the store; if the store lags, begin a new epoch."""
        # Take the numbers before asking the store, because the runs advance meanwhile.
        reached = [(run.epoch, run.seq) for _, run in runs]
        heads = await self._store.heads([key for key, _ in runs])
        lost: dict[str, list[tuple[StreamKey, SequenceTracker]]] = {}
        lost_in: dict[str, str] = {}
        for (key, run), (epoch, seq), head in zip(runs, reached, heads, strict=True):
            if not self._is_current(key, run):
                continue
            if seq and (head.epoch, head.seq) < (epoch, seq):
                lost.setdefault(key.feed, []).append((key, run))
                lost_in[key.feed] = max(epoch, lost_in.get(key.feed, ""))
            elif (head.epoch, head.seq) > (run.epoch, run.seq):
                run.behind = True
            self.deliver(key, run, [])
        for feed, those in lost.items():
            await self._begin_epoch(feed, lost_in[feed], those)

    async def _begin_epoch(
        self, feed: str, lost_in: str, runs: list[tuple[StreamKey, SequenceTracker]]
    ) -> None:
        """Restart the streams whose numbers the store has lost, all in one epoch.

        Args:
            lost_in: the epoch of the lost numbers, which may differ from the current epoch of the
                runs. If another server or a publisher has begun a new epoch since, the streams
                enter that one.
        """
        logger.warning(
            "feed %s: the store has lost numbers (streams: %d, such as %s %s); a new epoch begins",
            feed, len(runs), *runs[0][0][1:],
        )  # fmt: skip
        epoch = await self._store.begin_epoch(feed, lost_in)
        await self._store.restart([key for key, _ in runs], epoch)
        self.enter_epoch(feed, epoch)
        for key, run in runs:
            if self._is_current(key, run):
                run.behind = True
                self.deliver(key, run, [])

    def _check(self, key: StreamKey, run: SequenceTracker) -> None:
        """Check a run after a batch that brought only numbers it already had.

        That is normal after a repair. Otherwise the store has assigned the numbers twice.
        """
        if run not in self._checking and run not in self._repairing:
            self._checking.add(run)
            self._tasks.start(self._compare_one(key, run))

    async def _compare_one(self, key: StreamKey, run: SequenceTracker) -> None:
        try:
            if self._is_current(key, run):
                await self._compare([(key, run)])
        finally:
            self._checking.discard(run)

    async def _repair(self, key: StreamKey, run: SequenceTracker) -> None:
        """Read history until a run that fell behind has caught up."""
        try:
            while run.behind and self._is_current(key, run):
                try:
                    async with self._repair_turn:
                        due = await self._store.read_after(key, run)
                except BrokerUnavailable as error:
                    logger.debug("could not read history: %s", error)
                    if not self._is_connected():
                        return  # The next connection starts the repair again.
                    due = []
                if not self._is_current(key, run):
                    return
                self.deliver(key, run, due)
                if run.behind and not due:
                    await asyncio.sleep(_REPAIR_PAUSE_S)
        finally:
            self._repairing.discard(run)

    # -- epochs

    def enter_epoch(self, feed: str, epoch: str) -> None:
        """Move a feed and all its streams, including quiet ones, to an epoch.

        Clients know only the epoch of the feed. If a quiet stream stayed behind, a client would
        mistake its old numbers for numbers of the new epoch.
        """
        known = self._feeds.get(feed)
        if known is not None and epoch > known.epoch:
            known.epoch = epoch
            self.restart_later(feed, epoch)

    def restart_later(self, feed: str, epoch: str) -> None:
        """Run `restart_older` in the background until it succeeds."""
        self._tasks.start(self._restart_for_certain(feed, epoch))

    async def _restart_for_certain(self, feed: str, epoch: str) -> None:
        # The next connection does this again.
        while self._is_connected():
            try:
                await self.restart_older(feed, epoch)
            except BrokerUnavailable as error:
                logger.debug("could not restart streams: %s", error)
                await asyncio.sleep(_REPAIR_PAUSE_S)
            else:
                return

    async def restart_older(self, feed: str, epoch: str) -> None:
        """Restart, in this epoch, the streams of a feed that are in an earlier one."""
        older = [
            (key, run)
            for key, run in self
            if key.feed == feed and run.epoch < epoch and self._hub.is_open(key)
        ]
        await self._store.restart([key for key, _ in older], epoch)
        await self._compare(older)

    async def heads(self, streams: list[StreamKey]) -> list[StreamHead]:
        """Read the heads of streams; restart those in an earlier epoch than their feed."""
        heads = await self._store.heads(streams)
        found: list[StreamHead] = []
        older: dict[str, list[StreamKey]] = {}
        for key, head in zip(streams, heads, strict=True):
            epoch = self._feeds.epoch_of(key.feed)
            if head.epoch >= epoch:
                self.enter_epoch(key.feed, head.epoch)
                found.append(head)
                continue
            found.append(StreamHead(epoch, 0, None, 0))
            if head.epoch:
                older.setdefault(epoch, []).append(key)
        for epoch, keys_of in older.items():
            await self._store.restart(keys_of, epoch)
        return found
