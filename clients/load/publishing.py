"""The load tester's producer: an open loop that follows a fixed schedule.

A tick's time is when it was due, even if it is published late. A delay here therefore increases the
measured latencies instead of hiding in them, and it is also measured itself.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Final

from clients.load.histogram import LatencyHistogram
from tickcast.broker.publisher import FeedPublisher
from tickcast.wire.errors import BrokerUnavailable, InvalidSettings
from tickcast.wire.ticks import Bar, Tick, Timeframe, new_quote, new_trade
from tickcast.wire.times import NS_PER_SECOND, Time

_BATCH_TICKS: Final = 500
_OVERTIME_S: Final = 5.0
_PATIENCE_S: Final = 3.0
_TICK_SIZE: Final = 0.01


class PublishSchedule:
    """The due time and ticks of each burst. It reads no clock."""

    def __init__(
        self, streams: Sequence[tuple[str, str]], rate: float, burst: int, seed: int
    ) -> None:
        if not streams:
            raise InvalidSettings("nothing to publish: no stream")
        self._streams = streams
        self._gap_ns = burst / rate * NS_PER_SECOND
        self._burst = burst
        self._dice = random.Random(f"{seed} publisher")
        self._prices = [self._dice.randrange(1000, 60_000) for _ in streams]
        self._made = 0

    def bursts_due(self, elapsed_ns: int) -> int:
        """Return how many bursts are due by a time; the first is due at 0."""
        return int(elapsed_ns / self._gap_ns) + 1

    def due_ns(self, burst: int) -> int:
        """Return when a burst is due, since the start."""
        return round(burst * self._gap_ns)

    def make(self, begin_ns: int, burst: int) -> list[Tick]:
        """Make the ticks of a burst, each of a random stream, all due at the same time."""
        time = Time(begin_ns + self.due_ns(burst))
        count = len(self._streams)
        return [self._tick(int(self._dice.random() * count), time) for _ in range(self._burst)]

    def closing_ticks(self, now: Time) -> list[Tick]:
        """Make one more tick of every stream, so that the server reports all skipped ticks."""
        return [self._tick(number, now) for number in range(len(self._streams))]

    def _tick(self, number: int, time: Time) -> Tick:
        channel, symbol = self._streams[number]
        self._made += 1
        step = int(self._dice.random() * 3) - 1
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
        return Bar(
            symbol=symbol, open=price, high=price, low=price, close=price, volume=100,
            trade_count=1, vwap=price, time=time, timeframe=_timeframe(channel),
        )  # fmt: skip


def _timeframe(channel: str) -> Timeframe:
    return channel.partition(":")[2] or "1m"  # type: ignore[return-value]


class LoadProducer:
    """Publishes on schedule and measures its lateness.

    Attributes:
        scheduled, published: how many ticks were due, and how many were handed to the publisher.
        lateness: the delay from when a tick was due to when it was handed over.
        begin_ns: when the schedule began, by the wall clock.
    """

    def __init__(self, publisher: FeedPublisher, schedule: PublishSchedule, burst: int) -> None:
        self._publisher = publisher
        self._schedule = schedule
        self._burst = burst
        self.scheduled = 0
        self.published = 0
        self.lateness = LatencyHistogram()

    async def run(self, duration_s: float, stop: asyncio.Event, measure_from_s: float) -> None:
        """Publish all ticks due within `duration_s`, or until `stop` is set.

        Args:
            measure_from_s: when to start measuring lateness.

        Raises:
            BrokerUnavailable, BrokerUnsuitable: publishing failed, at least in part.
        """
        begin_ns, begin = time.time_ns(), time.monotonic_ns()
        total = self._schedule.bursts_due(round(duration_s * NS_PER_SECOND) - 1)
        at_once = max(1, _BATCH_TICKS // self._burst)
        done = 0
        while done < total and not stop.is_set() and not self._publisher.dropped_ticks:
            elapsed_ns = time.monotonic_ns() - begin
            if elapsed_ns > (duration_s + _OVERTIME_S) * NS_PER_SECOND:
                break
            due = min(self._schedule.bursts_due(elapsed_ns), total, done + at_once)
            for burst in range(done, due):
                await self._publisher.publish(self._schedule.make(begin_ns, burst))
                self.published += self._burst
                late_ns = time.monotonic_ns() - begin - self._schedule.due_ns(burst)
                if elapsed_ns >= measure_from_s * NS_PER_SECOND:
                    self.lateness.record(late_ns // 1000, self._burst)
            done = due
            ahead_ns = self._schedule.due_ns(done) - (time.monotonic_ns() - begin)
            await asyncio.sleep(max(0.0, ahead_ns / NS_PER_SECOND))
        elapsed_ns = time.monotonic_ns() - begin
        self.scheduled = min(total, self._schedule.bursts_due(elapsed_ns)) * self._burst
        if stop.is_set():
            # Ticks that are late when the run is stopped no longer count as scheduled.
            self.scheduled = self.published
        await self._drain()

    async def close_streams(self) -> None:
        """Publish one more tick of every stream; raises as `run` does."""
        await self._publisher.publish(self._schedule.closing_ticks(Time.now()))
        await self._drain()

    async def _drain(self) -> None:
        """Wait for Redis only for a limited time: the run must end with a report in any case."""
        await self._publisher.drain_or_give_up(_PATIENCE_S)
        if dropped := self._publisher.dropped_ticks:
            raise BrokerUnavailable(f"{dropped:,} ticks were dropped while Redis was away")
