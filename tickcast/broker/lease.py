"""An exclusive, expiring claim to make some channels of a feed."""

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

LASTS_S: Final = 5.0
"""How long a claim lasts if its holder does not renew it."""
_RENEW_S: Final = 1.0
_MARGIN_S: Final = 1.0
"""The holder considers its claim expired this long before the store does."""
_AGAIN_S: Final = 0.2

# Take all keys, or none if another holder has one.
_TAKE: Final = Script("""
for _, key in ipairs(KEYS) do
  local holder = redis.call('GET', key)
  if holder and holder ~= ARGV[1] then return 0 end
end
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1], 'PX', ARGV[2]) end
return 1
""")

_LEAVE: Final = Script("""
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
""")


class Lease:
    """An exclusive claim to make some channels of a feed.

    Args:
        channels: the channels to claim. Claims conflict if they have a channel in common.
    """

    def __init__(self, client: Redis, feed: str, channels: Sequence[str]) -> None:
        self._client = client
        self._keys = [keys.maker(feed, channel) for channel in channels]
        self._what = f"{', '.join(channels)} of feed {feed}"
        self._me = secrets.token_hex(6)
        self._until_s = 0.0

    @property
    def holds(self) -> bool:
        """Whether the claim is certainly held now, even if the store has not answered lately."""
        return monotonic() < self._until_s

    async def acquire(self) -> None:
        """Take the claim, waiting long enough for the claim of a killed holder to expire.

        Raises:
            AlreadyClaimed: another program makes one of the channels.
            BrokerUnavailable, BrokerUnsuitable: see `translated_errors`.
        """
        give_up_s = monotonic() + LASTS_S + _MARGIN_S
        while not await self._try():
            if monotonic() > give_up_s:
                raise LeaseHeld(f"another program makes {self._what}")
            await asyncio.sleep(_AGAIN_S)

    async def renew_forever(self) -> None:
        """Renew the claim until cancelled.

        The claim expires while the store is away, and is taken again afterwards.

        Raises:
            AlreadyClaimed: another program has taken it in the meantime.
            BrokerUnsuitable: see `translated_errors`.
        """
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                if not await self._try():
                    raise LeaseHeld(f"another program has taken over {self._what}")
            except BrokerUnavailable:
                continue  # The reader and the publisher report the outage.

    async def release(self) -> None:
        """Release the claim."""
        self._until_s = 0.0
        try:
            await _LEAVE.call(self._client, self._keys, self._me)
        except BrokerUnavailable:
            return  # The claim expires anyway.

    async def _try(self) -> bool:
        asked_s = monotonic()
        taken = await _TAKE.call(self._client, self._keys, self._me, round(LASTS_S * 1000))
        self._until_s = asked_s + LASTS_S - _MARGIN_S if taken else 0.0
        return bool(taken)
