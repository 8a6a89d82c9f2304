"""Limits the time that each turn of the event loop spends on client messages and new requests.

One turn reads from every socket that is ready. Without a limit, a thousand clients that send at
once would make a turn last for seconds, and ticks would wait until it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Final

_TURN_S: Final = 0.005
_SLICE_S: Final = 0.001
"""Time spent on one client's messages before the next client's."""
_STARTS_PER_TURN: Final = 4
"""A request runs for about a millisecond before it first waits for something."""

Work = Callable[[float], bool]
"""Works until a deadline on the clock of `perf_counter`; returns whether work is left."""

logger = logging.getLogger("tickcast")


class LoopShare:
    """Runs work at once while the current turn has time left, and in later turns otherwise.

    All clients share one object. Waiting work is run round-robin, a slice at a time.

    Args:
        turn_s: time that one turn of the loop may spend on work, in seconds.
        starts: number of coroutines that may pass `start` in one turn.
    """

    def __init__(self, turn_s: float = _TURN_S, starts: int = _STARTS_PER_TURN) -> None:
        self._turn_s = turn_s
        self._starts_max = starts
        self._spent_s = 0.0
        self._started = 0
        self._is_scheduled = False
        self._waiting: deque[Work] = deque()
        self._starting: deque[asyncio.Future[None]] = deque()

    def run(self, work: Work) -> bool:
        """Run work for as long as this turn allows; return whether some of it is left.

        The rest runs in later turns. Do not pass the same work again before it has finished.
        """
        self._schedule()
        if self._waiting or self._spent_s >= self._turn_s:
            self._waiting.append(work)
            return True
        began_s = perf_counter()
        is_left = work(began_s + self._turn_s - self._spent_s)
        self._spent_s += perf_counter() - began_s
        if is_left:
            self._waiting.append(work)
        return is_left

    async def start(self, *, urgent: bool = False) -> None:
        """Wait for a turn of the loop that has started only a few requests.

        Args:
            urgent: go first. If a probe waited behind a crowd of handshakes, a supervisor could
                restart a server that is only busy.
        """
        self._schedule()
        if self._started < self._starts_max and (urgent or not self._starting):
            self._started += 1
            return
        future = asyncio.get_running_loop().create_future()
        if urgent:
            self._starting.appendleft(future)
        else:
            self._starting.append(future)
        await future

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        self._is_scheduled = False
        self._started = 0
        while self._starting and self._started < self._starts_max:
            future = self._starting.popleft()
            if not future.done():
                future.set_result(None)
                self._started += 1
        began_s = now_s = perf_counter()
        end_s = began_s + self._turn_s
        while self._waiting and now_s < end_s:
            work = self._waiting.popleft()
            try:
                if work(min(end_s, now_s + _SLICE_S)):
                    self._waiting.append(work)
            except Exception:
                logger.exception("a bug in the work on a client's messages")
            now_s = perf_counter()
        self._spent_s = now_s - began_s
        if self._waiting or self._starting or self._started:
            self._schedule()
