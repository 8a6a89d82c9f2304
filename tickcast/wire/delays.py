"""Delays between attempts, and which failures to report. No I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

_REMINDER_FIRST_S: Final = 10.0
_REMINDER_MAX_S: Final = 600.0


class Delays:
    """Exponential back-off with full jitter.

    Each delay is random below a bound, which doubles from `first_s` to `max_s`. Clients that were
    disconnected at the same time therefore reconnect at different times.

    Args:
        first_s, max_s: the first and the largest bound, in seconds.
        dice: returns random numbers from 0 to 1.
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
        """Whether the next delay is the first one, initially or after a success."""
        return self._bound_s == self._first_s

    def reset(self) -> None:
        """Return to the first bound, after a success."""
        self._bound_s = self._first_s

    def next_s(self) -> float:
        """Return the next delay, in seconds."""
        delay_s = self._bound_s * self._dice()
        self._bound_s = min(2 * self._bound_s, self._max_s)
        return delay_s


class Reminders:
    """Decides which failures of an outage to report: the first, then fewer and fewer.

    The intervals are 10 s, 20 s, 40 s and so on, up to ten minutes. An exception type that has not
    been reported yet is reported immediately, so that a change in the nature of an outage shows.

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
            now_s: seconds on a monotonic clock.
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
        """End the outage. The next failure is reported immediately."""
        self._interval_s = 0.0
        self._kinds.clear()
