"""The sole right to make something in a feed, held for as long as its holder renews it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from time import monotonic
from typing import Final

from redis.asyncio import Redis

from feed.broker import keys
from feed.broker.scripts import Script
from feed.errors import AlreadyClaimed, BrokerUnavailable

LASTS_S: Final = 5.0
"""How long a holder that has fallen silent still holds."""
_RENEW_S: Final = 1.0
_MARGIN_S: Final = 1.0
"""Our clock stops counting on it that much before the store's does."""
_AGAIN_S: Final = 0.2

# All or none.
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


class Claim:
    """Who makes some channels of a feed, as long as nobody else does.

    Args:
        channels: that are made; claims overlap where they share one.
    """

    def __init__(self, client: Redis, feed: str, channels: Sequence[str]) -> None:
        self._client = client
        self._keys = [keys.maker(feed, channel) for channel in channels]
        self._what = f"{', '.join(channels)} of feed {feed}"
        self._me = secrets.token_hex(6)
        self._until_s = 0.0

    @property
    def holds(self) -> bool:
        """Whether nobody else can have it now, also if the store has not answered lately."""
        return monotonic() < self._until_s

    async def take(self) -> None:
        """Take it. A holder that was killed is waited for; one that lives has renewed by then.

        Raises:
            AlreadyClaimed: somebody else makes one of the channels.
            BrokerUnavailable, BrokerUnsuitable: as `translated_errors` says.
        """
        give_up_s = monotonic() + LASTS_S + _MARGIN_S
        while not await self._try():
            if monotonic() > give_up_s:
                raise AlreadyClaimed(f"another program makes {self._what}")
            await asyncio.sleep(_AGAIN_S)

    async def keep(self) -> None:
        """Renew it, for ever. While the store is away it lapses, and is taken again afterwards.

        Raises:
            AlreadyClaimed: somebody else has taken it meanwhile.
            BrokerUnsuitable: as `translated_errors` says.
        """
        while True:
            await asyncio.sleep(_RENEW_S)
            try:
                if not await self._try():
                    raise AlreadyClaimed(f"another program has taken over {self._what}")
            except BrokerUnavailable:
                continue  # The outage is told by those who read and publish.

    async def leave(self) -> None:
        """Let others have it at once."""
        self._until_s = 0.0
        try:
            await _LEAVE.call(self._client, self._keys, self._me)
        except BrokerUnavailable:
            return  # It lapses by itself.

    async def _try(self) -> bool:
        asked_s = monotonic()
        taken = await _TAKE.call(self._client, self._keys, self._me, round(LASTS_S * 1000))
        self._until_s = asked_s + LASTS_S - _MARGIN_S if taken else 0.0
        return bool(taken)
