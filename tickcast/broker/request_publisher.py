"""Publishes the ticks of single requests, each of which waits until its own ticks are published.

A `FeedPublisher` accepts ticks and confirms them later, which suits a program with one source. A
server publishes for many clients, and each of them needs an answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec
from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.batch_sender import BatchSender
from tickcast.broker.client import translated_errors
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import BrokerUnavailable, TickcastError
from tickcast.wire.ticks import StreamKey, Tick, channel_of

# Ticks of requests that wait or are being sent. More are refused until Redis has caught up.
WAITING_TICKS_MAX: Final = 200_000
# A round trip carries this many ticks and the rest of the last request.
_ROUND_TICKS: Final = 10_000
# As for `FeedPublisher`: Redis is often back after a restart of a few tenths of a second.
_BACKOFF_FIRST_S: Final = 0.05
_BACKOFF_MAX_S: Final = 0.5
# How long an idempotency key is remembered.
_KEYS_KEPT_S: Final = 3600

_SHUTTING_DOWN: Final = BrokerUnavailable("the server is shutting down")

logger = logging.getLogger("tickcast.publisher")


class KeyReused(TickcastError):
    """An idempotency key was used before, for other ticks."""


class Overloaded(TickcastError):
    """Too many ticks are waiting to be published."""


class PublishRecord(msgspec.Struct, frozen=True):
    """What Redis holds about an idempotency key."""

    # The name under which the batches are sent, by which the publish script recognizes them.
    sender: str
    # A digest of the request's body.
    digest: str
    # How many ticks were published; None while this isn't known.
    published: int | None = None


class _Request(NamedTuple):
    ticks: Sequence[Tick]
    # The name of the sender for a request with an idempotency key.
    sender: str | None
    done: asyncio.Future[None]


class RequestPublisher:
    """Publishes requests into one feed. Requests that arrive during a round trip share the next."""

    def __init__(self, client: Redis, feed: str, settings: Settings) -> None:
        self._client = client
        self._feed = feed
        self._sender = BatchSender(client, feed, settings)
        # Requests for the next round trips, in the order of their arrival.
        self._requests: deque[_Request] = deque()
        self._has_requests = asyncio.Event()
        # Ticks of these requests and of the round trip under way.
        self._waiting_ticks = 0
        # The error of the outage that is going on.
        self._outage: BrokerUnavailable | None = None
        self._sending: asyncio.Task[None] | None = None

    @property
    def is_away(self) -> bool:
        """Whether Redis can't be reached, as far as this publisher knows."""
        return self._outage is not None

    async def open(self) -> None:
        """Read the feed's epoch and streams, and start. Raises like `publish`."""
        await self._sender.open()
        self._sending = asyncio.create_task(self._send_forever(), name="request publisher")

    async def stop(self) -> None:
        """Stop. Requests that are not confirmed fail."""
        if self._sending is not None:
            await cancel_and_wait([self._sending])
        self._finish(self._requests, _SHUTTING_DOWN)
        await self._sender.disconnect()

    async def publish(self, ticks: Sequence[Tick], timeout_s: float) -> None:
        """Publish ticks, and return when they are published.

        Raises:
            BrokerUnavailable: Redis is away. Nothing was published if `is_away` was already true;
                otherwise, the ticks may still be published.
            BrokerUnsuitable: Redis refuses permanently.
            Overloaded: nothing was published.
        """
        await self._submit(ticks, None, timeout_s)

    async def publish_once(
        self, ticks: Sequence[Tick], key: str, digest: str, timeout_s: float
    ) -> int:
        """Publish ticks unless a request with the same key did; return the number of its ticks.

        The key is recorded before anything is sent. So a request that is repeated after a lost
        answer, even by way of another server, sends the same batches under the same name, and the
        publish script recognizes those that it has stored already.

        Args:
            key: text that is unique to one request of one client.
            digest: identifies the content.

        Raises:
            KeyReused: the key was used for other content.
            BrokerUnavailable, BrokerUnsuitable, Overloaded: see `publish`. Repeat the request with
                the same key.
        """
        name = keys.idempotency(self._feed, hashlib.sha256(key.encode()).hexdigest()[:32])
        record = PublishRecord(f"p:{secrets.token_hex(6)}", digest)
        with translated_errors():
            old: Any = await self._client.set(
                name, msgspec.json.encode(record), nx=True, get=True, ex=_KEYS_KEPT_S
            )
        if old is not None:
            record = msgspec.json.decode(old, type=PublishRecord)
            if record.digest != digest:
                raise KeyReused("this idempotency key was used for other ticks")
            if record.published is not None:
                return record.published
        await self._submit(ticks, record.sender, timeout_s)
        # Only now: a repeated request must not be confirmed before its ticks are published.
        done = PublishRecord(record.sender, digest, len(ticks))
        with translated_errors():
            await self._client.set(name, msgspec.json.encode(done), xx=True, keepttl=True)
        return len(ticks)

    async def _submit(self, ticks: Sequence[Tick], sender: str | None, timeout_s: float) -> None:
        if self._outage is not None:
            # A new error: the same one, raised again, would keep the frames of every request.
            raise BrokerUnavailable(str(self._outage))
        if self._waiting_ticks + len(ticks) > WAITING_TICKS_MAX:
            raise Overloaded("too many ticks are waiting for Redis")
        request = _Request(ticks, sender, asyncio.get_running_loop().create_future())
        self._waiting_ticks += len(ticks)
        self._requests.append(request)
        self._has_requests.set()
        try:
            async with asyncio.timeout(timeout_s):
                # The round continues even if the client that waits for it leaves.
                await asyncio.shield(request.done)
        except TimeoutError:
            reason = self._outage or "Redis is too slow"
            raise BrokerUnavailable(
                f"{reason}; not confirmed after {timeout_s:g} s, and may still be published"
            ) from None

    async def _send_forever(self) -> None:
        while True:
            await self._has_requests.wait()
            self._has_requests.clear()
            while self._requests:
                requests = self._next_round()
                try:
                    await self._send_round(requests)
                except asyncio.CancelledError:
                    self._finish(requests, _SHUTTING_DOWN)
                    raise
                except Exception as error:
                    self._finish(requests, error)
                else:
                    self._finish(requests, None)

    def _next_round(self) -> list[_Request]:
        """Take requests that can share a batch; one with a sender of its own can not."""
        first = self._requests.popleft()
        requests, count = [first], len(first.ticks)
        while first.sender is None and self._requests and count < _ROUND_TICKS:
            if self._requests[0].sender is not None:
                break
            requests.append(self._requests.popleft())
            count += len(requests[-1].ticks)
        return requests

    async def _send_round(self, requests: list[_Request]) -> None:
        """Publish requests, however long Redis is away. Raises BrokerUnsuitable."""
        streams: dict[StreamKey, list[Tick]] = {}
        for request in requests:
            for tick in request.ticks:
                key = StreamKey(self._feed, channel_of(tick), tick.symbol)
                streams.setdefault(key, []).append(tick)
        batches = self._sender.prepare(streams, requests[0].sender)
        delay_s = _BACKOFF_FIRST_S
        while True:
            try:
                await self._sender.send(batches)
            except BrokerUnavailable as error:
                if self._outage is None:
                    logger.warning("Redis is away, %s; trying again", error)
                self._outage = error
                with suppress(BrokerUnavailable):
                    await self._sender.disconnect_all()
                await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(2 * delay_s, _BACKOFF_MAX_S)
            else:
                self._outage = None
                return

    def _finish(self, requests: Sequence[_Request], error: Exception | None) -> None:
        for request in requests:
            self._waiting_ticks -= len(request.ticks)
            if request.done.done():
                continue
            if error is None:
                request.done.set_result(None)
            else:
                request.done.set_exception(error)
                request.done.exception()  # Mark it as retrieved: the client may have left.
