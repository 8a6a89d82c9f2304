"""Check what one client may send and hold: its grant, message allowance and limits. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from feed.access.entitlements import EVERYTHING, Entitlements, Grant, Proof
from feed.transport.address_limits import TokenBucket
from tickcast.wire.actions import (
    Action,
    Auth,
    Configure,
    ListSubscriptions,
    PlayTape,
    Publish,
    SteerReplay,
    Subscribe,
    Unsubscribe,
)
from tickcast.wire.errors import Fault, InvalidAction, SessionEnded
from tickcast.wire.parsing import parse_action, read_id
from tickcast.wire.subscriptions import Subscription

# A client that sends too fast gets this many error messages before it is disconnected.
_REFUSALS_PER_S: Final = 1.0
_REFUSALS_BURST: Final = 10

# The price of a message is 1, plus 1 for each of these quantities in it. There is room for more
# positions, because a client that resumes a wildcard names all of its streams.
_SYMBOLS_PER_MESSAGE: Final = 100
_POSITIONS_PER_MESSAGE: Final = 1000
_ACTION_WITHIN: Final = 64
_BYTES_PER_MESSAGE: Final = 32 * 1024
# Connecting 5,000 streams takes 20 ms. So do 2,500 snapshots with their positions.
_CONNECTED_PER_MESSAGE: Final = 5000
_BEGUN_PER_MESSAGE: Final = 2500

_NOTHING: Final = Entitlements(feeds=())

Value = TypeVar("Value")


class MessageLimiter:
    """One client's message allowance, and how many refusals it gets once that is used up."""

    __slots__ = ("_allowance", "_burst", "_per_s", "_refusals")

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._allowance = TokenBucket(per_s, burst)
        # Created on the first refusal: most clients never need it.
        self._refusals: TokenBucket | None = None

    @property
    def limits(self) -> str:
        """A description of the allowance, for the client."""
        return (
            f"{self._per_s:g} messages a second are allowed, {self._burst} at once;"
            " a long message counts as several"
        )

    def pay(self, price: float, now_s: float, paid: float = 0.0) -> bool:
        """Deduct the price of a message. Returns False if the allowance does not suffice.

        A price above the burst counts as the burst, so that any message passes after a long enough
        pause.

        Args:
            paid: the part that was deducted before. It is refunded if the rest is refused.
        """
        rest = min(price, self._burst) - min(paid, self._burst)
        if rest <= 0 or self._allowance.consume(rest, now_s):
            return True
        if paid:
            self._allowance.refund(min(paid, self._burst))
        return False

    def charge(self, price: float) -> None:
        """Deduct the price of work that is already done, because it was not known before.

        If the allowance does not suffice, messages are refused until the debt is paid off.
        """
        self._allowance.owe(price)

    def may_refuse(self, price: float, now_s: float) -> bool:
        """Whether to refuse a message of a client that sends too fast. If not, disconnect it."""
        if self._refusals is None:
            self._refusals = TokenBucket(_REFUSALS_PER_S, _REFUSALS_BURST)
        return self._refusals.consume(min(price, _REFUSALS_BURST), now_s)


def _price_of_size(message: str | bytes) -> float:
    return 1.0 + len(message) // _BYTES_PER_MESSAGE


def _may_publish(message: str | bytes) -> bool:
    """Whether a message may be a `publish` action, which names itself in its first characters."""
    start = message[:_ACTION_WITHIN]
    return "publish" in start if isinstance(start, str) else b"publish" in start


def price_of(action: Action) -> float:
    """The price of an action without its size: 1, or more for many symbols."""
    price = 1.0
    if isinstance(action, Subscribe | Unsubscribe | PlayTape):
        price += len(action.subscriptions) / _SYMBOLS_PER_MESSAGE
    if isinstance(action, Subscribe):
        price += len(action.resume) / _POSITIONS_PER_MESSAGE
    return price


class ActionPolicy:
    """Whether one connection may perform an action, and what of its feed it may see."""

    __slots__ = ("_feed", "_limiter", "_subscriptions_max", "grant")

    def __init__(
        self, feed: str, grant: Grant | None, subscriptions_max: int, limiter: MessageLimiter | None
    ) -> None:
        self._feed = feed
        self._subscriptions_max = subscriptions_max
        self._limiter = limiter
        # None until the client has authenticated.
        self.grant = grant

    @property
    def entitlements(self) -> Entitlements:
        """What the client may see; nothing until it has authenticated."""
        return self.grant.entitlements if self.grant else _NOTHING

    def narrow(self, subscriptions: Mapping[Subscription, Value]) -> dict[Subscription, Value]:
        """Reduce subscriptions of the feed to what the client may see."""
        return self.entitlements.narrow_all(self._feed, subscriptions)

    def check_message(
        self, message: str | bytes, now_s: float, held: Iterable[Subscription]
    ) -> Action:
        """Charge the client for a message, parse it, and check that the client may send it.

        Raises:
            InvalidAction: the message is refused.
            SessionEnded: the message is refused and the connection must end.
        """
        # The size is charged first, so that a refused message takes no time to parse. Ticks of a
        # publisher are charged by their number instead (`feed.server.publishing`).
        is_exempt = self.grant is not None and self.grant.publishes and _may_publish(message)
        paid = 0.0 if is_exempt else _price_of_size(message)
        self._pay(message, paid, now_s)
        try:
            action = parse_action(message, self._subscriptions_max)
        except InvalidAction:
            if is_exempt:
                self._pay(message, _price_of_size(message), now_s)
            raise
        if not isinstance(action, Publish):
            price = price_of(action) + (_price_of_size(message) if is_exempt else 0)
            self._pay(message, price, now_s, paid)
        if isinstance(action, Auth):
            if self.grant is not None and self.grant.proof is Proof.KEY:
                raise InvalidAction(Fault.ALREADY_AUTHENTICATED, id=action.id)
        elif self.grant is None:
            raise InvalidAction(Fault.NOT_AUTHENTICATED, "send auth first", action.id)
        if _concerns_feed(action) and not self.entitlements.allows_feed(self._feed):
            detail = f"the credentials do not cover the feed {self._feed}"
            raise InvalidAction(Fault.INSUFFICIENT_SUBSCRIPTION, detail, action.id)
        if isinstance(action, Subscribe):
            self._check_limit(action, held)
            self._check_coverage(action)
        return action

    def charge_streams(self, connected: int, begun: int) -> None:
        """Charge the client for its streams, whose number is known once they have been found.

        Args:
            connected: how many streams had to be connected for this client. Joining a group that
                already exists connects none.
            begun: for how many streams the client received the snapshot or the position.
        """
        if self._limiter is not None:
            price = connected / _CONNECTED_PER_MESSAGE + begun / _BEGUN_PER_MESSAGE
            self._limiter.charge(price)

    def _pay(self, message: str | bytes, price: float, now_s: float, paid: float = 0.0) -> None:
        limiter = self._limiter
        if limiter is None or limiter.pay(price, now_s, paid):
            return
        if not limiter.may_refuse(_price_of_size(message), now_s):
            raise SessionEnded(Fault.RATE_LIMITED, "messages continued after the refusals")
        raise InvalidAction(Fault.RATE_LIMITED, limiter.limits, read_id(message))

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
