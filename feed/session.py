"""One client's conversation: its messages in, replies and hub subscriptions out. No I/O."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from feed import protocol
from feed.errors import Fault, InvalidAction
from feed.frames import build_frame
from feed.hub import Hub, tick_frames
from feed.outbox import Outbox
from feed.protocol import ListSubscriptions, Subscribe, Unsubscribe
from feed.ticks import Encoding, Subscription, encode
from feed.times import Time

Request = Subscribe | Unsubscribe | ListSubscriptions
"""An action whose answer needs the broker: its streams open, or the feed's epoch known."""


class Session:
    """What one connection has asked for so far, and the answers to what it asks next.

    `read` answers what can be answered at once and returns the rest: the caller makes sure that the
    streams in `wanted_by(request)` are open, and then calls `complete`, or `refuse` if it can't.

    Attributes:
        feed, encoding: chosen in the handshake.
        extended: whether the client knows our extensions: it offered one of our subprotocols, or
            has sent an `id`.
        subscriptions: what it holds.
    """

    def __init__(
        self,
        hub: Hub,
        outbox: Outbox,
        feed: str,
        encoding: Encoding,
        *,
        extended: bool,
        subscriptions_max: int,
        clock: Callable[[], Time] = Time.now,
    ) -> None:
        self._hub = hub
        self._outbox = outbox
        self._subscriptions_max = subscriptions_max
        self._clock = clock
        self._offered_subprotocol = extended
        self.feed = feed
        self.encoding = encoding
        self.extended = extended
        self.subscriptions: frozenset[Subscription] = frozenset()

    def greet(self) -> None:
        """Say the server's first words."""
        self._say(protocol.CONNECTED)

    def read(self, message: str | bytes) -> Request | None:
        """Take one message of the client: text is JSON, bytes are MessagePack."""
        try:
            action = protocol.parse_action(message)
            if isinstance(action, Subscribe):
                self._check_limit(action)
        except InvalidAction as error:
            self._say(protocol.error(error.fault, error.detail, error.id))
            return None
        self.extended = self.extended or action.id is not None
        match action:
            case protocol.Auth():
                self._say(protocol.authenticated(action.id))
                return None
            case protocol.Ping():
                self._say(protocol.pong(self._clock(), action.id))
                return None
        return action

    def wanted_by(self, request: Request) -> frozenset[Subscription]:
        """The subscriptions whose streams must be open before `complete`."""
        return request.subscriptions if isinstance(request, Subscribe) else frozenset()

    def complete(self, request: Request, epoch: str) -> None:
        """Carry a request out, now that its streams are open, and answer it."""
        match request:
            case Subscribe():
                self._subscribe(request, epoch)
            case Unsubscribe():
                self._hold(self.subscriptions - request.subscriptions)
                self._confirm(request, epoch)
            case ListSubscriptions():
                self._confirm(request, epoch)

    def refuse(self, request: Request, fault: Fault, detail: str) -> None:
        """Answer a request that can't be carried out; nothing of it is applied."""
        self._say(protocol.error(fault, detail, request.id))

    def farewell(self, retry_ms: int) -> bytes:
        """The last words of a server that shuts down, for clients that understand them."""
        return self._frame(protocol.shutdown(retry_ms)) if self.extended else b""

    def _check_limit(self, action: Subscribe) -> None:
        count = len(self.subscriptions | action.subscriptions)
        if count > self._subscriptions_max:
            raise InvalidAction(
                Fault.SYMBOL_LIMIT,
                f"{count} symbols and wildcards, at most {self._subscriptions_max} are allowed",
                action.id,
            )

    def _subscribe(self, request: Subscribe, epoch: str) -> None:
        # Ticks still on their way to others must not follow a snapshot that includes them.
        self._hub.flush()
        held = self.subscriptions
        latest = self._hub.latest(self.feed, request.subscriptions, besides=held)
        self.subscriptions = held | request.subscriptions
        self._confirm(request, epoch)
        if request.snapshot and latest:
            snapshot = [replace(tick, snap=True) for tick in latest]
            self._outbox.push(tick_frames(snapshot, self.encoding))
        self._hold(self.subscriptions)

    def _hold(self, subscriptions: frozenset[Subscription]) -> None:
        self.subscriptions = subscriptions
        self._hub.subscribe(self._outbox, self.feed, self.encoding, subscriptions)

    def _confirm(self, request: Request, epoch: str) -> None:
        told = epoch if self._offered_subprotocol or request.id is not None else None
        self._say(protocol.subscription(self.subscriptions, told, request.id))

    def _say(self, message: object) -> None:
        self._outbox.push(self._frame(message))

    def _frame(self, message: object) -> bytes:
        return build_frame(encode(message, self.encoding), self.encoding)
