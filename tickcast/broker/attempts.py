"""Connection attempts, counted by address across all servers that share a store."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Final

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.client import translated_errors
from tickcast.wire.errors import BrokerUnavailable, BrokerUnsuitable, log_level_of

_RETRY_MAX_S: Final = 300

logger = logging.getLogger("tickcast.broker")


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

    async def note(self, party: str, *, shared: bool = True) -> int:
        """Count one attempt. Return 0 if it is allowed, else the number of seconds to wait."""
        if shared:
            try:
                with translated_errors():
                    return await self._note(self._shared, party)
            except (BrokerUnavailable, BrokerUnsuitable) as error:
                logger.log(log_level_of(error), "counting attempts alone: %s", error)
        return await self._note(self._alone, party)

    async def _note(self, limiter: SlidingWindowCounterRateLimiter, party: str) -> int:
        for rate in self._rates:
            if not await limiter.hit(rate, party):
                stats = await limiter.get_window_stats(rate, party)
                wait_s = math.ceil(stats.reset_time - time.time())
                return min(max(1, wait_s), _RETRY_MAX_S)
        return 0
