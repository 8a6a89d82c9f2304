"""Connections counted over all servers of a store, so that limits hold for them together."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Mapping
from typing import Final

from redis.asyncio import Redis

from feed.broker import keys
from feed.broker.client import execute, translated_errors
from feed.broker.scripts import Script
from feed.errors import BrokerUnavailable, BrokerUnsuitable, level_of

_COUNTS_FOR_S: Final = 10
"""How long a server that has fallen silent still counts."""
_BEAT_S: Final = 2.0
_TELL_S: Final = 0.2
"""How soon others hear of seats that are free again."""
_TAKE: Final = Script.of_file("seats.lua")

logger = logging.getLogger("tickcast.broker")


class Seats:
    """Rooms with so many seats each. A connection takes one in each of some rooms.

    Each server tells how many it has taken, never how many more or less: so nothing adds up to
    something wrong when a message is lost or the store forgets. While the store does not answer,
    each server counts for itself.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._me = secrets.token_hex(6)
        self._taken: Counter[str] = Counter()
        self._untold: set[str] = set()
        self._told: set[str] = set()
        """Rooms in which the store may believe that we have seats."""
        self._seen = False

    def taken(self, room: str) -> int:
        """How many seats this server has taken."""
        return self._taken[room]

    async def take(self, rooms: Mapping[str, int], *, shared: bool = True) -> str | None:
        """Take a seat in each room, or in none: then the room that is full is returned.

        Args:
            rooms: how many seats there are in each.
            shared: False to count those of this server alone.
        """
        # Counted before it is asked: several may be under way.
        self._taken.update(list(rooms))
        full = next((room for room, seats in rooms.items() if self._taken[room] > seats), None)
        if full is None and shared and rooms:
            try:
                full = await self._ask(rooms)
            except BaseException:
                self.free(rooms)
                raise
        elif full is None:
            self._untold.update(rooms)
        if full is not None:
            self.free(rooms)
        return full

    def free(self, rooms: Mapping[str, int]) -> None:
        """Give the seats back."""
        self._taken.subtract(list(rooms))
        for room in rooms:
            if self._taken[room] > 0:
                self._untold.add(room)
                continue
            del self._taken[room]
            # While the store is away, addresses come and go without end: it need not know of them.
            if room in self._told:
                self._untold.add(room)
            else:
                self._untold.discard(room)

    async def run(self) -> None:
        """Tell the store what is taken, for ever."""
        clock = asyncio.get_running_loop().time
        beat_due_s = clock()
        while True:
            if self._untold or clock() >= beat_due_s:
                beat_due_s = clock() + _BEAT_S
                try:
                    await self._tell()
                except (BrokerUnavailable, BrokerUnsuitable) as error:
                    logger.log(
                        level_of(error), "can't tell how many connections there are: %s", error
                    )
            await asyncio.sleep(_TELL_S)

    async def leave(self) -> None:
        """Have the store forget this server."""
        try:
            with translated_errors():
                await self._client.zrem(keys.SEATED_SERVERS, self._me)
        except (BrokerUnavailable, BrokerUnsuitable):
            logger.debug("the store will find out by itself that this server is gone")

    async def _ask(self, rooms: Mapping[str, int]) -> str | None:
        names = list(rooms)
        self._told.update(names)
        counts = [each for name in names for each in (self._taken[name], rooms[name])]
        try:
            full = await _TAKE.call(
                self._client,
                [keys.SEATED_SERVERS, *map(keys.seats, names)],
                self._me, _COUNTS_FOR_S * 1000, *counts,
            )  # fmt: skip
        except (BrokerUnavailable, BrokerUnsuitable) as error:
            logger.log(level_of(error), "counting connections alone: %s", error)
            self._untold.update(names)
            return None
        return names[full - 1] if full else None

    async def _tell(self) -> None:
        with translated_errors():
            seconds, _ = await self._client.time()
            until_ms = (seconds + _COUNTS_FOR_S) * 1000
            is_new = await self._client.zadd(keys.SEATED_SERVERS, {self._me: until_ms})
            untold, self._untold = self._untold, set()
            if is_new and self._seen:
                # It has lost what it knew, or thought that we were gone.
                untold |= set(self._taken)
            self._seen = True
            pipeline = self._client.pipeline(transaction=False)
            pipeline.zremrangebyscore(keys.SEATED_SERVERS, 0, (seconds - 3600) * 1000)
            gone = {room for room in untold if not self._taken[room]}
            self._told |= untold
            for room in untold - gone:
                pipeline.hset(keys.seats(room), self._me, str(self._taken[room]))
            for room in gone:
                pipeline.hdel(keys.seats(room), self._me)
            try:
                await execute(pipeline)
            except BaseException:
                self._untold |= untold
                raise
            self._told -= gone - self._taken.keys() - self._untold
