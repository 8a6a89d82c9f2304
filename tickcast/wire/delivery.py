"""Delivery options of a subscription: conflation, and the policy for slow clients."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

CONFLATE_STEP_MS: Final = 10
CONFLATE_MAX_MS: Final = 60_000
INTERVALS_MAX: Final = 16
"""The number of different intervals that are served exactly.

Each interval needs memory for every stream that uses it: 1 to 6 MiB for 10,000 streams.
"""
_COARSE_MS: Final = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000)


class SlowPolicy(Enum):
    """What to do with ticks that a client is too slow to receive."""

    CONFLATE = "conflate"
    """Keep only the latest tick of each stream, which counts those that it replaced."""
    SKIP = "skip"
    """Drop them, and announce them in a `skipped` notice."""
    CLOSE = "close"
    """Close the connection."""


class Options(NamedTuple):
    """The options of a subscription, or a connection's defaults; None if not specified."""

    conflate_ms: int | None = None
    slow: SlowPolicy | None = None

    def or_else(self, others: Options) -> Options:
        """Fill in unspecified options from others."""
        return Options(
            others.conflate_ms if self.conflate_ms is None else self.conflate_ms,
            others.slow if self.slow is None else self.slow,
        )


NO_OPTIONS: Final = Options()


class Delivery(NamedTuple):
    """How to serve a subscription.

    Attributes:
        conflate_ms: send at most one tick in this interval, in ms; 0 sends every tick.
        slow: the policy if the client is too slow.
    """

    conflate_ms: int
    slow: SlowPolicy


# The cache makes equal deliveries the same object.
@lru_cache(maxsize=1024)
def choose_delivery(channel: str, options: Options, extended: bool) -> Delivery:
    """Resolve a client's complete options to a delivery.

    Args:
        extended: whether the client knows our extensions. One that does not would not understand
            merged or missing ticks, so it is disconnected instead.
    """
    slow = options.slow
    if slow is None and extended:
        # For prices, the latest one matters. For trades, it matters that some are missing.
        slow = SlowPolicy.SKIP if channel == "trades" else SlowPolicy.CONFLATE
    return Delivery(options.conflate_ms or 0, slow or SlowPolicy.CLOSE)


def coarse_conflate_ms(asked_ms: int) -> int:
    """Round an interval up to one of a few, if too many different ones are already in use."""
    return next((each for each in _COARSE_MS if each >= asked_ms), CONFLATE_MAX_MS)


def effective_conflate_ms(asked_ms: int) -> int:
    """Round a requested interval up to a step, so that many clients share the same interval."""
    steps = -(-min(asked_ms, CONFLATE_MAX_MS) // CONFLATE_STEP_MS)
    return steps * CONFLATE_STEP_MS
