"""When a client that was cut off comes back, without I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from feed.errors import CloseCode

FIRST_S: Final = 0.2
MAX_S: Final = 10.0
_NEVER: Final = range(4000, 4100)
_AT_ONCE: Final = range(4200, 4300)
_RETRIED: Final = frozenset((429, 502, 503, 504))
"""HTTP statuses of a refused handshake that may be better next time."""


class Backoff:
    """Delays that grow while a server does not answer, spread so that clients do not come at once.

    Args:
        dice: gives numbers from 0 to 1; full jitter: a delay lies anywhere below its bound.
    """

    def __init__(self, dice: Callable[[], float] = random.random) -> None:
        self._dice = dice
        self._bound_s = FIRST_S

    def after_close(self, code: int, retry_s: float) -> float | None:
        """Seconds to wait after a close code (0: cut); None: do not come back.

        Args:
            retry_s: what the server's `shutdown` has asked for.
        """
        self._bound_s = FIRST_S
        if code in _NEVER:
            return None
        if code in _AT_ONCE:
            return 0.0
        if code == CloseCode.RESTART:
            return retry_s
        return self._bound_s * self._dice()

    def after_failure(self, status: int | None = None, retry_after_s: float = 0.0) -> float | None:
        """Seconds to wait after an attempt that has failed; None: give up.

        Args:
            status: of the HTTP answer, where the handshake was refused.
            retry_after_s: what its `Retry-After` says.
        """
        if status is not None and status not in _RETRIED:
            return None
        delay_s = max(self._bound_s * self._dice(), retry_after_s)
        self._bound_s = min(2 * self._bound_s, MAX_S)
        return delay_s
