"""Make bars in a feed: read its trades from Redis and publish the bars there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import Redis

from producers.bars.builder import BarBuilder
from producers.bars.follower import StartPoint, TradeFollower
from producers.bars.series import LENGTHS_NS, NEVER
from tickcast.broker.lease import Lease
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store, StreamHead
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.sequence import NEW_EPOCH, Batch, SequenceGap, TimeLocation
from tickcast.wire.ticks import Bar, StreamKey, Timeframe
from tickcast.wire.times import Time

# Seconds between checks for bars that the wall clock has closed.
_CHECK_EVERY_S: Final = 0.1
_LOG_EVERY_S: Final = 10.0

logger = logging.getLogger("tickcast.bars")


def channel_of(timeframe: Timeframe) -> str:
    """Return the channel that carries the bars of a timeframe."""
    return "bars" if timeframe == "1m" else f"bars:{timeframe}"


class BarMaker:
    """Publishes each bar exactly once, when it closes, even if this process or Redis restarts.

    The bar maker keeps no state outside the feed. When it opens a symbol, it reads the latest bar
    of each timeframe, and the trades in history that no published bar contains yet.

    Args:
        patterns: symbols, or prefixes with `*`, to make bars for.
    """

    def __init__(
        self,
        client: Redis,
        feed: str,
        settings: Settings,
        bars: BarBuilder,
        patterns: Sequence[str],
        publisher: FeedPublisher,
    ) -> None:
        self._feed = feed
        self._store = Store(client)
        self._lease = Lease(client, feed, [channel_of(each) for each in bars.timeframes])
        self._follower = TradeFollower(client, feed, patterns, settings.symbols_max, self)
        self._bars = bars
        self._publisher = publisher
        self._closed: list[Bar] = []
        # The counts that have been logged.
        self._logged: dict[str, int] = {}

    async def run_forever(self) -> None:
        """Make bars until cancelled.

        Raises LeaseHeld, or BrokerUnavailable or BrokerUnsuitable at the start.
        """
        await self._lease.acquire()
        logger.info("making bars of %s in %s", ", ".join(self._bars.timeframes), self._feed)
        work: list[Coroutine[Any, Any, None]] = [
            self._lease.renew_forever(),
            self._follower.receive_forever(),
            self._follower.follow_forever(),
            self._publish_forever(),
            self._log_forever(),
        ]
        tasks = [asyncio.create_task(each) for each in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            await cancel_and_wait(tasks)
            self._log_left_out()
            with suppress(asyncio.CancelledError):
                await self._lease.release()

    # -- callbacks of the follower

    async def locate_starts(self, streams: Sequence[StreamKey]) -> list[StartPoint]:
        """Return where to start: after the trades that published bars of all timeframes contain."""
        timeframes = self._bars.timeframes
        heads = await self._store.heads(
            [key._replace(channel=channel_of(each)) for key in streams for each in timeframes]
        )
        ends = [_end_of(head.latest) for head in heads]
        trades = [key for key in streams for _ in timeframes]
        places = await self._store.locate(list(zip(trades, ends, strict=True)))
        width = len(timeframes)
        return [
            self._open(
                key, heads[row * width : (row + 1) * width], places[row * width : (row + 1) * width]
            )
            for row, key in enumerate(streams)
        ]

    def _open(
        self, key: StreamKey, heads: list[StreamHead], places: list[TimeLocation]
    ) -> StartPoint:
        epoch = max(place.epoch for place in places)
        published: dict[Timeframe, Bar] = {}
        partial: list[Timeframe] = []
        after: list[int] = []
        for timeframe, head, place in zip(self._bars.timeframes, heads, places, strict=True):
            # Bars of an earlier epoch don't apply to this one: its times may be different.
            is_same = head.epoch == epoch == place.epoch
            if is_same and isinstance(head.latest, Bar):
                published[timeframe] = head.latest
            if place.trimmed or (head.epoch and not is_same):
                partial.append(timeframe)
            after.append(place.before if head.epoch in (epoch, "") and place.epoch == epoch else 0)
        self._bars.open(key.symbol, published, partial)
        return StartPoint(epoch, min(after))

    def process_batch(self, key: StreamKey, batch: Batch, is_live: bool) -> None:
        """Process trades. Trades from history count as received when they were stored."""
        now = Time.now()
        received = now if is_live else Time(min(now, batch.published_us * 1000))
        self._closed += self._bars.add_trades(key.symbol, batch.ticks, received, now)

    def process_gap(self, key: StreamKey, gap: SequenceGap) -> None:
        """Withhold the bars that may lack the missing trades."""
        if gap == NEW_EPOCH:
            self._bars.begin_epoch(key.symbol)
        else:
            self._bars.mark_lost(key.symbol)

    def mark_caught_up(self, key: StreamKey) -> None:
        """Note that history has been processed. From now on, late trades count as late."""
        self._bars.mark_caught_up(key.symbol)

    # -- publishing and logging

    async def _publish_forever(self) -> None:
        while True:
            if self._follower.is_current:
                self._closed += self._bars.advance(Time.now())
            # Without the lease, bars wait: either it is regained or `run_forever` ends.
            if self._closed and self._lease.holds:
                closed, self._closed = self._closed, []
                await self._publisher.publish(closed)
            await asyncio.sleep(_CHECK_EVERY_S)

    async def _log_forever(self) -> None:
        while True:
            await asyncio.sleep(_LOG_EVERY_S)
            self._log_left_out()

    def _log_left_out(self) -> None:
        """Log the trades and bars that were left out since the last call."""
        bars = self._bars
        counts = {
            **{f"late trades for {channel_of(each)}": n for each, n in bars.late.items()},
            "trades dated in the future": bars.early,
            "bars left out that may lack trades": bars.incomplete,
            "bars left out that no tick can hold": bars.unfit,
        }
        changes = [
            f"{count - self._logged.get(what, 0):,} {what}"
            for what, count in counts.items()
            if count > self._logged.get(what, 0)
        ]
        self._logged = counts
        if changes:
            logger.warning("%s", "; ".join(changes))


def _end_of(latest: object) -> Time:
    """Return the end of the latest published bar; later trades are in no published bar."""
    if not isinstance(latest, Bar):
        return Time(NEVER)
    return Time(latest.time + LENGTHS_NS[latest.timeframe])
