"""How a client wants its streams: as they come or conflated, and what to do when it is slow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

from feed.ticks import Coverage, StreamKey, Subscription

CONFLATE_STEP_MS: Final = 10
CONFLATE_MAX_MS: Final = 60_000


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


def effective_conflate_ms(asked_ms: int) -> int:
    """The interval that is served for the one asked: coarse, so that many clients share it."""
    steps = -(-min(asked_ms, CONFLATE_MAX_MS) // CONFLATE_STEP_MS)
    return steps * CONFLATE_STEP_MS


class Deliveries(Coverage):
    """Subscriptions with their deliveries; for a stream that several match, the closest counts."""

    __slots__ = ("_by_prefix", "_of")

    def __init__(self, wanted: Iterable[tuple[Subscription, Delivery]]) -> None:
        self._of: Mapping[Subscription, Delivery] = dict(wanted)
        super().__init__(self._of)
        wildcards = [each for each in self._of if each.is_wildcard]
        self._by_prefix = sorted(wildcards, key=lambda each: len(each.pattern), reverse=True)

    def delivery_of(self, stream: StreamKey) -> Delivery | None:
        """How the stream is served: as its own name says, or else the longest prefix."""
        named = self._of.get(Subscription(stream.channel, stream.symbol))
        if named is not None:
            return named
        for wildcard in self._by_prefix:
            channel, pattern = wildcard
            if channel == stream.channel and stream.symbol.startswith(pattern[:-1]):
                return self._of[wildcard]
        return None
