"""Limits that all servers of a store enforce together: connections, and connection attempts."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.client import execute, translated_errors
from tickcast.broker.scripts import Script, ScriptCall
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import BrokerUnavailable, BrokerUnsuitable, log_level_of

# How long the connections of a server that has fallen silent still count.
_EXPIRY_S: Final = 10
_HEARTBEAT_S: Final = 2.0
# Interval at which changes are reported to the store.
_REPORT_S: Final = 0.2
_REQUESTS_MAX: Final = 64
_RETRY_MAX_S: Final = 300
_COUNT: Final = Script.from_file("connections.lua")

logger = logging.getLogger("tickcast.broker")


class _Request(NamedTuple):
    """A request to count a connection in some groups."""

    # This server's connections including the new one, by group.
    counts: dict[str, int]
    # The limits, by group.
    limits: Mapping[str, int]
    # The answer: the group that is full, or None.
    full: asyncio.Future[str | None]


class ConnectionLimiter:
    """Limits the connections of groups, such as all clients of an address or of a key.

    Each server reports how many connections it has, never a difference, so errors don't accumulate
    when a message or the store's data is lost. Messages to the store are sent one after the other:
    over several connections, an outdated count could arrive after a newer one and persist. Requests
    that arrive in the meantime share the next message. While the store does not answer, each server
    counts only its own connections.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._name = secrets.token_hex(6)
        self._counts: Counter[str] = Counter()
        # Groups whose count has changed since it was reported.
        self._unreported: set[str] = set()
        # Groups for which the store may have a count of this server.
        self._reported: set[str] = set()
        # Whether the store has known this server.
        self._is_known = False
        self._sending = asyncio.Lock()
        self._requests: list[_Request] = []
        self._answering: asyncio.Task[None] | None = None

    def count(self, group: str) -> int:
        """Return the number of connections that this server has in a group."""
        return self._counts[group]

    async def acquire(self, limits: Mapping[str, int], *, shared: bool = True) -> str | None:
        """Count a connection in each group. If a group is full, count it in none; return the group.

        Args:
            limits: the limit of each group.
            shared: whether the limits are for all servers together, or for this one alone.
        """
        # Count the connection before asking, since several requests may be pending.
        self._counts.update(list(limits))
        full = next((group for group, limit in limits.items() if self._counts[group] > limit), None)
        if full is None and shared and limits:
            try:
                full = await self._request(limits)
            except BaseException:
                self.release(limits)
                raise
        elif full is None:
            self._unreported.update(limits)
        if full is not None:
            self.release(limits)
        return full

    def release(self, groups: Mapping[str, int]) -> None:
        """Stop counting a connection in its groups."""
        self._counts.subtract(list(groups))
        for group in groups:
            if self._counts[group] > 0:
                self._unreported.add(group)
                continue
            del self._counts[group]
            # Groups that the store does not know need no report: an outage may see any number.
            if group in self._reported:
                self._unreported.add(group)
            else:
                self._unreported.discard(group)

    async def report_forever(self) -> None:
        """Report the counts to the store until cancelled."""
        clock = asyncio.get_running_loop().time
        heartbeat_due_s = clock()
        while True:
            if self._unreported or clock() >= heartbeat_due_s:
                heartbeat_due_s = clock() + _HEARTBEAT_S
                try:
                    async with self._sending:
                        await self._report()
                except (BrokerUnavailable, BrokerUnsuitable) as error:
                    level = log_level_of(error)
                    logger.log(level, "can't report how many connections there are: %s", error)
            await asyncio.sleep(_REPORT_S)

    async def withdraw(self) -> None:
        """Remove this server from the store."""
        if self._answering is not None:
            await cancel_and_wait([self._answering])
        try:
            with translated_errors():
                await self._client.zrem(keys.CONNECTION_SERVERS, self._name)
        except (BrokerUnavailable, BrokerUnsuitable):
            logger.debug("the store will notice after %d s that this server is gone", _EXPIRY_S)

    async def _request(self, limits: Mapping[str, int]) -> str | None:
        # Use the present counts: later requests carry newer counts and are sent after this one.
        counts = {group: self._counts[group] for group in limits}
        request = _Request(counts, limits, asyncio.get_running_loop().create_future())
        self._requests.append(request)
        if self._answering is None:
            self._answering = asyncio.create_task(self._answer_all())
        return await request.full

    async def _answer_all(self) -> None:
        """Send all pending requests to the store, some at a time."""
        try:
            while self._requests:
                async with self._sending:
                    batch = self._requests[:_REQUESTS_MAX]
                    del self._requests[:_REQUESTS_MAX]
                    await self._answer(batch)
        finally:
            self._answering = None
            # Only after a bug or a cancellation: then this server counts these connections alone.
            requests, self._requests = self._requests, []
            for request in requests:
                self._unreported.update(request.limits)
                if not request.full.done():
                    request.full.set_result(None)

    async def _answer(self, requests: list[_Request]) -> None:
        replies: list[int] | None = None
        for request in requests:
            self._reported.update(request.limits)
        try:
            replies = await _COUNT.call_all(
                self._client, [self._to_call(each) for each in requests]
            )
        except (BrokerUnavailable, BrokerUnsuitable) as error:
            logger.log(log_level_of(error), "counting connections alone: %s", error)
        finally:
            for place, request in enumerate(requests):
                groups, full = list(request.limits), replies[place] if replies is not None else 0
                for group in groups:
                    if replies is None or self._counts[group] != request.counts[group]:
                        self._unreported.add(group)
                if not request.full.done():
                    request.full.set_result(groups[full - 1] if full else None)

    def _to_call(self, request: _Request) -> ScriptCall:
        pairs = [(request.counts[group], limit) for group, limit in request.limits.items()]
        names = [keys.CONNECTION_SERVERS, *map(keys.connections, request.limits)]
        return names, (self._name, _EXPIRY_S * 1000, *chain.from_iterable(pairs))

    async def _report(self) -> None:
        with translated_errors():
            now_s, _ = await self._client.time()
            expires_ms = (now_s + _EXPIRY_S) * 1000
            is_new = await self._client.zadd(keys.CONNECTION_SERVERS, {self._name: expires_ms})
            groups, self._unreported = self._unreported, set()
            if is_new and self._is_known:
                # The store has lost its data, or this server has expired there.
                groups |= set(self._counts)
            self._is_known = True
            pipeline = self._client.pipeline(transaction=False)
            pipeline.zremrangebyscore(keys.CONNECTION_SERVERS, 0, (now_s - 3600) * 1000)
            empty = {group for group in groups if not self._counts[group]}
            self._reported |= groups
            for group in groups - empty:
                pipeline.hset(keys.connections(group), self._name, str(self._counts[group]))
            for group in empty:
                pipeline.hdel(keys.connections(group), self._name)
            try:
                await execute(pipeline)
            except BaseException:
                self._unreported |= groups
                raise
            self._reported -= empty - self._counts.keys() - self._unreported


class ConnectRateLimiter:
    """Limits connection attempts by address. While the store is away, each server counts alone."""

    def __init__(self, client: Redis, rates: Sequence[RateLimitItem]) -> None:
        # Longest last, so that it does not count attempts that a shorter one refuses.
        self._rates = sorted(rates, key=lambda rate: rate.get_expiry())
        self._shared = SlidingWindowCounterRateLimiter(
            RedisStorage(
                "async+redis://",
                implementation="redispy",
                key_prefix=keys.ATTEMPTS,
                connection_pool=client.connection_pool,  # type: ignore[arg-type]
            )
        )
        self._alone = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def count_attempt(self, network: str, *, shared: bool = True) -> int:
        """Count one attempt. Return 0 if it is allowed, else the number of seconds to wait."""
        if shared:
            try:
                with translated_errors():
                    return await self._count(self._shared, network)
            except (BrokerUnavailable, BrokerUnsuitable) as error:
                logger.log(log_level_of(error), "counting attempts alone: %s", error)
        return await self._count(self._alone, network)

    async def _count(self, limiter: SlidingWindowCounterRateLimiter, network: str) -> int:
        for rate in self._rates:
            if not await limiter.hit(rate, network):
                stats = await limiter.get_window_stats(rate, network)
                wait_s = math.ceil(stats.reset_time - time.time())
                return min(max(1, wait_s), _RETRY_MAX_S)
        return 0
