"""Queue the checks of secrets by priority, and turn clients away when the queue is full.

A check takes about 20 ms of CPU time. A flood of wrong secrets must not keep out clients with a
valid one, so the clients that are likely to have a valid secret are served first.
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

from tickcast.wire.errors import TryAgain

_WAIT_S: Final = 3.0
_FAILED_FOR_S: Final = 60.0
_ADDRESSES_MAX: Final = 10_000
_PER_ADDRESS_MAX: Final = 8

Check = Callable[[], bool]
Value = TypeVar("Value")


class Rank(IntEnum):
    """The priority of an address, by how likely its secret is valid. Lower numbers come first."""

    TRUSTED = 0
    """It has presented a valid secret before."""
    UNKNOWN = 1
    FAILED = 2
    """It has recently presented a wrong secret, or it names a key that does not exist."""


_WAITING_MAX: Final = {Rank.TRUSTED: 100, Rank.UNKNOWN: 80, Rank.FAILED: 20}
"""The number of checks that may wait, counting those of the same rank and of lower priority."""


class CheckQueue:
    """Runs checks one at a time in a thread. Equal checks that are waiting share one run.

    Args:
        thread: an executor that runs one check at a time.
        clock: a monotonic clock, in seconds.
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
        """The rank of an address, based on its recent checks."""
        if self._failed.get(address, 0.0) > self._clock():
            return Rank.FAILED
        return Rank.TRUSTED if address in self._trusted else Rank.UNKNOWN

    def note(self, address: str, *, is_right: bool) -> None:
        """Record that an address presented a valid or a wrong secret."""
        if is_right:
            self._failed.pop(address, None)
            _remember(self._trusted, address, None)
        else:
            self._trusted.pop(address, None)
            _remember(self._failed, address, self._clock() + _FAILED_FOR_S)

    async def run(self, key: Hashable, check: Check, address: str, rank: Rank) -> bool:
        """Queue a check and wait for its result.

        Args:
            key: identifies the check; equal checks have equal keys.
            address: the address that presented the secret.

        Raises:
            TryAgain: too many checks are waiting, or this one has waited too long.
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
    """Add an entry at the end of a table, dropping the oldest one if the table is full."""
    table.pop(address, None)
    if len(table) >= _ADDRESSES_MAX:
        del table[next(iter(table))]
    table[address] = value
