"""What has arrived and was not asked for yet, between the reader of a connection and a program."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from clients.notices import Event
from feed.ticks import Tick

QUEUE_TICKS_MAX: Final = 10_000
"""Above it the client stops reading, and the server sees a slow client."""
URGENT: Final = 20
"""How many times as many there may be while somebody waits for a reply, which comes behind them.

That is more than sockets and servers hold. Who asks and asks and takes no ticks gets no reply then.
"""


class TickQueue:
    """Ticks and events in their order, up to a bound.

    Whoever is cancelled while it waits for something has taken nothing.

    Args:
        is_urgent: whether to read on above the bound, up to another one.
    """

    def __init__(self, is_urgent: Callable[[], bool]) -> None:
        self._is_urgent = is_urgent
        self._items: deque[Tick | Event] = deque()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._ended: Exception | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def ended(self) -> Exception | None:
        """Why nothing more will come."""
        return self._ended

    async def put(self, items: Iterable[Tick | Event]) -> None:
        """Add what has arrived, and wait until there is room for more."""
        self._items.extend(items)
        self._news.set()
        while self.is_full:
            self._room.clear()
            await self._room.wait()

    @property
    def is_full(self) -> bool:
        """Whether nothing is to be read before the program has taken something."""
        bound = QUEUE_TICKS_MAX * (URGENT if self._is_urgent() else 1)
        return len(self._items) > bound

    def look_again(self) -> None:
        """There may be room, or it has become urgent to read."""
        self._room.set()

    async def get(self) -> Tick | Event:
        """The next one; raises the reason of the end after the last."""
        await self._wait()
        item = self._items.popleft()
        self._make_room()
        return item

    async def get_ticks(self, most: int) -> list[Tick] | Event:
        """What waits before the next event, at least one tick and at most so many; or the event.

        Raises the reason of the end after the last.
        """
        await self._wait()
        ticks: list[Tick] = []
        while self._items and len(ticks) < most:
            item = self._items.popleft()
            if isinstance(item, Event):
                if not ticks:
                    return item
                self._items.appendleft(item)
                break
            ticks.append(item)
        self._make_room()
        return ticks

    def clear(self) -> None:
        """Drop what waits."""
        self._items.clear()
        self._room.set()

    def end(self, reason: Exception) -> None:
        """Nothing more will come; the first reason counts."""
        self._ended = self._ended or reason
        self._news.set()

    async def _wait(self) -> None:
        while not self._items:
            if self._ended is not None:
                raise self._ended
            self._news.clear()
            await self._news.wait()

    def _make_room(self) -> None:
        # Not at once, so that reading does not stop and go for each tick.
        if len(self._items) <= QUEUE_TICKS_MAX // 2:
            self._room.set()
