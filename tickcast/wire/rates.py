"""Rate limits: rates in the form used by settings, and token buckets. No I/O."""

from __future__ import annotations

from typing import NamedTuple

from limits import RateLimitItem, parse_many


def parse_rates(text: str) -> list[RateLimitItem]:
    """Parse rates such as `5/second; 300/5 minutes`.

    Raises:
        ValueError: the text is not a list of rates.
    """
    return list(parse_many(text))


class FrameLimit(NamedTuple):
    """How many frames a client may send; stored as `frame_limit` in uvicorn's configuration."""

    per_s: float
    burst: float


class TokenBucket:
    """A token bucket: allows `per_s` in the long run, and `burst` at once after a pause.

    Attributes:
        allowed: the amount available at the time of the last `consume`.
    """

    __slots__ = ("_at_s", "_burst", "_per_s", "allowed")

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._at_s: float | None = None
        self.allowed = burst

    def consume(self, cost: float, now_s: float) -> bool:
        """Take an amount if it is available; return whether it was.

        Args:
            now_s: time on a steady clock.
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
        """Charge for past use; the balance may become negative, down to `-burst`."""
        self.allowed = max(-self._burst, self.allowed - cost)

    def refund(self, cost: float) -> None:
        """Undo a `consume` of this amount."""
        self.allowed = min(self._burst, self.allowed + cost)
