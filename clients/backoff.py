"""When a client that was cut off comes back, without I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from feed.delays import Delays
from feed.errors import CloseCode, Fault

FIRST_S: Final = 0.2
MAX_S: Final = 10.0
RETRY_AFTER_MAX_S: Final = 300.0
"""More is not waited for, whatever a server asks."""
SETTLED_S: Final = 1.0
"""After a connection that has lasted so long, delays begin anew."""
_NEVER: Final = range(4000, 4100)
_AT_ONCE: Final = range(4200, 4300)
_OUR_FAULTS: Final = frozenset(
    (CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA, CloseCode.TOO_BIG)
)
"""Close codes that would come again if the same was said again."""
REFUSED_FIRST_S: Final = 0.4
REFUSED_MAX_S: Final = 3.0
_RETRIED: Final = frozenset((429, 502, 503, 504))
"""HTTP statuses of a refused handshake that may be better next time."""


class Backoff:
    """Delays that grow while a server does not answer, spread so that clients do not come at once.

    Args:
        dice: gives numbers from 0 to 1; full jitter: a delay lies anywhere below its bound.

    >>> backoff = Backoff(dice=lambda: 1.0)
    >>> [backoff.after_failure() for _ in range(4)]
    [0.2, 0.4, 0.8, 1.6]
    >>> backoff.after_close(CloseCode.RESTART, lasted_s=60, retry_s=1.5)
    1.5
    >>> backoff.after_close(4001, lasted_s=60) is None  # It was turned away for good.
    True
    """

    def __init__(self, dice: Callable[[], float] = random.random) -> None:
        self._delays = Delays(FIRST_S, MAX_S, dice)

    def after_close(self, code: int, lasted_s: float, retry_s: float = 0.0) -> float | None:
        """Seconds to wait after a close code (0: cut); None: do not come back.

        Args:
            lasted_s: how long all subscriptions were held; 0 if they were not yet.
            retry_s: what the server's `shutdown` has asked for.
        """
        if code in _NEVER or (code in _OUR_FAULTS and not lasted_s):
            return None
        if lasted_s >= SETTLED_S:
            self._delays.begin_anew()
        # Even a server that always says "at once" is not to be asked without pause.
        is_first = self._delays.is_first
        delay_s = self._delays.next_s()
        if code == CloseCode.RESTART and retry_s:
            return retry_s
        at_once = code == CloseCode.RESTART or code in _AT_ONCE
        return 0.0 if at_once and is_first else delay_s

    def after_failure(self, status: int | None = None, retry_after_s: float = 0.0) -> float | None:
        """Seconds to wait after an attempt that has failed; None: give up.

        Args:
            status: of the HTTP answer, where the handshake was refused.
            retry_after_s: what its `Retry-After` says.
        """
        if status is not None and status not in _RETRIED:
            return None
        return max(self._delays.next_s(), min(retry_after_s, RETRY_AFTER_MAX_S))


class Pace:
    """When to repeat a message that was refused for coming too soon, on the same connection.

    A new connection would begin with the first message again, and get no further than this one.

    Args:
        dice: gives numbers from 0 to 1; a delay lies in the upper half below its bound, because
            servers close connections that are refused again and again.

    >>> pace = Pace(dice=lambda: 1.0)
    >>> [pace.after_refusal(429) for _ in range(5)]
    [0.4, 0.8, 1.6, 3.0, 3.0]
    >>> pace.after_refusal(405) is None  # That will not be granted later.
    True
    """

    def __init__(self, dice: Callable[[], float] = random.random) -> None:
        self._delays = Delays(REFUSED_FIRST_S, REFUSED_MAX_S, lambda: (1 + dice()) / 2)

    def granted(self) -> None:
        """The server has done what it was asked for: the next refusal is a first one."""
        self._delays.begin_anew()

    def after_refusal(self, code: int | None) -> float | None:
        """Seconds to wait after an error with this code; None: waiting does not help."""
        return self._delays.next_s() if code == Fault.RATE_LIMITED.code else None
