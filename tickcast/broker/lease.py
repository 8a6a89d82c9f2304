"""A lock with an expiry: the exclusive right to make some channels of a feed."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from time import monotonic
from typing import Final

from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.scripts import Script
from tickcast.wire.errors import BrokerUnavailable, LeaseHeld

# How long a lease lasts if its holder does not renew it.
LASTS_S: Final = 5.0
_RENEW_S: Final = 1.0
# The holder considers its lease expired this long before the store does.
_MARGIN_S: Final = 1.0
_RETRY_S: Final = 0.2

# Acquire all keys, or none if another holder has one.
_ACQUIRE: Final = Script("""
for _, key in ipairs(KEYS) do
  local holder = redis.call('GET', key)
  if holder and holder ~= ARGV[1] then return 0 end
end
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1], 'PX', ARGV[2]) end
return 1
""")

_RELEASE: Final = Script("""
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
""")


class Lease:
    """The exclusive right to make some channels of a feed.

    Args:
        channels: leases conflict if they have a channel in common.
    """

    def __init__(self, client: Redis, feed: str, channels: Sequence[str]) -> None:
        self._client = client
        self._keys = [keys.maker(feed, channel) for channel in channels]
        self._subject = f"{', '.join(channels)} of feed {feed}"
        self._holder = secrets.token_hex(6)
        self._until_s = 0.0

    @property
    def holds(self) -> bool:
        """Whether the lease is certainly held now, even if the store has not answered lately."""
        return monotonic() < self._until_s

    async def acquire(self) -> None:
        """Acquire the lease, waiting long enough for the lease of a killed holder to expire.

        Raises LeaseHeld if another program makes one of the channels.
        """
        deadline_s = monotonic() + LASTS_S + _MARGIN_S
        while not await self._try():
            if monotonic() > deadline_s:
                raise LeaseHeld(f"another program makes {self._subject}")
            await asyncio.sleep(_RETRY_S)

    async def renew_forever(self) -> None:
        """Renew the lease until cancelled.

        It expires while the store is away, and is acquired again afterwards.

        Raises LeaseHeld if another program has acquired it in the meantime.
        """
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                if not await self._try():
                    raise LeaseHeld(f"another program has taken over {self._subject}")
            except BrokerUnavailable:
                continue  # The reader and the publisher report the outage.

    async def release(self) -> None:
        """Release the lease."""
        self._until_s = 0.0
        try:
            await _RELEASE.call(self._client, self._keys, self._holder)
        except BrokerUnavailable:
            return  # The lease expires anyway.

    async def _try(self) -> bool:
        # Count from before the call: the store counts from some time during it.
        began_s = monotonic()
        acquired = await _ACQUIRE.call(
            self._client, self._keys, self._holder, round(LASTS_S * 1000)
        )
        self._until_s = began_s + LASTS_S - _MARGIN_S if acquired else 0.0
        return bool(acquired)
