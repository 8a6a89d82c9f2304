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
_STREAMS_PER_BATCH: Final = 200
_RETRY_S: Final = 0.2

logger = logging.getLogger("tickcast.bars")


class StartPoint(NamedTuple):
    """Where to start in a stream: after this sequence number of this epoch."""

    epoch: str
    after: int


class TradeListener(Protocol):
    """The receiver of a `TradeFollower`'s events."""

    async def locate_starts(self, streams: Sequence[StreamKey]) -> list[StartPoint]:
        """Return where to start each stream. Raises BrokerUnavailable."""

    def process_batch(self, key: StreamKey, batch: Batch, is_live: bool) -> None:
        """Receive the next trades of a stream, either live or from history."""

    def process_gap(self, key: StreamKey, gap: SequenceGap) -> None:
        """Receive a notice in place of trades that are no longer available."""

    def mark_caught_up(self, key: StreamKey) -> None:
        """Receive a notice that all trades from before the start have been delivered."""


@dataclass(slots=True)
class _FollowedStream:
    """A stream and its progress."""

    key: StreamKey
    tracker: SequenceTracker = field(default_factory=SequenceTracker)
    # Whether its start is known. Until then, the tracker holds arriving batches.
    is_started: bool = False
    # Whether it has caught up with the present once.
    has_caught_up: bool = False


class TradeFollower:
    """Follows every stream of trades that the patterns match, including streams that appear later.

    Live batches arrive by pub/sub and are passed on at once. The slow work is done by
    `follow_forever`: it opens streams and reads missed batches from history.

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
        listener: TradeListener,
    ) -> None:
        self._store = Store(client)
        self._subscriber = Subscriber(client, self._on_message, self._on_reconnect)
        self._feed = feed
        self._coverage = Coverage(Subscription(_CHANNEL, pattern) for pattern in patterns)
        self._streams_max = streams_max
        self._listener = listener
        self._streams: dict[str, _FollowedStream] = {}
        self._wakeup = asyncio.Event()
        self._is_listed = False
        self._has_reported_limit = False

    @property
    def is_current(self) -> bool:
        """Whether all published trades have been delivered, except those still in transit."""
        return (
            self._is_listed
            and self._subscriber.connected
            and not any(each.tracker.behind for each in self._streams.values())
        )

    async def receive_forever(self) -> None:
        """Receive messages until cancelled."""
        await self._subscriber.run()

    async def follow_forever(self) -> None:
        """Open streams and fill gaps from history until cancelled."""
        await self._subscriber.wait_for_first_attempt()
        while True:
            self._wakeup.clear()
            try:
                if not self._is_listed:
                    await self._list_streams()
                await self._open()
                await self._repair()
            except BrokerUnavailable as error:
                logger.debug("could not catch up: %s", error)
                await asyncio.sleep(_RETRY_S)
                continue
            await self._wakeup.wait()

    # -- finding and repairing streams

    async def _list_streams(self) -> None:
        """List the streams and compare the store with what was received before a reconnection."""
        await self._subscriber.subscribe([keys.announcements(self._feed)])
        streams = [each for each in self._streams.values() if each.is_started]
        # Copy the current numbers: the trackers advance while the store answers.
        positions = [(each.tracker.epoch, each.tracker.seq) for each in streams]
        heads = await self._store.heads([each.key for each in streams])
        for each, (epoch, seq), head in zip(streams, positions, heads, strict=True):
            tracker = each.tracker
            if seq and head.epoch in (epoch, "") and head.seq < seq:
                # The store has lost the latest ticks. Their numbers will be used again.
                tracker.seq = head.seq
                self._deliver(each, [NEW_EPOCH])
            elif (head.epoch, head.seq) > (tracker.epoch, tracker.seq):
                tracker.behind = True
        for key in sorted(await self._store.streams(self._feed)):
            self._add_stream(key)
        self._is_listed = True

    def _add_stream(self, key: StreamKey) -> None:
        name = keys.ticks(key)
        if key.channel != _CHANNEL or name in self._streams or not self._coverage.covers(key):
            return
        if len(self._streams) < self._streams_max:
            self._streams[name] = _FollowedStream(key)
            self._wakeup.set()
        elif not self._has_reported_limit:
            self._has_reported_limit = True
            logger.warning("more than symbols_max symbols: %s and others left out", key.symbol)

    async def _open(self) -> None:
        while new := [each for each in self._streams.values() if not each.is_started]:
            del new[_STREAMS_PER_BATCH:]
            streams = [each.key for each in new]
            # Subscribe first: later batches are then held, and earlier ones are in history.
            await self._subscriber.subscribe(keys.ticks(key) for key in streams)
            starts = await self._listener.locate_starts(streams)
            for each, start in zip(new, starts, strict=True):
                each.tracker.epoch, each.tracker.seq = start
                each.is_started = True

    async def _repair(self) -> None:
        """Read history until no stream is behind."""
        while behind := [
            each for each in self._streams.values() if each.is_started and each.tracker.behind
        ]:
            is_stuck = True
            for each in behind:
                events = await self._store.read_after(each.key, each.tracker)
                self._deliver(each, events)
                is_stuck = is_stuck and each.tracker.behind and not events
            if is_stuck:
                await asyncio.sleep(_RETRY_S)

    def _deliver(
        self, stream: _FollowedStream, events: Sequence[SequenceEvent], is_live: bool = False
    ) -> None:
        key, tracker = stream.key, stream.tracker
        for item in events:
            if isinstance(item, SequenceGap):
                logger.warning("trades of %s: %s lost (%s)", key.symbol, item.ticks or "all",
                               item.reason.value)  # fmt: skip
                self._listener.process_gap(key, item)
            else:
                self._listener.process_batch(key, item, is_live)
        if tracker.behind:
            self._wakeup.set()
        elif not stream.has_caught_up:
            stream.has_caught_up = True
            self._listener.mark_caught_up(key)

    # -- callbacks of the subscriber

    def _on_message(self, channel: str, data: bytes) -> None:
        stream = self._streams.get(channel)
        if stream is None:
            if channel == keys.announcements(self._feed):
                self._add_stream(keys.from_member(self._feed, data.decode("utf-8", "replace")))
            return
        try:
            batch = Batch.parse(data)
        except InvalidTick as error:
            logger.warning("ignored a message on %s: %s", channel, error)
            return
        self._deliver(stream, stream.tracker.add_batch(batch), is_live=True)

    async def _on_reconnect(self) -> None:
        self._is_listed = False
        self._wakeup.set()
