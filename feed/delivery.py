"""How a client wants its streams: as they come or conflated, and what to do when it is slow."""

from __future__ import annotations

from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

CONFLATE_STEP_MS: Final = 10
CONFLATE_MAX_MS: Final = 60_000
INTERVALS_MAX: Final = 16
"""How many different intervals are served exactly.

Each costs memory for every stream that it is used with: 1 to 6 MiB for 10,000.
"""
_COARSE_MS: Final = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000)


class SlowPolicy(Enum):
    """What becomes of the ticks that a client is too slow to take."""

    CONFLATE = "conflate"
    """Only the latest of each stream is kept; it says how many it replaced."""
    SKIP = "skip"
    """They are dropped, and a `skipped` notice says which."""
    CLOSE = "close"
    """The connection ends."""


class Options(NamedTuple):
    """What a client has said about a subscription, or as its default; None is nothing."""

    conflate_ms: int | None = None
    slow: SlowPolicy | None = None

    def or_else(self, others: Options) -> Options:
        """These, and the others where these say nothing."""
        return Options(
            others.conflate_ms if self.conflate_ms is None else self.conflate_ms,
            others.slow if self.slow is None else self.slow,
        )


NO_OPTIONS: Final = Options()


class Delivery(NamedTuple):
    """How a subscription is served: at most one tick in so many ms (0: every tick), and so on."""

    conflate_ms: int
    slow: SlowPolicy


# Cached, so that equal deliveries are one object.
@lru_cache(maxsize=1024)
def choose_delivery(channel: str, options: Options, extended: bool) -> Delivery:
    """The delivery that a client's options, in full, come down to.

    Args:
        extended: whether the client knows our extensions. One that does not could make nothing of
            merged or missing ticks, and is disconnected instead.
    """
    slow = options.slow
    if slow is None and extended:
        # Of prices the latest is what counts; of trades, that some are missing.
        slow = SlowPolicy.SKIP if channel == "trades" else SlowPolicy.CONFLATE
    return Delivery(options.conflate_ms or 0, slow or SlowPolicy.CLOSE)


def coarse_conflate_ms(asked_ms: int) -> int:
    """The interval of a few that is served instead, where too many are in use already."""
    return next((each for each in _COARSE_MS if each >= asked_ms), CONFLATE_MAX_MS)


def effective_conflate_ms(asked_ms: int) -> int:
    """The interval that is served for the one asked: coarse, so that many clients share it."""
    steps = -(-min(asked_ms, CONFLATE_MAX_MS) // CONFLATE_STEP_MS)
    return steps * CONFLATE_STEP_MS
