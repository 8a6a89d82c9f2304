"""Limits that all servers of a store enforce together: connections, and connection attempts."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
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

_COUNTS_FOR_S: Final = 10
"""How long the seats of a server that has fallen silent still count."""
_BEAT_S: Final = 2.0
_TELL_S: Final = 0.2
"""Interval at which changes are reported to the store."""
_ASKS_MAX: Final = 64
"""Maximum requests in one message."""
_TAKE: Final = Script.from_file("seats.lua")

logger = logging.getLogger("tickcast.broker")


class _Ask(NamedTuple):
    """A request for a seat in each of some rooms.

    Attributes:
        taken: the seats of this server including the new ones, by room.
        rooms: the total number of seats, by room.
        full: the answer: the room that is full, or None.
    """

    taken: dict[str, int]
    rooms: Mapping[str, int]
    full: asyncio.Future[str | None]


class ConnectionLimiter:
    """Rooms with a limited number of seats. A connection takes a seat in one or more rooms.

    Each server reports how many seats it has taken, never a difference, so errors don't accumulate
    when a message or the store's data is lost. Messages to the store are sent one after the other:
    over several connections, an outdated count could arrive after a newer one and persist. Requests
    that arrive in the meantime share the next message. While the store does not answer, each server
    counts only its own seats.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._me = secrets.token_hex(6)
        self._taken: Counter[str] = Counter()
        self._untold: set[str] = set()
        self._told: set[str] = set()
        """Rooms in which the store may have recorded seats of this server."""
        self._seen = False
        self._telling = asyncio.Lock()
        self._asks: list[_Ask] = []
        self._asking: asyncio.Task[None] | None = None

    def taken(self, room: str) -> int:
        """How many seats this server has taken."""
        return self._taken[room]

    async def acquire(self, rooms: Mapping[str, int], *, shared: bool = True) -> str | None:
        """Take a seat in each room. If a room is full, take none and return that room.

        Args:
            rooms: the total number of seats, by room.
            shared: whether to count the seats of all servers, or only those of this one.
        """
        # Count the seats before asking, since several requests may be pending.
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
            # Don't report rooms that the store does not know: in an outage there may be any number.
            if room in self._told:
                self._untold.add(room)
            else:
                self._untold.discard(room)

    async def run(self) -> None:
        """Report the taken seats to the store until cancelled."""
        clock = asyncio.get_running_loop().time
        beat_due_s = clock()
        while True:
            if self._untold or clock() >= beat_due_s:
                beat_due_s = clock() + _BEAT_S
                try:
                    await self._tell()
                except (BrokerUnavailable, BrokerUnsuitable) as error:
                    logger.log(
                        log_level_of(error), "can't tell how many connections there are: %s", error
                    )
            await asyncio.sleep(_TELL_S)

    async def leave(self) -> None:
        """Remove this server from the store."""
        if self._asking is not None:
            await cancel_and_wait([self._asking])
        try:
            with translated_errors():
                await self._client.zrem(keys.SEATED_SERVERS, self._me)
        except (BrokerUnavailable, BrokerUnsuitable):
            logger.debug("the store will find out by itself that this server is gone")

    async def _ask(self, rooms: Mapping[str, int]) -> str | None:
        # Use the present counts: later requests carry newer counts and are sent after this one.
        taken = {room: self._taken[room] for room in rooms}
        ask = _Ask(taken, rooms, asyncio.get_running_loop().create_future())
        self._asks.append(ask)
        if self._asking is None:
            self._asking = asyncio.create_task(self._answer_all())
        return await ask.full

    async def _answer_all(self) -> None:
        """Send all pending requests to the store, some at a time."""
        try:
            while self._asks:
                async with self._telling:
                    asks, self._asks = self._asks[:_ASKS_MAX], self._asks[_ASKS_MAX:]
                    await self._answer(asks)
        finally:
            self._asking = None
            # Only after a bug or a cancellation: this server alone then counts these seats.
            asks, self._asks = self._asks, []
            for ask in asks:
                self._untold.update(ask.rooms)
                if not ask.full.done():
                    ask.full.set_result(None)

    async def _answer(self, asks: list[_Ask]) -> None:
        replies: list[int] | None = None
        for ask in asks:
            self._told.update(ask.rooms)
        try:
            replies = await _TAKE.call_all(self._client, [self._call_of(ask) for ask in asks])
        except (BrokerUnavailable, BrokerUnsuitable) as error:
            logger.log(log_level_of(error), "counting connections alone: %s", error)
        finally:
            for place, ask in enumerate(asks):
                names, full = list(ask.rooms), replies[place] if replies is not None else 0
                for name in names:
                    if replies is None or self._taken[name] != ask.taken[name]:
                        self._untold.add(name)
                if not ask.full.done():
                    ask.full.set_result(names[full - 1] if full else None)

    def _call_of(self, ask: _Ask) -> ScriptCall:
        counts = [each for name in ask.rooms for each in (ask.taken[name], ask.rooms[name])]
        names = [keys.SEATED_SERVERS, *map(keys.seats, ask.rooms)]
        return names, (self._me, _COUNTS_FOR_S * 1000, *counts)

    async def _tell(self) -> None:
        async with self._telling:
            await self._tell_untold()

    async def _tell_untold(self) -> None:
        with translated_errors():
            seconds, _ = await self._client.time()
            until_ms = (seconds + _COUNTS_FOR_S) * 1000
            is_new = await self._client.zadd(keys.SEATED_SERVERS, {self._me: until_ms})
            untold, self._untold = self._untold, set()
            if is_new and self._seen:
                # The store has lost its data, or this server has expired there.
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


_RETRY_MAX_S: Final = 300


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
