"""How much is too much in a time: rates as settings write them, and token buckets. No I/O."""

from __future__ import annotations

from typing import NamedTuple

from limits import RateLimitItem, parse_many


def parse_rates(text: str) -> list[RateLimitItem]:
    """Rates such as `5/second; 300/5 minutes`.

    Raises:
        ValueError: the text says something else.
    """
    return list(parse_many(text))


class FrameLimit(NamedTuple):
    """How many frames a client may send; as `frame_limit` of uvicorn's configuration."""

    per_s: float
    burst: float


class TokenBucket:
    """Allows `per_s` in the long run, and `burst` at once after a rest.

    Attributes:
        allowed: how much it would allow now, as of the last `take`.
    """

    __slots__ = ("_at_s", "_burst", "_per_s", "allowed")

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._at_s: float | None = None
        self.allowed = burst

    def take(self, cost: float, now_s: float) -> bool:
        """Whether that much is allowed now; if so it is taken.

        Args:
            now_s: of a steady clock.
        """
        if self._at_s is not None:
            gained = max(0.0, now_s - self._at_s) * self._per_s
            self.allowed = min(self._burst, self.allowed + gained)
        self._at_s = now_s
        if cost > self.allowed:
            return False
        self.allowed -= cost
        return True

    def owe(self, cost: float) -> None:
        """Take what was used already, into the negative where it has to be, at most by `burst`."""
        self.allowed = max(-self._burst, self.allowed - cost)

    def give_back(self, cost: float) -> None:
        """Undo a `take` of that much."""
        self.allowed = min(self._burst, self.allowed + cost)
