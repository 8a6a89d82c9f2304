"""Delays before reconnecting and before repeating a request. No I/O."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from tickcast.tasks import ExponentialBackoff
from tickcast.wire.errors import CloseCode, Fault

FIRST_S: Final = 0.2
MAX_S: Final = 10.0
# Upper bound on the delay that a `Retry-After` header can request.
RETRY_AFTER_MAX_S: Final = 300.0
# Delays start over after a connection that has lasted at least this long.
STABLE_S: Final = 1.0
REFUSED_FIRST_S: Final = 0.4
REFUSED_MAX_S: Final = 3.0

_NEVER: Final = range(4000, 4100)
_AT_ONCE: Final = range(4200, 4300)
# Close codes that would recur if the client sent the same messages again.
_CLIENT_ERRORS: Final = frozenset(
    (CloseCode.PROTOCOL_ERROR, CloseCode.INVALID_DATA, CloseCode.TOO_BIG)
)
# HTTP statuses of a refused handshake that are worth a retry.
_RETRIED: Final = frozenset((429, 502, 503, 504))


class ReconnectDelays:
    """Reconnect delays that grow with each failure, with jitter to spread clients out.

    Args:
        dice: returns random numbers from 0 to 1. The jitter is full: a delay lies anywhere between
            0 and its bound.

    >>> delays = ReconnectDelays(dice=lambda: 1.0)
    >>> [delays.after_failure() for _ in range(4)]
    [0.2, 0.4, 0.8, 1.6]
    >>> delays.after_close(CloseCode.RESTART, lasted_s=60, retry_s=1.5)
    1.5
    >>> delays.after_close(4001, lasted_s=60) is None  # Its credentials are not accepted.
    True
    """

    def __init__(self, dice: Callable[[], float] = random.random) -> None:
        self._delays = ExponentialBackoff(FIRST_S, MAX_S, dice)

    def after_close(self, code: int, lasted_s: float, retry_s: float = 0.0) -> float | None:
        """Return the seconds to wait after a close code (0: cut), or None to not reconnect.

        Args:
            lasted_s: how long all subscriptions were in place; 0 if they never were.
            retry_s: the delay that the server's `shutdown` message requested.
        """
        if code in _NEVER or (code in _CLIENT_ERRORS and not lasted_s):
            return None
        if lasted_s >= STABLE_S:
            self._delays.reset()
        # Reconnect at once only the first time: a server might close every connection this way.
        is_first = self._delays.is_first
        delay_s = self._delays.next_delay_s()
        if code == CloseCode.RESTART and retry_s:
            return retry_s
        at_once = code == CloseCode.RESTART or code in _AT_ONCE
        return 0.0 if at_once and is_first else delay_s

    def after_failure(self, status: int | None = None, retry_after_s: float = 0.0) -> float | None:
        """Return the seconds to wait after a failed attempt, or None to give up.

        Args:
            status: the HTTP status, if the handshake was refused.
            retry_after_s: the value of its `Retry-After` header.
        """
        if status is not None and status not in _RETRIED:
            return None
        return max(self._delays.next_delay_s(), min(retry_after_s, RETRY_AFTER_MAX_S))


class RateLimitDelays:
    """Delays before repeating a rate-limited message on the same connection.

    Reconnecting would not help: a new connection would start over with the first message and get
    no further than this one.

    Args:
        dice: returns random numbers from 0 to 1. A delay lies between half its bound and its
            bound, because servers close connections that are refused repeatedly.

    >>> delays = RateLimitDelays(dice=lambda: 1.0)
    >>> [delays.after_refusal(429) for _ in range(5)]
    [0.4, 0.8, 1.6, 3.0, 3.0]
    >>> delays.after_refusal(405) is None  # Waiting does not raise the symbol limit.
    True
    """

    def __init__(self, dice: Callable[[], float] = random.random) -> None:
        self._delays = ExponentialBackoff(REFUSED_FIRST_S, REFUSED_MAX_S, lambda: (1 + dice()) / 2)

    def reset(self) -> None:
        """Start over: the server has accepted a message."""
        self._delays.reset()

    def after_refusal(self, code: int | None) -> float | None:
        """Return the seconds to wait after an error code, or None if waiting does not help."""
        return self._delays.next_delay_s() if code == Fault.RATE_LIMITED.code else None
