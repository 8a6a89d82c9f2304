"""Follow the trades of a feed through Redis: each once and in order, even over reconnections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.store import Store
from tickcast.broker.subscriber import Subscriber
from tickcast.wire.errors import BrokerUnavailable, InvalidTick
from tickcast.wire.sequence import NEW_EPOCH, Batch, SequenceEvent, SequenceGap, SequenceTracker
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import StreamKey

_CHANNEL: Final = "trades"
_OPEN_BATCH: Final = 200
_AGAIN_S: Final = 0.2

logger = logging.getLogger("tickcast.bars")


class StartPoint(NamedTuple):
    """Where to start in a stream: after this sequence number of this epoch."""

    epoch: str
    after: int


class TradeListener(Protocol):
    """The receiver of a `TradeFollower`'s events."""

    async def begin(self, streams: Sequence[StreamKey]) -> list[StartPoint]:
        """Return where to start each stream. Raises BrokerUnavailable."""

    def receive(self, key: StreamKey, batch: Batch, is_live: bool) -> None:
        """Receive the next trades of a stream, either live or from history."""

    def miss(self, key: StreamKey, gap: SequenceGap) -> None:
        """Receive a notice in place of trades that are no longer available."""

    def mark_caught_up(self, key: StreamKey) -> None:
        """Receive a notice that all trades from before the start have been delivered."""


@dataclass(slots=True)
class _Followed:
    """A stream and its progress.

    Attributes:
        begun: whether its start is known. Until then, arriving batches are held.
        settled: whether it has caught up with the present once.
    """

    key: StreamKey
    run: SequenceTracker = field(default_factory=SequenceTracker)
    begun: bool = False
    settled: bool = False


class TradeFollower:
    """Follows every stream of trades that the patterns match, including streams that appear later.

    Live batches arrive by pub/sub and are passed on at once. One task, `run`, does the slow work:
    it opens streams and reads missed batches from history.

    Args:
        patterns: symbols, or prefixes with `*`.
        streams_max: the maximum number of streams. Further ones are ignored, which is logged.
    """

    def __init__(
        self,
        client: Redis,
        feed: str,
        patterns: Sequence[str],
        streams_max: int,
        hearer: TradeListener,
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
        """Whether all published trades have been delivered, except those still in transit."""
        return (
            self._listed
            and self._subscriber.connected
            and not any(each.run.behind for each in self._followed.values())
        )

    async def receive(self) -> None:
        """Receive messages until cancelled."""
        await self._subscriber.run()

    async def run(self) -> None:
        """Open streams and fill gaps from history until cancelled."""
        await self._subscriber.wait_for_first_attempt()
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

    # -- finding and repairing streams

    async def _look_around(self) -> None:
        """List the streams and compare the store with what was received before a reconnection."""
        await self._subscriber.subscribe([keys.announcements(self._feed)])
        followed = [each for each in self._followed.values() if each.begun]
        # Copy the current numbers: the runs advance while the store answers.
        reached = [(each.run.epoch, each.run.seq) for each in followed]
        heads = await self._store.heads([each.key for each in followed])
        for each, (epoch, seq), head in zip(followed, reached, heads, strict=True):
            run = each.run
            if seq and head.epoch in (epoch, "") and head.seq < seq:
                # The store has lost the latest ticks. Their numbers will be used again.
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
            # Subscribe first: later batches are then held, and earlier ones are in history.
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
                due = await self._store.read_after(each.key, each.run)
                self._deliver(each, due)
                is_stuck = is_stuck and each.run.behind and not due
            if is_stuck:
                await asyncio.sleep(_AGAIN_S)

    def _deliver(
        self, followed: _Followed, due: Sequence[SequenceEvent], is_live: bool = False
    ) -> None:
        key, run = followed.key, followed.run
        for item in due:
            if isinstance(item, SequenceGap):
                logger.warning("trades of %s: %s lost (%s)", key.symbol, item.ticks or "all",
                               item.reason.value)  # fmt: skip
                self._hearer.miss(key, item)
            else:
                self._hearer.receive(key, item, is_live)
        if run.behind:
            self._news.set()
        elif not followed.settled:
            followed.settled = True
            self._hearer.mark_caught_up(key)

    # -- callbacks of the subscriber

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
        self._deliver(followed, followed.run.add_batch(batch), is_live=True)

    async def _on_reconnect(self) -> None:
        self._listed = False
        self._news.set()
