"""Publishes ticks to Redis in batches by stream, and keeps them while Redis is away.

`tickcast.publishing` has the publishers for user programs, which pass everything on to this one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Final, TypeVar

from redis.asyncio import Redis

from tickcast.broker.batch_sender import BatchSender, OutgoingBatch
from tickcast.broker.publish_buffer import (
    WAITING_TICKS_MAX,
    DroppedTicks,
    DropReason,
    PublishBuffer,
)
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import BrokerUnavailable
from tickcast.wire.ticks import StreamKey, Tick

_BACKOFF_FIRST_S: Final = 0.05
_BACKOFF_MAX_S: Final = 0.5
_TRIM_S: Final = 0.1
# How long to wait for the ticks on their way when a publisher is closed because of an error.
_GRACE_S: Final = 0.5
_STREAMS_SHOWN: Final = 20

T = TypeVar("T")

logger = logging.getLogger("tickcast.publisher")


@dataclass(frozen=True)
class _Outage:
    """An outage of Redis, with the publisher's state at its beginning."""

    since_s: float
    error: BrokerUnavailable
    # Ticks that were being sent.
    in_flight: int
    # Ticks dropped in earlier outages, by stream.
    dropped: Mapping[StreamKey, int]


@dataclass(frozen=True)
class PublisherStats:
    """What happened to the ticks of a publisher so far.

    At any time, `accepted` = `published` + `waiting` + `dropped` + `in_doubt`.

    Attributes:
        accepted: ticks that `publish` has accepted.
        published: ticks known to be published.
        waiting: ticks that wait, or are being sent.
        dropped: ticks that will not be published.
        dropped_by_reason: `too_old` and `no_room`: Redis was away for longer than the settings
            `outage_buffer_s` and `outage_buffer_bytes` allow for; `closed`: the publisher was
            closed before it had sent them.
        in_doubt: ticks that were sent, but not confirmed when the publisher was closed.
        is_away: whether Redis is unreachable.
        outages: how many times Redis has become unreachable.
        shared_streams: streams that another program publishes too, such as `trades/AAPL`.
    """

    accepted: int
    published: int
    waiting: int
    dropped: int
    dropped_by_reason: Mapping[DropReason, int]
    in_doubt: int
    is_away: bool
    outages: int
    shared_streams: tuple[str, ...]


class FeedPublisher:
    """Publishes the ticks of one feed, each exactly once.

    One round trip is in flight at a time. Ticks that arrive in the meantime are gathered by stream
    for the next one. So a tick is sent at once when the publisher is idle, and batches form under
    load.

    While Redis is away, the publisher retries until it is back. It keeps the batches in flight and
    sends them again until their outcome is known. Further ticks depend on the source. If the source
    can wait, such as a file, `publish` blocks. Otherwise ticks are kept within the settings
    `outage_buffer_s` and `outage_buffer_bytes`; beyond these, the oldest are dropped and counted.

    Use it as a context manager. A normal exit waits until everything is published.

    Args:
        waits: whether the source can wait.
        on_outage: called when Redis becomes unreachable, with the reason.
        on_recovered: called when Redis is back, before ticks that wait are sent.
    """

    def __init__(
        self,
        client: Redis,
        feed: str,
        settings: Settings,
        *,
        waits: bool = False,
        on_outage: Callable[[BrokerUnavailable], object] | None = None,
        on_recovered: Callable[[PublisherStats], object] | None = None,
    ) -> None:
        self._sender = BatchSender(client, feed, settings)
        self._buffer = PublishBuffer(feed, settings.outage_buffer_s, settings.outage_buffer_bytes)
        self._waits = waits
        self._on_outage = on_outage
        self._on_recovered = on_recovered
        self._outages = 0
        # Streams in `BatchSender.shared_streams` that were logged.
        self._logged_streams = 0
        self._in_flight: dict[StreamKey, OutgoingBatch] = {}
        self._outage: _Outage | None = None
        # The next trim of the buffer. It is set during an outage, unless the source can wait.
        self._trimming: asyncio.TimerHandle | None = None
        self._has_ticks = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_idle = asyncio.Event()
        # A permanent error, which every further call raises.
        self._failure: Exception | None = None
        self._sending: asyncio.Task[None] | None = None
        # Ticks that were sent and not confirmed. 0 until the publisher is closed; then
        # accepted = published + dropped + in doubt.
        self.in_doubt = 0

    @property
    def accepted(self) -> int:
        """Ticks that `publish` has accepted so far."""
        return self._buffer.accepted

    @property
    def published(self) -> int:
        """Ticks known to be published."""
        return self._sender.published

    @property
    def dropped(self) -> Mapping[StreamKey, DroppedTicks]:
        """Ticks that were accepted and will not be published, by stream."""
        return self._buffer.dropped

    @property
    def dropped_ticks(self) -> int:
        """The total number of dropped ticks."""
        return self._buffer.dropped_ticks

    @property
    def name(self) -> str:
        """The unique name of this publisher in the streams' meta hashes."""
        return self._sender.name

    @property
    def has_streams(self) -> bool:
        """Whether anything has been published into the feed, as far as this publisher knows."""
        return self._sender.has_streams

    @property
    def is_away(self) -> bool:
        """Whether Redis is currently unreachable."""
        return self._outage is not None

    def stats(self) -> PublisherStats:
        """Return the counts of this moment."""
        known = self.published + self.dropped_ticks + self.in_doubt
        return PublisherStats(
            accepted=self.accepted,
            published=self.published,
            waiting=self.accepted - known,
            dropped=self.dropped_ticks,
            dropped_by_reason=dict(self._buffer.dropped_by_reason),
            in_doubt=self.in_doubt,
            is_away=self.is_away,
            outages=self._outages,
            shared_streams=tuple(
                f"{key.channel}/{key.symbol}" for key in self._sender.shared_streams
            ),
        )

    async def __aenter__(self) -> FeedPublisher:
        await self._sender.open()
        self._has_room.set()
        self._is_idle.set()
        self._sending = asyncio.create_task(self._send_forever(), name="publisher")
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            if kind is None:
                await self.flush()
            elif not self.is_away:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_GRACE_S):
                        await self._is_idle.wait()
        finally:
            await self._end()

    async def publish(self, ticks: Iterable[Tick], *, checked: bool = False) -> None:
        """Accept ticks. Return at once unless too many are waiting already.

        While Redis is away, this waits for it only if the source can wait.

        Args:
            checked: the ticks have been validated, and are not checked again.

        Raises:
            InvalidTick: a tick breaks the rules; neither it nor the ticks after it were accepted.
            BrokerUnavailable, BrokerUnsuitable: publishing has failed, and is not retried.
        """
        self._raise_failure()
        try:
            self._buffer.add(ticks, monotonic(), checked=checked)
        finally:
            # An invalid tick does not hold up the valid ones before it.
            if self._buffer.count:
                self._is_idle.clear()
                self._has_ticks.set()
        if self._trimming is not None:
            self._buffer.trim(monotonic())
        elif self._buffer.count >= WAITING_TICKS_MAX:
            self._has_room.clear()
            await self._has_room.wait()
            self._raise_failure()

    async def flush(self) -> None:
        """Wait until all ticks accepted so far are published or dropped. Raises like `publish`."""
        self._raise_failure()
        await self._is_idle.wait()
        self._raise_failure()

    async def begin_epoch(self) -> None:
        """Publish all ticks accepted so far, then begin a new epoch of the feed.

        This waits while Redis is away. Raises like `publish`.
        """
        await self.flush()
        await self._retry(self._sender.begin_epoch)

    async def flush_or_give_up(self, timeout_s: float) -> None:
        """Call `flush` with a time limit. At the limit, the publisher fails permanently.

        Raises:
            BrokerUnavailable: the time limit has passed.
            BrokerUnsuitable: publishing has failed.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self.flush()
        except TimeoutError:
            reason = self._outage.error if self._outage else "no service from Redis: it is too slow"
            self._fail(BrokerUnavailable(f"{reason}; gave up after {timeout_s:g} s"))
            await self._end()
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._has_room.set()
        self._is_idle.set()

    async def _send_forever(self) -> None:
        try:
            while True:
                await self._has_ticks.wait()
                self._has_ticks.clear()
                while self._buffer.count:
                    self._in_flight = self._sender.prepare(self._buffer.pop_batches())
                    await self._retry(lambda: self._sender.send(self._in_flight))
                    self._log_shared_streams()
                    # Let blocked callers continue before the buffer is empty.
                    if self._buffer.count < WAITING_TICKS_MAX:
                        self._has_room.set()
                self._is_idle.set()
        except Exception as error:
            self._fail(error)

    async def _retry(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Repeat an attempt until it succeeds, however long Redis is away."""
        delay = _BACKOFF_FIRST_S
        while True:
            try:
                await attempt()
                break
            except BrokerUnavailable as error:
                self._begin_outage(error)
                await self._sender.disconnect_all()
            # Not in step with other publishers, which lost Redis at the same moment.
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, _BACKOFF_MAX_S)
        self._end_outage()

    async def _end(self) -> None:
        """Stop, and account for the ticks that are not published."""
        try:
            if self._sending is not None:
                await cancel_and_wait([self._sending])
            await self._sender.disconnect()
        finally:
            self._stop_trimming()
            for batch in self._in_flight.values():
                if batch.is_in_doubt:
                    self.in_doubt += len(batch.ticks)
                else:
                    self._buffer.drop(batch.ticks, "closed")
            self._in_flight = {}
            self._buffer.drop_all()

    # -- outages

    def _begin_outage(self, error: BrokerUnavailable) -> None:
        if self._outage is not None:
            return
        logger.warning("Redis is away, %s; trying again", error)
        self._outage = _Outage(
            since_s=monotonic(),
            error=error,
            in_flight=sum(len(batch.ticks) for batch in self._in_flight.values()),
            dropped={key: dropped.count for key, dropped in self.dropped.items()},
        )
        if not self._waits:
            self._buffer.hold(monotonic())
            # A caller that waits for room would wait for the end of the outage.
            self._has_room.set()
            self._trim()
        self._outages += 1
        self._call(self._on_outage, error)

    def _trim(self) -> None:
        """Enforce the limits periodically, even if `publish` is not called."""
        self._buffer.trim(monotonic())
        self._trimming = asyncio.get_running_loop().call_later(_TRIM_S, self._trim)

    def _stop_trimming(self) -> None:
        if self._trimming is not None:
            self._trimming.cancel()
            self._trimming = None

    def _end_outage(self) -> None:
        if self._outage is None:
            return
        outage, self._outage = self._outage, None
        self._stop_trimming()
        lost = {
            key: dropped.count - outage.dropped.get(key, 0) for key, dropped in self.dropped.items()
        }
        logger.log(
            logging.WARNING if any(lost.values()) else logging.INFO,
            "Redis is back after %.1f s: sending %s waiting ticks, %s",
            monotonic() - outage.since_s,
            f"{outage.in_flight + self._buffer.count:,}",
            _describe_lost({key: count for key, count in lost.items() if count}),
        )
        self._call(self._on_recovered, self.stats())

    def _call(self, callback: Callable[[T], object] | None, argument: T) -> None:
        if callback is not None:
            try:
                callback(argument)
            except Exception:
                # A mistake in a callback must not end publishing.
                logger.exception("a callback of the publisher has failed")

    def _log_shared_streams(self) -> None:
        shared = self._sender.shared_streams
        if len(shared) > self._logged_streams:
            new = [
                f"{key.channel}/{key.symbol}" for key in islice(shared, self._logged_streams, None)
            ]
            self._logged_streams = len(shared)
            more = f" and {len(new) - _STREAMS_SHOWN:,} more" if len(new) > _STREAMS_SHOWN else ""
            logger.warning(
                "another program publishes the same streams: %s%s",
                ", ".join(new[:_STREAMS_SHOWN]),
                more,
            )


def _describe_lost(lost: Mapping[StreamKey, int]) -> str:
    if not lost:
        return "none were dropped"
    by_count = sorted(lost, key=lambda key: -lost[key])
    parts = [f"{lost[key]:,} of {key.channel}/{key.symbol}" for key in by_count[:_STREAMS_SHOWN]]
    if rest := by_count[_STREAMS_SHOWN:]:
        parts.append(f"{sum(lost[key] for key in rest):,} of {len(rest):,} more streams")
    return f"{sum(lost.values()):,} were dropped: {', '.join(parts)}"
