"""How long to wait before the next attempt: longer each time, and spread. No I/O."""

from __future__ import annotations

import random
from collections.abc import Callable


class Delays:
    """Delays with full jitter: each lies anywhere below a bound, which doubles up to its end.

    So those that were cut off together do not come back together.

    Args:
        dice: gives numbers from 0 to 1.
    """

    def __init__(
        self, first_s: float, max_s: float, dice: Callable[[], float] = random.random
    ) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._dice = dice
        self._bound_s = first_s

    @property
    def is_first(self) -> bool:
        """Whether the next delay is the first since they have begun."""
        return self._bound_s == self._first_s

    def begin_anew(self) -> None:
        """After a success: the next delay is a short one."""
        self._bound_s = self._first_s

    def next_s(self) -> float:
        """The next delay, in seconds."""
        delay_s = self._bound_s * self._dice()
        self._bound_s = min(2 * self._bound_s, self._max_s)
        return delay_s
