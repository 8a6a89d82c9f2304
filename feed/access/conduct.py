"""Limit a client's message rate, and decide when to disconnect it. No I/O."""

from __future__ import annotations

from typing import Final

from tickcast.wire.rates import TokenBucket

_REFUSALS_PER_S: Final = 1.0
_REFUSALS_BURST: Final = 10


class MessageLimiter:
    """One client's message allowance, and how many refusals it gets once that is used up.

    Attributes:
        limits: a description of the allowance, for the client.
    """

    __slots__ = ("_burst", "_messages", "_patience", "_per_s")

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._messages = TokenBucket(per_s, burst)
        self._patience: TokenBucket | None = None

    @property
    def limits(self) -> str:
        return (
            f"{self._per_s:g} messages a second are allowed, {self._burst} at once;"
            " a long message counts as several"
        )

    def pay(self, price: float, now_s: float, paid: float = 0.0) -> bool:
        """Take the price of a message from the allowance. Returns False if it does not suffice.

        A price above the burst counts as the burst, so that any message passes after a long enough
        pause.

        Args:
            price: the full price; 1 for a plain message.
            now_s: the time of a steady clock.
            paid: the part that was taken before. It is returned if the rest is refused.
        """
        rest = min(price, self._burst) - min(paid, self._burst)
        if rest <= 0 or self._messages.consume(rest, now_s):
            return True
        if paid:
            self._messages.refund(min(paid, self._burst))
        return False

    def charge(self, price: float) -> None:
        """Take the price of work that is already done, because its cost was not known before.

        If the allowance does not suffice, messages are refused until the debt is paid off.
        """
        self._messages.owe(price)

    def may_refuse(self, cost: float, now_s: float) -> bool:
        """Whether to refuse a message of a client that sends too fast. If not, disconnect it.

        Args:
            cost: 1 for a plain message, more for a long one.
        """
        if self._patience is None:
            self._patience = TokenBucket(_REFUSALS_PER_S, _REFUSALS_BURST)
        return self._patience.consume(min(cost, _REFUSALS_BURST), now_s)
