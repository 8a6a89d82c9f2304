"""Checks what one client may send and hold: its grant, message allowance and limits. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from feed.access.conduct import MessageLimiter, price_of, price_of_size
from feed.access.entitlements import EVERYTHING, Entitlements
from feed.access.grant import Grant, Proof
from tickcast.wire.actions import (
    Action,
    Auth,
    Configure,
    ListSubscriptions,
    SteerReplay,
    Subscribe,
    Unsubscribe,
)
from tickcast.wire.errors import Fault, InvalidAction, SessionEnded
from tickcast.wire.parsing import parse_action, read_id
from tickcast.wire.subscriptions import Subscription

Value = TypeVar("Value")
_NOBODY: Final = Entitlements(feeds=())


class ActionPolicy:
    """The rights of one connection to one feed.

    Attributes:
        grant: the client's grant; None until it has authenticated.
    """

    __slots__ = ("_conduct", "_feed", "_subscriptions_max", "grant")

    def __init__(
        self, feed: str, grant: Grant | None, subscriptions_max: int, conduct: MessageLimiter | None
    ) -> None:
        self._feed = feed
        self._subscriptions_max = subscriptions_max
        self._conduct = conduct
        self.grant = grant

    @property
    def entitlements(self) -> Entitlements:
        """What the client may see; nothing until it has authenticated."""
        return self.grant.entitlements if self.grant else _NOBODY

    def narrow(self, wanted: Mapping[Subscription, Value]) -> dict[Subscription, Value]:
        """Reduce subscriptions of the feed to what the client may see."""
        return self.entitlements.narrow_all(self._feed, wanted)

    def read(self, message: str | bytes, now_s: float, held: Iterable[Subscription]) -> Action:
        """Charge the client for a message, parse it, and check that the client may send it.

        Args:
            now_s: time on a steady clock.
            held: the subscriptions that the client already has.

        Raises:
            InvalidAction: the message is refused.
            Ended: the message is refused and the connection must end.
        """
        # The size is charged first, so that a refused message costs no time for parsing.
        paid = price_of_size(len(message))
        if self._conduct is not None and not self._conduct.pay(paid, now_s):
            raise self._refusal(self._conduct, message, now_s)
        action = parse_action(message, self._subscriptions_max)
        price = price_of(action)
        if self._conduct is not None and not self._conduct.pay(price, now_s, paid):
            raise self._refusal(self._conduct, message, now_s)
        if isinstance(action, Auth):
            if self.grant is not None and self.grant.proof is Proof.KEY:
                raise InvalidAction(Fault.ALREADY_AUTHENTICATED, id=action.id)
        elif self.grant is None:
            raise InvalidAction(Fault.NOT_AUTHENTICATED, "send auth first", action.id)
        if _concerns_feed(action) and not self.entitlements.allows_feed(self._feed):
            raise InvalidAction(
                Fault.INSUFFICIENT_SUBSCRIPTION, f"nothing of the feed {self._feed}", action.id
            )
        if isinstance(action, Subscribe):
            self._check_limit(action, held)
            self._check_coverage(action)
        return action

    def charge(self, price: float) -> None:
        """Charge the client's allowance for work that has been done."""
        if self._conduct is not None:
            self._conduct.charge(price)

    @staticmethod
    def _refusal(
        conduct: MessageLimiter, message: str | bytes, now_s: float
    ) -> InvalidAction | SessionEnded:
        if not conduct.may_refuse(price_of_size(len(message)), now_s):
            return SessionEnded(Fault.RATE_LIMITED, "it went on")
        id_ = read_id(message)
        return InvalidAction(Fault.RATE_LIMITED, conduct.limits, id_)

    def _check_limit(self, action: Subscribe, held: Iterable[Subscription]) -> None:
        count = len(action.subscriptions.union(held))
        if count > self._subscriptions_max:
            raise InvalidAction(
                Fault.SYMBOL_LIMIT,
                f"{count} symbols and wildcards, at most {self._subscriptions_max} are allowed",
                action.id,
            )

    def _check_coverage(self, action: Subscribe) -> None:
        entitlements = self.entitlements
        if entitlements == EVERYTHING:
            return
        named = action.subscriptions.union(action.resume.named)
        refused = entitlements.refused(self._feed, named)
        if refused:
            channel, pattern = min(refused)
            raise InvalidAction(Fault.INSUFFICIENT_SUBSCRIPTION, f"{channel} {pattern}", action.id)


def _concerns_feed(action: Action) -> bool:
    """Whether an action concerns the connection's feed and so needs rights to it.

    A private replay does not, because it belongs to the feed of its tape.
    """
    match action:
        case Configure():
            return action.replay is True
        case SteerReplay():
            return action.id is None
    return isinstance(action, Subscribe | Unsubscribe | ListSubscriptions)
