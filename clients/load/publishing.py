"""The load tester's producer: an open loop that follows a fixed schedule.

A tick's time is when it was due, even if it is published late. A delay here therefore increases the
measured latencies instead of hiding in them, and it is also measured itself.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final, cast

from clients.load.client_pool import StreamPositions
from clients.load.measurements import LatencyHistogram
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store
from tickcast.wire.errors import BrokerUnavailable
from tickcast.wire.ticks import StreamKey, Tick, Timeframe, new_bar, new_quote, new_trade
from tickcast.wire.times import NS_PER_SECOND, Time

_BATCH_TICKS: Final = 500
_OVERTIME_S: Final = 5.0
_DRAIN_S: Final = 3.0
_TICK_SIZE: Final = 0.01


class PublishSchedule:
    """The due time and ticks of each burst. It reads no clock."""

    def __init__(
        self, streams: Sequence[tuple[str, str]], rate: float, burst: int, seed: int
    ) -> None:
        self.streams = streams
        self.burst = burst
        self._interval_ns = burst / rate * NS_PER_SECOND
        self._rng = random.Random(f"{seed} publisher")
        self._prices = [self._rng.randrange(1000, 60_000) for _ in streams]
        self._made = 0

    def bursts_due(self, elapsed_ns: int) -> int:
        """Return how many bursts are due by a time; the first is due at 0."""
        return int(elapsed_ns / self._interval_ns) + 1

    def due_ns(self, burst: int) -> int:
        """Return when a burst is due, since the start."""
        return round(burst * self._interval_ns)

    def make(self, begin_ns: int, burst: int) -> list[Tick]:
        """Make the ticks of a burst, each of a random stream, all due at the same time."""
        due = Time(begin_ns + self.due_ns(burst))
        count = len(self.streams)
        return [self._tick(int(self._rng.random() * count), due) for _ in range(self.burst)]

    def closing_ticks(self, now: Time) -> list[Tick]:
        """Make one more tick of every stream, so that the server reports all skipped ticks."""
        return [self._tick(number, now) for number in range(len(self.streams))]

    def _tick(self, number: int, time: Time) -> Tick:
        channel, symbol = self.streams[number]
        self._made += 1
        step = int(self._rng.random() * 3) - 1
        cents = self._prices[number] = max(100, self._prices[number] + step)
        price = round(cents * _TICK_SIZE, 2)
        if channel == "trades":
            return new_trade(
                symbol=symbol, id=self._made, venue="LOAD", price=price, size=100, time=time
            )
        if channel == "quotes":
            ask = round(price + _TICK_SIZE, 2)
            return new_quote(
                symbol=symbol, bid_price=price, bid_size=100, ask_price=ask, ask_size=100, time=time
            )
        return new_bar(
            symbol=symbol, open=price, high=price, low=price, close=price, volume=100,
            trade_count=1, vwap=price, time=time,
            timeframe=cast("Timeframe", channel.partition(":")[2] or "1m"),
        )  # fmt: skip


class LoadProducer:
    """Publishes on schedule, measures its lateness, and finds out where streams end."""

    def __init__(self, publisher: FeedPublisher, store: Store, feed: str) -> None:
        self._publisher = publisher
        self._store = store
        self._feed = feed
        self._epoch = ""
        # Ticks that were due, and that were handed to the publisher, besides closing ticks.
        self.scheduled = self.published = self.closing = 0
        # From when a tick was due to when it was handed over.
        self.lateness = LatencyHistogram()

    async def publish_on_schedule(
        self, schedule: PublishSchedule, warmup_s: float, duration_s: float, stop: asyncio.Event
    ) -> None:
        """Publish all ticks due within the warm-up and the measurement, or until `stop` is set.

        Raises BrokerUnavailable or BrokerUnsuitable if publishing failed, at least in part.
        """
        begin_ns, begin = time.time_ns(), time.monotonic_ns()
        span_ns = round((warmup_s + duration_s) * NS_PER_SECOND)
        total = schedule.bursts_due(span_ns - 1)
        at_once = max(1, _BATCH_TICKS // schedule.burst)
        done = 0
        while done < total and not stop.is_set() and not self._publisher.dropped_ticks:
            elapsed_ns = time.monotonic_ns() - begin
            if elapsed_ns > span_ns + _OVERTIME_S * NS_PER_SECOND:
                break
            due = min(schedule.bursts_due(elapsed_ns), total, done + at_once)
            for burst in range(done, due):
                await self._publisher.publish(schedule.make(begin_ns, burst))
                self.published += schedule.burst
                late_ns = time.monotonic_ns() - begin - schedule.due_ns(burst)
                if elapsed_ns >= warmup_s * NS_PER_SECOND:
                    self.lateness.record(late_ns // 1000, schedule.burst)
            done = due
            ahead_ns = schedule.due_ns(done) - (time.monotonic_ns() - begin)
            await asyncio.sleep(max(0.0, ahead_ns / NS_PER_SECOND))
        elapsed_ns = time.monotonic_ns() - begin
        self.scheduled = min(total, schedule.bursts_due(elapsed_ns)) * schedule.burst
        if stop.is_set():
            # Ticks that are late when the run is stopped no longer count as scheduled.
            self.scheduled = self.published
        await self._drain()

    async def publish_closing_ticks(self, schedule: PublishSchedule) -> None:
        """Publish one more tick of every stream; raises as `publish_on_schedule` does."""
        await self._publisher.publish(schedule.closing_ticks(Time.now()))
        await self._drain()
        self.closing += len(schedule.streams)

    async def _drain(self) -> None:
        # Wait for Redis only for a limited time: the run must end with a report in any case.
        await self._publisher.flush_or_give_up(_DRAIN_S)
        if dropped := self._publisher.dropped_ticks:
            raise BrokerUnavailable(f"{dropped:,} ticks were dropped while Redis was away")

    async def fetch_positions(self, streams: Sequence[tuple[str, str]]) -> StreamPositions | None:
        """Return the last `seq` of each stream; None if the epoch changed since the last call."""
        epoch = await self._store.epoch(self._feed)
        heads = await self._store.heads([StreamKey(self._feed, *stream) for stream in streams])
        if self._epoch not in {"", epoch}:
            return None
        self._epoch = epoch
        # A stream enters a new epoch with its next tick, which then has number 1.
        return [
            (*stream, head.seq if head.epoch == epoch else 0)
            for stream, head in zip(streams, heads, strict=True)
        ]
