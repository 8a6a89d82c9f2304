"""What has arrived and was not asked for yet, between the reader of a connection and a program."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from clients.books import Gap
from feed.ticks import Tick

QUEUE_TICKS_MAX: Final = 10_000
"""Above it the client stops reading, and the server sees a slow client."""


class TickQueue:
    """Ticks and gaps in their order, up to a bound.

    Args:
        is_urgent: whether to read on above the bound.
    """

    def __init__(self, is_urgent: Callable[[], bool]) -> None:
        self._is_urgent = is_urgent
        self._items: deque[Tick | Gap] = deque()
        self._changed = asyncio.Condition()
        self._ended: Exception | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def ended(self) -> Exception | None:
        """Why nothing more will come."""
        return self._ended

    async def put(self, items: Iterable[Tick | Gap]) -> None:
        """Add what has arrived, and wait until there is room for more."""
        async with self._changed:
            self._items.extend(items)
            self._changed.notify_all()
            await self._changed.wait_for(self._has_room)

    def _has_room(self) -> bool:
        return len(self._items) <= QUEUE_TICKS_MAX or self._is_urgent()

    async def look_again(self) -> None:
        """It has become urgent to read."""
        async with self._changed:
            self._changed.notify_all()

    async def get(self) -> Tick | Gap:
        """The next one; raises the reason of the end after the last."""
        if not self._items:
            async with self._changed:
                await self._changed.wait_for(lambda: self._items or self._ended)
                if not self._items:
                    assert self._ended is not None
                    raise self._ended
        item = self._items.popleft()
        if len(self._items) == QUEUE_TICKS_MAX // 2:
            await self.look_again()
        return item

    async def end(self, reason: Exception) -> None:
        """Nothing more will come; the first reason counts."""
        self._ended = self._ended or reason
        await self.look_again()
