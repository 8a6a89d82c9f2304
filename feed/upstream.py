"""Keeps the hub fed: holds the broker subscriptions that clients need, and every run whole."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Final

from redis.asyncio import Redis

from feed.batch import Batch, Gap
from feed.broker import keys
from feed.broker.client import level_of
from feed.broker.store import Head, Store
from feed.broker.subscriber import Subscriber
from feed.errors import BrokerUnavailable, InvalidTick, TickcastError
from feed.feeds import Feed, Feeds
from feed.hub import Hub
from feed.recovery import Due, Run
from feed.settings import Settings
from feed.tasks import end_tasks
from feed.ticks import Coverage, StreamKey, Subscription
from feed.times import Moment

_REPAIR_PAUSE_S: Final = 0.1
_REPAIRS_AT_ONCE: Final = 8
_OPEN_AGAIN_S: Final = 1.0
_OPEN_BATCH: Final = 200

logger = logging.getLogger("tickcast.upstream")


class Upstream:
    """The way from the broker into the hub.

    A stream is subscribed while a client wants it and a little longer. A feed in which a client
    holds a wildcard is watched: streams that appear in it are opened from their first tick on.
    """

    def __init__(
        self, client: Redis, hub: Hub, settings: Settings, wake: Callable[[], None]
    ) -> None:
        self.store = Store(client)
        self.subscriber = Subscriber(client, self._on_message, self._on_reconnect)
        self._hub = hub
        self._settings = settings
        self._wake = wake
        self._feeds = Feeds(settings.symbols_max)
        self._runs: dict[str, tuple[StreamKey, Run]] = {}
        self._opening: dict[StreamKey, asyncio.Task[None]] = {}
        self._announced: dict[StreamKey, None] = {}
        self._opener: asyncio.Task[None] | None = None
        self._repairing: dict[StreamKey, asyncio.Task[None]] = {}
        self._repair_turn = asyncio.Semaphore(_REPAIRS_AT_ONCE)
        self._checking: set[StreamKey] = set()
        self._unwanted_since: dict[StreamKey, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._others: dict[str, Callable[[bytes], None]] = {}

    # -- what clients need

    async def listen(self, channel: str, on_message: Callable[[bytes], None]) -> None:
        """Hand on the messages of a channel that carries no ticks.

        Raises:
            BrokerUnavailable: Redis has not confirmed that they come; call it again.
        """
        self._others[channel] = on_message
        await self.subscriber.subscribe([channel])

    def stop_listening(self, channel: str) -> None:
        """No longer; the channel is left with those of streams that nobody wants."""
        self._others.pop(channel, None)

    async def want(self, feed: str, subscriptions: Iterable[Subscription]) -> str:
        """Return the feed's epoch when every stream that the subscriptions cover is in the hub.

        The caller subscribes at the hub before it awaits anything else: then no tick is missed.

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
        finally:
            known.wanting -= 1
            known.wanted -= wildcards
        return known.epoch

    async def _open_all(self, feed: str, known: Feed, coverage: Coverage) -> None:
        """Open what there is now; what appears meanwhile opens by itself, being wanted."""
        if not known.epoch:
            self._enter_epoch(feed, await self.store.epoch(feed))
        if coverage.has_wildcards:
            await self.subscriber.subscribe([keys.announcements(feed)])
            if not known.listed:
                await self._read_directory(feed, known)
        missing = self._not_open(feed, known.streams, coverage)
        if new := [key for key in missing if self._is_new(known, key)]:
            self._begin_opening(new, from_first=True)
        if others := [key for key in missing if key not in self._opening]:
            self._begin_opening(others)
        # Shielded, because others may wait for the same streams.
        tasks = {self._opening[key] for key in missing}
        await asyncio.gather(*(asyncio.shield(task) for task in tasks))

    async def _read_directory(self, feed: str, known: Feed) -> None:
        new = known.learn(await self.store.streams(feed))
        if known.listed:
            # It was read before, perhaps while we waited: these have appeared since.
            self._open_covered(known, new)
        known.listed = True

    def _not_open(self, feed: str, known: set[StreamKey], coverage: Coverage) -> list[StreamKey]:
        wanted = dict.fromkeys(coverage.named_in(feed))
        if coverage.has_wildcards:
            wanted.update((key, None) for key in known if coverage.covers_by_wildcard(key))
        return [key for key in wanted if not self._hub.is_open(key)]

    def _is_new(self, known: Feed, key: StreamKey) -> bool:
        """Whether holders of a wildcard are due the stream from its first tick on."""
        if key in self._opening:
            return False
        return key in self._announced or (key not in known.streams and self._hub.covers(key))

    def _begin_opening(
        self, streams: list[StreamKey], from_first: bool = False
    ) -> asyncio.Task[None]:
        for key in streams:
            self._announced.pop(key, None)
        task = self._spawn(self._open(streams, from_first))
        self._opening.update(dict.fromkeys(streams, task))
        return task

    async def _open(self, streams: list[StreamKey], from_first: bool) -> None:
        """Subscribe to streams and open them in the hub at the tick they stand at now.

        With `from_first` they are new, and the ticks they have had so far are delivered as well.
        """
        runs = [self._runs.setdefault(keys.ticks(key), (key, Run())) for key in streams]
        try:
            await self.subscriber.subscribe(keys.ticks(key) for key in streams)
            heads = await self._heads(streams)
            if from_first:
                await self._open_new(runs, heads)
                return
            for (key, run), head in zip(runs, heads, strict=True):
                self._hub.open_stream(
                    key, head.latest, head.published_us, epoch=head.epoch, seq=head.seq
                )
                self._deliver(key, run, run.start(head.epoch, head.seq))
        finally:
            for key in streams:
                self._opening.pop(key, None)
                if not self._hub.is_open(key):
                    self._runs.pop(keys.ticks(key), None)
                    if from_first and self._feeds.has(key):
                        # Wildcards must not miss it for good because this has failed once.
                        self._announced[key] = None

    async def _open_new(self, runs: list[tuple[StreamKey, Run]], heads: list[Head]) -> None:
        for (_, run), head in zip(runs, heads, strict=True):
            run.epoch = head.epoch
        histories = await self.store.histories([(key, run.ask()) for key, run in runs])
        for (key, run), history in zip(runs, histories, strict=True):
            self._hub.open_stream(key, epoch=run.epoch)
            self._deliver(key, run, run.repair(history))

    # -- what the broker says

    def _on_message(self, channel: str, data: bytes) -> None:
        entry = self._runs.get(channel)
        if entry is None:
            if (other := self._others.get(channel)) is not None:
                other(data)
                return
            for feed, known in self._feeds:
                if channel == keys.announcements(feed):
                    member = data.decode("utf-8", "replace")
                    new = known.learn([keys.from_member(feed, member)])
                    self._open_covered(known, new)
            return
        key, run = entry
        try:
            batch = Batch.parse(data)
        except InvalidTick as error:
            logger.warning("ignored a message on %s: %s", channel, error)
            return
        self._enter_epoch(key.feed, batch.epoch)
        due = run.live(batch)
        self._deliver(key, run, due)
        if not due and not run.behind:
            self._check(key, run)

    def _deliver(self, key: StreamKey, run: Run, due: list[Due]) -> None:
        for item in due:
            if isinstance(item, Gap):
                logger.warning("%s %s: %s ticks lost (%s)", key.channel, key.symbol,
                               item.ticks or "all", item.reason.value)  # fmt: skip
                self._hub.announce(key, item, Moment.now(), run.epoch)
            elif self._hub.publish(key, item.ticks, item.published_us, item.epoch):
                self._wake()
        if run.behind and self._hub.is_open(key) and key not in self._repairing:
            self._repairing[key] = self._spawn(self._repair(key, run))

    def _open_covered(self, known: Feed, streams: Iterable[StreamKey]) -> None:
        """Open streams that wildcards cover, from their first tick on, a batch at a time."""
        wanted = Coverage(known.wanted)
        for key in streams:
            covered = self._hub.covers(key) or wanted.covers(key)
            if covered and not self._hub.is_open(key) and key not in self._opening:
                self._announced[key] = None
        if self._announced and (self._opener is None or self._opener.done()):
            self._opener = self._spawn(self._open_announced())

    async def _open_announced(self) -> None:
        while self._announced:
            batch = list(self._announced)[:_OPEN_BATCH]
            try:
                await self._begin_opening(batch, from_first=True)
            except TickcastError as error:
                logger.log(level_of(error), "could not open new streams: %s", error)
                await asyncio.sleep(_OPEN_AGAIN_S)

    async def _on_reconnect(self) -> None:
        """Catch up with what was published while the connection was down."""
        for feed, known in self._feeds:
            known.epoch = max(known.epoch, await self.store.epoch(feed))
            await self._restart_older(feed, known.epoch)
            if known.listed:
                await self._read_directory(feed, known)
                self._open_covered(known, known.streams)
        await self._compare(
            [(key, run) for key, run in self._runs.values() if self._hub.is_open(key)]
        )

    # -- what is missing

    async def _compare(self, runs: list[tuple[StreamKey, Run]]) -> None:
        """Repair the runs that lag behind the store; where the store lags, numbers are lost."""
        # The numbers of now: while the store is asked, the runs go on.
        reached = [(run.epoch, run.seq) for _, run in runs]
        heads = await self.store.heads([key for key, _ in runs])
        for (key, run), (epoch, seq), head in zip(runs, reached, heads, strict=True):
            if seq and head.epoch in (epoch, "") and head.seq < seq:
                await self._begin_epoch(key, run)
            elif (head.epoch, head.seq) > (run.epoch, run.seq):
                run.behind = True
            self._deliver(key, run, [])

    async def _begin_epoch(self, key: StreamKey, run: Run) -> None:
        logger.warning("%s %s: the store has lost numbers, a new epoch begins", *key[1:])
        epoch = await self.store.begin_epoch(key.feed, run.epoch)
        await self.store.restart([key], epoch)
        self._enter_epoch(key.feed, epoch)
        run.behind = True

    def _check(self, key: StreamKey, run: Run) -> None:
        """A batch has brought only numbers that were there already.

        After a repair that is as it should be. Otherwise they were given a second time.
        """
        if key not in self._checking and key not in self._repairing:
            self._checking.add(key)
            self._spawn(self._compare_one(key, run))

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
                        due = await self._read_history(key, run)
                except BrokerUnavailable as error:
                    logger.debug("could not read history: %s", error)
                    if not self.subscriber.connected:
                        return  # It begins again with the next connection.
                    due = []
                self._deliver(key, run, due)
                if run.behind and not due:
                    await asyncio.sleep(_REPAIR_PAUSE_S)
        finally:
            self._repairing.pop(key, None)

    async def _read_history(self, key: StreamKey, run: Run) -> list[Due]:
        """One page of history for a run that is behind; what is due of it."""
        after = run.ask()
        history = await self.store.history(key, after)
        if history.epoch != run.epoch and after:
            history = await self.store.history(key, 0)
        return run.repair(history)

    # -- epochs

    def _enter_epoch(self, feed: str, epoch: str) -> None:
        """A feed has entered an epoch, and with it go all its streams, the quiet ones too.

        Else a client, told of the feed's epoch alone, would take a quiet stream's numbers for those
        of the new one.
        """
        known = self._feeds.get(feed)
        if known is not None and epoch > known.epoch:
            known.epoch = epoch
            self._spawn(self._restart_older(feed, epoch))

    async def _restart_older(self, feed: str, epoch: str) -> None:
        older = [
            (key, run)
            for key, run in self._runs.values()
            if key.feed == feed and run.epoch < epoch and self._hub.is_open(key)
        ]
        await self.store.restart([key for key, _ in older], epoch)
        await self._compare(older)

    async def _heads(self, streams: list[StreamKey]) -> list[Head]:
        """Where streams stand, those of a feed all in its epoch."""
        heads = await self.store.heads(streams)
        found: list[Head] = []
        older: dict[str, list[StreamKey]] = {}
        for key, head in zip(streams, heads, strict=True):
            epoch = self._feeds.epoch_of(key.feed)
            if head.epoch >= epoch:
                self._enter_epoch(key.feed, head.epoch)
                found.append(head)
                continue
            found.append(Head(epoch, 0, None, 0))
            if head.epoch:
                older.setdefault(epoch, []).append(key)
        for epoch, keys_of in older.items():
            await self.store.restart(keys_of, epoch)
        return found

    # -- upkeep

    async def sweep_forever(self, interval_s: float = 1.0) -> None:
        """Let go of streams and feeds that nobody has wanted for a while."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval_s)
            self._sweep_streams(loop.time())
            self._feeds.sweep(loop.time(), self._settings.linger_s, self._hub.has_clients)
            wanted = {
                *self._runs, *self._others, *(keys.announcements(feed) for feed, _ in self._feeds)
            }  # fmt: skip
            try:
                await self.subscriber.unsubscribe(self.subscriber.channels - wanted)
            except TickcastError as error:
                logger.debug("could not unsubscribe: %s", error)

    def _sweep_streams(self, now: float) -> None:
        """Close the streams whose time is over."""
        unwanted = (key for key, run in self._runs.values() if not self._is_wanted(key, run))
        self._unwanted_since = {key: self._unwanted_since.get(key, now) for key in unwanted}
        over = now - self._settings.linger_s
        gone = [
            key
            for key, since in self._unwanted_since.items()
            if since <= over and self._hub.is_open(key)
        ]
        for key in gone:
            del self._runs[keys.ticks(key)]
            self._hub.close_stream(key)

    def _is_wanted(self, key: StreamKey, run: Run) -> bool:
        known = self._feeds.get(key.feed)
        if known is not None and known.wanting:
            return True
        if run.seq or self._feeds.has(key):
            return self._hub.is_wanted(key)
        # A name that a client made up. If it is ever published, holders of a wildcard hear of it.
        return self._hub.is_named(key)

    async def close(self) -> None:
        """End all that is under way."""
        await end_tasks(self._tasks)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if isinstance(error, TickcastError):
            logger.log(level_of(error), "gave up for now: %s", error)
        else:
            logger.error("a bug in the upstream", exc_info=error)
