"""How fast a client may speak, and when it has gone too far. No I/O."""

from __future__ import annotations

from typing import Final

from feed.rates import TokenBucket

_REFUSALS_PER_S: Final = 1.0
_REFUSALS_BURST: Final = 10


class Conduct:
    """One client's allowance of messages, and the patience with it once that is used up.

    Attributes:
        limits: the allowance in words, for the client.
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
        """Take the price of a message; whether the allowance has that much.

        A price above the burst counts as the burst, so that any message passes after a rest.

        Args:
            price: the whole price; 1 is a plain message.
            now_s: of a steady clock.
            paid: the part that was taken already. It is given back where the rest is refused.
        """
        rest = min(price, self._burst) - min(paid, self._burst)
        if rest <= 0 or self._messages.take(rest, now_s):
            return True
        if paid:
            self._messages.give_back(min(paid, self._burst))
        return False

    def charge(self, price: float) -> None:
        """Take the price of work that is done: what it concerned was not known before.

        Where the allowance has less, messages are refused until the rest is made up for.
        """
        self._messages.owe(price)

    def may_refuse(self, cost: float, now_s: float) -> bool:
        """Whether to refuse one more message of a client that is too fast; if not, disconnect it.

        Args:
            cost: 1 for a plain message, more for a long one.
        """
        if self._patience is None:
            self._patience = TokenBucket(_REFUSALS_PER_S, _REFUSALS_BURST)
        return self._patience.take(min(cost, _REFUSALS_BURST), now_s)
