"""How fast a client may speak, and when it has gone too far. No I/O."""

from __future__ import annotations

from typing import Final

from feed.errors import Ended, Fault, InvalidAction
from feed.fields import Id
from feed.rates import TokenBucket

_REFUSALS_PER_S: Final = 1.0
_REFUSALS_BURST: Final = 10


class Conduct:
    """One client's allowance of messages, and the patience with it once that is used up."""

    __slots__ = ("_burst", "_messages", "_patience", "_per_s")

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._messages = TokenBucket(per_s, burst)
        self._patience: TokenBucket | None = None

    def pay(self, price: float, now_s: float, id_: Id) -> None:
        """Take one message.

        Args:
            price: what it costs of the allowance; 1 is a plain message.
            now_s: of a steady clock.
            id_: the message's own.

        Raises:
            InvalidAction: too many came; the client may try again later.
            Ended: it has been told so too often.
        """
        if self._messages.take(min(price, self._burst), now_s):
            return
        if self._patience is None:
            self._patience = TokenBucket(_REFUSALS_PER_S, _REFUSALS_BURST)
        if not self._patience.take(1, now_s):
            raise Ended(Fault.RATE_LIMITED, "it went on", id_)
        raise InvalidAction(
            Fault.RATE_LIMITED,
            f"{self._per_s:g} messages a second are allowed, {self._burst} at once;"
            " a long list of symbols counts as several",
            id_,
        )
