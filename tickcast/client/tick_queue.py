"""Queue of unread ticks and events between the reader of a connection and the program."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from tickcast.client.notices import Event
from tickcast.wire.ticks import Tick

QUEUE_TICKS_MAX: Final = 10_000
"""Above this, the client stops reading, and the server sees a slow client."""
URGENT: Final = 20
"""Factor on the limit while a request is pending, because its reply follows the queued ticks.

The higher limit is more than sockets and servers hold. A program that keeps sending requests and
reads no ticks reaches it, and then receives no replies.
"""


class TickQueue:
    """A bounded queue of ticks and events, in order.

    A task that is cancelled while waiting takes nothing from the queue.

    Args:
        is_urgent: returns whether to read on above the limit, up to the higher one.
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
        """The reason why the queue has ended, or None."""
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
        """Whether reading must stop until the program takes something."""
        bound = QUEUE_TICKS_MAX * (URGENT if self._is_urgent() else 1)
        return len(self._items) > bound

    def recheck(self) -> None:
        """Check again whether to read: there may be room, or reading has become urgent."""
        self._room.set()

    async def get(self) -> Tick | Event:
        """Return the next item; raises the end reason after the last one."""
        await self._wait()
        item = self._items.popleft()
        self._make_room()
        return item

    async def get_ticks(self, most: int) -> list[Tick] | Event:
        """Return the ticks before the next event, 1 to `most`; or the event, if it is next.

        Raises the end reason after the last item.
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
        """Drop all queued items."""
        self._items.clear()
        self._room.set()

    def end(self, reason: Exception) -> None:
        """End the queue; the first reason given is kept."""
        self._ended = self._ended or reason
        self._news.set()

    async def _wait(self) -> None:
        while not self._items:
            if self._ended is not None:
                raise self._ended
            self._news.clear()
            await self._news.wait()

    def _make_room(self) -> None:
        # Only at half the limit, so that reading does not stop and resume with each tick.
        if len(self._items) <= QUEUE_TICKS_MAX // 2:
            self._room.set()
