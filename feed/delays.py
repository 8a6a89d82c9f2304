"""How long to wait before the next attempt, and which failures to report. No I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

_REMINDER_FIRST_S: Final = 10.0
_REMINDER_MAX_S: Final = 600.0


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


class Reminders:
    """Decides which failures of an outage are reported: the first, then fewer and fewer.

    The intervals are 10 s, 20 s, 40 s and so on, at most ten minutes. A kind of error that was not
    reported before is reported at once, so that an outage that changes its nature is noticed.

    >>> reminders = Reminders()
    >>> [second for second in range(0, 100, 5) if reminders.is_due(second, OSError())]
    [0, 10, 30, 70]
    """

    def __init__(self) -> None:
        self._interval_s = 0.0
        self._next_s = 0.0
        self._kinds: set[type[Exception]] = set()

    def is_due(self, now_s: float, error: Exception) -> bool:
        """Whether to report a failure that happened now.

        Args:
            now_s: seconds on a clock that is never set back.
        """
        is_known = type(error) in self._kinds
        if is_known and now_s < self._next_s:
            return False
        if is_known or not self._kinds:
            self._interval_s = min(2 * self._interval_s or _REMINDER_FIRST_S, _REMINDER_MAX_S)
            self._next_s = now_s + self._interval_s
        self._kinds.add(type(error))
        return True

    def reset(self) -> None:
        """The outage is over: report the next failure at once."""
        self._interval_s = 0.0
        self._kinds.clear()
