"""Follows the trades of a feed through Redis: each once and in order, whatever happens between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from redis.asyncio import Redis

from feed.batch import NEW_EPOCH, Batch, Gap
from feed.broker import keys
from feed.broker.store import Store
from feed.broker.subscriber import Subscriber
from feed.errors import BrokerUnavailable, InvalidTick
from feed.recovery import Due, Run
from feed.ticks import Coverage, StreamKey, Subscription

_CHANNEL: Final = "trades"
_OPEN_BATCH: Final = 200
_AGAIN_S: Final = 0.2

logger = logging.getLogger("tickcast.bars")


class Start(NamedTuple):
    """Where in a stream to begin: after this number of this epoch."""

    epoch: str
    after: int


class Hearer(Protocol):
    """Who is told what happens in the streams."""

    async def begin(self, streams: Sequence[StreamKey]) -> list[Start]:
        """Where to begin with each of them. Raises BrokerUnavailable."""

    def hear(self, key: StreamKey, batch: Batch, is_live: bool) -> None:
        """The next trades of a stream: live ones that have come just now, or out of history."""

    def miss(self, key: StreamKey, gap: Gap) -> None:
        """Trades that can't be had any more, in place of them."""

    def settle(self, key: StreamKey) -> None:
        """What was there at the beginning has been heard."""


@dataclass(slots=True)
class _Followed:
    """A stream and how far it is.

    Attributes:
        begun: whether it is known where it begins; until then what comes is held.
        settled: whether it has been up to the present once.
    """

    key: StreamKey
    run: Run = field(default_factory=Run)
    begun: bool = False
    settled: bool = False


class Listener:
    """Follows every stream of trades that the patterns match, those that appear later as well.

    Live batches come by pub/sub and are passed on at once. One task, `run`, does what takes time:
    it opens streams and reads from history what was missed.

    Args:
        patterns: symbols, or prefixes with `*`.
        streams_max: that are followed; the others are left out, and that is logged.
    """

    def __init__(
        self, client: Redis, feed: str, patterns: Sequence[str], streams_max: int, hearer: Hearer
    ) -> None:
        self._store = Store(client)
        self._subscriber = Subscriber(client, self._on_message, self._on_reconnect)
        self._feed = feed
        self._coverage = Coverage(Subscription(_CHANNEL, pattern) for pattern in patterns)
        self._streams_max = streams_max
        self._hearer = hearer
        self._followed: dict[str, _Followed] = {}
        self._news = asyncio.Event()
        self._listed = False
        self._has_left_out = False

    @property
    def is_current(self) -> bool:
        """Whether all that was published has been heard, but for what is on its way."""
        return (
            self._listed
            and self._subscriber.connected
            and not any(each.run.behind for each in self._followed.values())
        )

    async def receive(self) -> None:
        """Hold the connection for messages, for ever."""
        await self._subscriber.run()

    async def run(self) -> None:
        """Open streams and repair them, for ever."""
        await self._subscriber.wait_for_first_try()
        while True:
            self._news.clear()
            try:
                if not self._listed:
                    await self._look_around()
                await self._open()
                await self._repair()
            except BrokerUnavailable as error:
                logger.debug("could not catch up: %s", error)
                await asyncio.sleep(_AGAIN_S)
                continue
            await self._news.wait()

    # -- what is there

    async def _look_around(self) -> None:
        """Compare with the store what was heard before the connection was cut, if it was."""
        await self._subscriber.subscribe([keys.announcements(self._feed)])
        followed = [each for each in self._followed.values() if each.begun]
        # The numbers of now: while the store is asked, the runs go on.
        reached = [(each.run.epoch, each.run.seq) for each in followed]
        heads = await self._store.heads([each.key for each in followed])
        for each, (epoch, seq), head in zip(followed, reached, heads, strict=True):
            run = each.run
            if seq and head.epoch in (epoch, "") and head.seq < seq:
                # The store has lost numbers. What comes under them is new.
                run.seq = head.seq
                self._deliver(each, [NEW_EPOCH])
            elif (head.epoch, head.seq) > (run.epoch, run.seq):
                run.behind = True
        for key in sorted(await self._store.streams(self._feed)):
            self._learn(key)
        self._listed = True

    def _learn(self, key: StreamKey) -> None:
        name = keys.ticks(key)
        if key.channel != _CHANNEL or name in self._followed or not self._coverage.covers(key):
            return
        if len(self._followed) < self._streams_max:
            self._followed[name] = _Followed(key)
            self._news.set()
        elif not self._has_left_out:
            self._has_left_out = True
            logger.warning("more than symbols_max symbols: %s and others left out", key.symbol)

    async def _open(self) -> None:
        while new := [each for each in self._followed.values() if not each.begun][:_OPEN_BATCH]:
            streams = [each.key for each in new]
            # First: what comes from now on is held, and what came before is in history.
            await self._subscriber.subscribe(keys.ticks(key) for key in streams)
            starts = await self._hearer.begin(streams)
            for each, start in zip(new, starts, strict=True):
                each.run.epoch, each.run.seq = start
                each.begun = True

    async def _repair(self) -> None:
        """Read history until no stream is behind."""
        while behind := [
            each for each in self._followed.values() if each.begun and each.run.behind
        ]:
            is_stuck = True
            for each in behind:
                due = await self._store.read_on(each.key, each.run)
                self._deliver(each, due)
                is_stuck = is_stuck and each.run.behind and not due
            if is_stuck:
                await asyncio.sleep(_AGAIN_S)

    def _deliver(self, followed: _Followed, due: Sequence[Due], is_live: bool = False) -> None:
        key, run = followed.key, followed.run
        for item in due:
            if isinstance(item, Gap):
                logger.warning("trades of %s: %s lost (%s)", key.symbol, item.ticks or "all",
                               item.reason.value)  # fmt: skip
                self._hearer.miss(key, item)
            else:
                self._hearer.hear(key, item, is_live)
        if run.behind:
            self._news.set()
        elif not followed.settled:
            followed.settled = True
            self._hearer.settle(key)

    # -- what the broker says

    def _on_message(self, channel: str, data: bytes) -> None:
        followed = self._followed.get(channel)
        if followed is None:
            if channel == keys.announcements(self._feed):
                self._learn(keys.from_member(self._feed, data.decode("utf-8", "replace")))
            return
        try:
            batch = Batch.parse(data)
        except InvalidTick as error:
            logger.warning("ignored a message on %s: %s", channel, error)
            return
        self._deliver(followed, followed.run.live(batch), is_live=True)

    async def _on_reconnect(self) -> None:
        self._listed = False
        self._news.set()
