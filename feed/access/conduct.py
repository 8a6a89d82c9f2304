"""Limit a client's message rate, and decide when to disconnect it. No I/O."""

from __future__ import annotations

from typing import Final

from feed.transport.address_limits import TokenBucket
from tickcast.wire.actions import Action, PlayTape, Subscribe, Unsubscribe

_REFUSALS_PER_S: Final = 1.0
_REFUSALS_BURST: Final = 10

_SYMBOLS_PER_MESSAGE: Final = 100
"""A message with this many symbols costs twice as much as a plain one."""

_CONNECTED_PER_MESSAGE: Final = 5000
_BEGUN_PER_MESSAGE: Final = 2500
"""Connecting 5,000 streams takes 20 ms. So do 2,500 snapshots with their positions."""

_POSITIONS_PER_MESSAGE: Final = 1000
"""A message with this many positions costs twice as much as a plain one.

The number is higher because a client that resumes a wildcard names all of its streams.
"""

_BYTES_PER_MESSAGE: Final = 32 * 1024
"""The price of a message rises by 1 for each of these, whatever the message contains."""


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


def price_of_size(size: int) -> float:
    """The price of a message before it is parsed: 1, or more if it is long."""
    return 1.0 + size // _BYTES_PER_MESSAGE


def price_of(action: Action) -> float:
    """The price of an action, charged to the client's allowance: 1, or more for many symbols."""
    price = 1.0
    if isinstance(action, Subscribe | Unsubscribe | PlayTape):
        price += len(action.subscriptions) / _SYMBOLS_PER_MESSAGE
    if isinstance(action, Subscribe):
        price += len(action.resume) / _POSITIONS_PER_MESSAGE
    return price


def price_of_streams(connected: int, begun: int) -> float:
    """The additional price of an action, known once its streams have been found.

    Args:
        connected: how many streams had to be connected for the client. Joining an audience that
            already exists connects none.
        begun: for how many streams the client received the snapshot or the position.
    """
    return connected / _CONNECTED_PER_MESSAGE + begun / _BEGUN_PER_MESSAGE
