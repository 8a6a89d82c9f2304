"""The runs of all streams that are carried: kept whole, and in the epochs of their feeds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, KeysView
from typing import Final

from feed.batch import Batch, Gap
from feed.broker import keys
from feed.broker.store import Head, Store
from feed.errors import BrokerUnavailable
from feed.feeds import Feeds
from feed.hub import Hub
from feed.recovery import Due, Run
from feed.tasks import BackgroundTasks
from feed.ticks import StreamKey
from feed.times import Moment

_REPAIR_PAUSE_S: Final = 0.1
_REPAIRS_AT_ONCE: Final = 8

logger = logging.getLogger("tickcast.upstream")


class Runs:
    """One run for each stream that is open, or about to be.

    What comes of a stream goes through its run into the hub. Where that shows that something is
    missing, it is read from history; where the store itself has lost numbers, a new epoch begins.

    Args:
        wake: called when a flush is necessary.
        is_connected: whether the broker is there, as far as it is known.
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
        self._by_channel: dict[str, tuple[StreamKey, Run]] = {}
        self._repairing: dict[StreamKey, asyncio.Task[None]] = {}
        self._repair_turn = asyncio.Semaphore(_REPAIRS_AT_ONCE)
        self._checking: set[StreamKey] = set()

    def __iter__(self) -> Iterator[tuple[StreamKey, Run]]:
        return iter(self._by_channel.values())

    @property
    def channels(self) -> KeysView[str]:
        """The broker's channels that bring their ticks."""
        return self._by_channel.keys()

    def of(self, channel: str) -> tuple[StreamKey, Run] | None:
        """The stream whose ticks come through a channel, and its run."""
        return self._by_channel.get(channel)

    def begin(self, key: StreamKey) -> Run:
        """The run of a stream: a new one, unless there is one already."""
        return self._by_channel.setdefault(keys.ticks(key), (key, Run()))[1]

    def drop(self, key: StreamKey) -> None:
        """Let go of a stream's run."""
        self._by_channel.pop(keys.ticks(key), None)

    def take(self, key: StreamKey, run: Run, batch: Batch) -> None:
        """Take what was just published."""
        self.enter_epoch(key.feed, batch.epoch)
        due = run.live(batch)
        self.deliver(key, run, due)
        if not due and not run.behind:
            self._check(key, run)

    def deliver(self, key: StreamKey, run: Run, due: list[Due]) -> None:
        """Hand on what is due of a run; one that is behind is repaired."""
        for item in due:
            if isinstance(item, Gap):
                logger.warning("%s %s: %s ticks lost (%s)", key.channel, key.symbol,
                               item.ticks or "all", item.reason.value)  # fmt: skip
                self._hub.announce(key, item, Moment.now(), run.epoch)
            elif self._hub.publish(key, item.ticks, item.published_us, item.epoch):
                self._wake()
        if run.behind and self._hub.is_open(key) and key not in self._repairing:
            self._repairing[key] = self._tasks.start(self._repair(key, run))

    # -- what is missing

    async def compare_all(self) -> None:
        """Catch up with what was published while nothing came.

        Raises:
            BrokerUnavailable: the broker does not answer.
        """
        await self._compare([(key, run) for key, run in self if self._hub.is_open(key)])

    async def _compare(self, runs: list[tuple[StreamKey, Run]]) -> None:
        """Repair the runs that lag behind the store; where the store lags, numbers are lost."""
        # The numbers of now: while the store is asked, the runs go on.
        reached = [(run.epoch, run.seq) for _, run in runs]
        heads = await self._store.heads([key for key, _ in runs])
        for (key, run), (epoch, seq), head in zip(runs, reached, heads, strict=True):
            if seq and head.epoch in (epoch, "") and head.seq < seq:
                await self._begin_epoch(key, run)
            elif (head.epoch, head.seq) > (run.epoch, run.seq):
                run.behind = True
            self.deliver(key, run, [])

    async def _begin_epoch(self, key: StreamKey, run: Run) -> None:
        logger.warning("%s %s: the store has lost numbers, a new epoch begins", *key[1:])
        epoch = await self._store.begin_epoch(key.feed, run.epoch)
        await self._store.restart([key], epoch)
        self.enter_epoch(key.feed, epoch)
        run.behind = True

    def _check(self, key: StreamKey, run: Run) -> None:
        """A batch has brought only numbers that were there already.

        After a repair that is as it should be. Otherwise they were given a second time.
        """
        if key not in self._checking and key not in self._repairing:
            self._checking.add(key)
            self._tasks.start(self._compare_one(key, run))

    async def _compare_one(self, key: StreamKey, run: Run) -> None:
        try:
            if self._hub.is_open(key):
                await self._compare([(key, run)])
        finally:
            self._checking.discard(key)

    async def _repair(self, key: StreamKey, run: Run) -> None:
        """Read history until a run that fell behind has caught up."""
        try:
            while run.behind and self._hub.is_open(key):
                try:
                    async with self._repair_turn:
                        due = await self._store.read_on(key, run)
                except BrokerUnavailable as error:
                    logger.debug("could not read history: %s", error)
                    if not self._is_connected():
                        return  # It begins again with the next connection.
                    due = []
                self.deliver(key, run, due)
                if run.behind and not due:
                    await asyncio.sleep(_REPAIR_PAUSE_S)
        finally:
            self._repairing.pop(key, None)

    # -- epochs

    def enter_epoch(self, feed: str, epoch: str) -> None:
        """A feed has entered an epoch, and with it go all its streams, the quiet ones too.

        Else a client, told of the feed's epoch alone, would take a quiet stream's numbers for those
        of the new one.
        """
        known = self._feeds.get(feed)
        if known is not None and epoch > known.epoch:
            known.epoch = epoch
            self._tasks.start(self.restart_older(feed, epoch))

    async def restart_older(self, feed: str, epoch: str) -> None:
        """Have the streams of a feed that are in an earlier epoch start over in this one."""
        older = [
            (key, run)
            for key, run in self
            if key.feed == feed and run.epoch < epoch and self._hub.is_open(key)
        ]
        await self._store.restart([key for key, _ in older], epoch)
        await self._compare(older)

    async def heads(self, streams: list[StreamKey]) -> list[Head]:
        """Where streams stand, those of a feed all in its epoch."""
        heads = await self._store.heads(streams)
        found: list[Head] = []
        older: dict[str, list[StreamKey]] = {}
        for key, head in zip(streams, heads, strict=True):
            epoch = self._feeds.epoch_of(key.feed)
            if head.epoch >= epoch:
                self.enter_epoch(key.feed, head.epoch)
                found.append(head)
                continue
            found.append(Head(epoch, 0, None, 0))
            if head.epoch:
                older.setdefault(epoch, []).append(key)
        for epoch, keys_of in older.items():
            await self._store.restart(keys_of, epoch)
        return found
