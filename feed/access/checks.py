"""The order in which secrets are checked, and which clients must try again later.

A check takes some 20 ms of a core. Floods of wrong secrets must not keep out those who have the
right one, so those who are likely to have it come first.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from enum import IntEnum
from functools import partial
from typing import Final, TypeVar

from feed.errors import TryAgain

_WAIT_S: Final = 3.0
_FAILED_FOR_S: Final = 60.0
_ADDRESSES_MAX: Final = 10_000
_PER_ADDRESS_MAX: Final = 8

Check = Callable[[], bool]
Value = TypeVar("Value")


class Rank(IntEnum):
    """How likely an address is to have the right secret. A lower number comes first."""

    TRUSTED = 0
    """It had the right one before."""
    UNKNOWN = 1
    FAILED = 2
    """It had a wrong one lately, or names a key that does not exist."""


_WAITING_MAX: Final = {Rank.TRUSTED: 100, Rank.UNKNOWN: 80, Rank.FAILED: 20}
"""Checks that may wait, counting those of the rank and of the ranks behind it."""


class CheckQueue:
    """Runs checks one at a time in a thread. Equal checks that wait are run once.

    Args:
        thread: runs one check at a time.
        clock: a steady clock, in seconds.
    """

    def __init__(self, thread: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self._thread = thread
        self._clock = clock
        self._is_running = False
        self._queues: dict[Rank, deque[tuple[Check, asyncio.Future[bool]]]] = {
            rank: deque() for rank in Rank
        }
        self._pending: dict[Hashable, asyncio.Future[bool]] = {}
        self._by_address: Counter[str] = Counter()
        self._failed: dict[str, float] = {}
        self._trusted: dict[str, None] = {}

    def rank_of(self, address: str) -> Rank:
        """How an address has fared lately."""
        if self._failed.get(address, 0.0) > self._clock():
            return Rank.FAILED
        return Rank.TRUSTED if address in self._trusted else Rank.UNKNOWN

    def note(self, address: str, *, is_right: bool) -> None:
        """Note that an address had the right secret, or a wrong one."""
        if is_right:
            self._failed.pop(address, None)
            _remember(self._trusted, address, None)
        else:
            self._trusted.pop(address, None)
            _remember(self._failed, address, self._clock() + _FAILED_FOR_S)

    async def run(self, key: Hashable, check: Check, address: str, rank: Rank) -> bool:
        """Run a check in its turn.

        Args:
            key: equal for equal checks.
            address: whose secret it is.

        Raises:
            TryAgain: too many wait, or it waited for too long.
        """
        future = self._pending.get(key)
        if future is not None:
            return await self._wait_for(future)
        waiting = sum(len(self._queues[each]) for each in Rank if each >= rank)
        if waiting >= _WAITING_MAX[rank] or self._by_address[address] >= _PER_ADDRESS_MAX:
            raise TryAgain
        future = asyncio.get_running_loop().create_future()
        self._pending[key] = future
        self._by_address[address] += 1
        future.add_done_callback(partial(self._forget, key, address))
        self._queues[rank].append((check, future))
        self._run_next()
        return await self._wait_for(future)

    async def _wait_for(self, future: asyncio.Future[bool]) -> bool:
        try:
            async with asyncio.timeout(_WAIT_S):
                return await asyncio.shield(future)
        except TimeoutError:
            raise TryAgain from None

    def _forget(self, key: Hashable, address: str, future: asyncio.Future[bool]) -> None:
        del self._pending[key]
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _run_next(self) -> None:
        queue = next((self._queues[rank] for rank in Rank if self._queues[rank]), None)
        if self._is_running or queue is None:
            return
        check, future = queue.popleft()
        self._is_running = True
        running = asyncio.get_running_loop().run_in_executor(self._thread, check)
        running.add_done_callback(partial(self._finish, future))

    def _finish(self, future: asyncio.Future[bool], done: asyncio.Future[bool]) -> None:
        self._is_running = False
        if done.cancelled():
            future.cancel()
            return
        if (error := done.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(done.result())
        self._run_next()


def _remember(table: dict[str, Value], address: str, value: Value) -> None:
    """Put an entry at the end of a table, and drop the oldest where it is full."""
    table.pop(address, None)
    if len(table) >= _ADDRESSES_MAX:
        del table[next(iter(table))]
    table[address] = value
