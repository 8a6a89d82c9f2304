"""The client side of the protocol, without I/O: turns frames into ticks, gaps and notices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgpack
import msgspec

from tickcast.client.accounts import Position, SequenceAccounts
from tickcast.client.notices import Event, event_in
from tickcast.client.resume import Fields, RequestedOptions, ResumePlanner, subscribe, unsubscribe
from tickcast.client.stamps import tick_in
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import ConnectionFailed, Fault, InvalidTick
from tickcast.wire.messages import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import StreamKey, Tick

MESSAGE_BYTES: Final = 60_000
"""Maximum size of a client message. Servers accept 64 KiB."""
TICK_TYPES: Final = frozenset("tqb")
_UNKNOWN: Final = frozenset((Fault.INVALID_SYNTAX.code, Fault.INVALID_ACTION.code))
_PASSING: Final = frozenset(
    (Fault.RATE_LIMITED.code, Fault.INTERNAL_ERROR.code, Fault.BROKER_UNAVAILABLE.code)
)

Notice = dict[str, Any]
"""A message other than a tick, such as a reply or an error, as it was sent."""
Message = tuple[int, str | bytes]
"""The `id` that the reply will carry, and the message to send."""


class Refused(ConnectionFailed):
    """The server replied with an error.

    Attributes:
        code: the error code; see `docs/protocol.md`, section "Errors and closing".
    """

    def __init__(self, notice: Notice) -> None:
        self.code: int | None = notice.get("code")
        super().__init__(f"the server refused: {self.code} {notice.get('msg')}")

    @property
    def is_passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in _PASSING

    @property
    def is_of_the_unknown(self) -> bool:
        """Whether this is how a server rejects extensions that it does not know."""
        return self.code in _UNKNOWN


def subprotocol_of(encoding: Encoding) -> str:
    """Return the subprotocol to offer in the handshake for an encoding."""
    return JSON_SUBPROTOCOL if encoding is Encoding.JSON else MSGPACK_SUBPROTOCOL


def to_message(fields: Fields, encoding: Encoding) -> str | bytes:
    """Encode a message as text or bytes, according to its frame type."""
    message = encode(fields, encoding)
    return message.decode() if encoding is Encoding.JSON else message


def messages_in(frame: str | bytes) -> list[Notice]:
    """Decode the messages in a frame; raises ValueError. Call it in a `reading` block."""
    messages: list[Notice] = (
        msgspec.json.decode(frame) if isinstance(frame, str) else msgpack.unpackb(frame)
    )
    return messages


@contextmanager
def reading() -> Iterator[None]:
    """Turn errors in a frame into ConnectionFailed: the server does not speak this protocol."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, InvalidTick) as error:
        raise ConnectionFailed(f"the server sent what is no message: {error}") from None


class ClientState:
    """State that a client needs to interpret messages and to resume after a cut.

    Attributes:
        books: the accounting of all ticks.
        extended: whether the server is believed to know the extensions of this protocol.
        retry_s: the reconnect delay that the server requested before it shut down, or 0.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.books = SequenceAccounts()
        self.extended = True
        self.retry_s = 0.0
        self._wishes: dict[Subscription, RequestedOptions] = {}
        self._asked: dict[int, dict[Subscription, RequestedOptions | None]] = {}
        self._configuration: Fields = {}
        self._configuring: dict[int, Fields] = {}
        self._epoch_asked = 0
        self._last_id = 0

    @property
    def subprotocol(self) -> str:
        """The subprotocol to offer in the handshake."""
        return subprotocol_of(self.encoding)

    def connected(self, subprotocol: str | None) -> None:
        """Begin a new connection, on which the server accepted this subprotocol."""
        self.extended = subprotocol is not None
        self.retry_s = 0.0
        self._asked.clear()
        self._configuring.clear()
        self._epoch_asked = 0

    # -- incoming messages

    def receive(self, frame: str | bytes) -> tuple[list[Tick | Event], list[Notice]]:
        """Process one frame; return the ticks and events for the application, and the notices.

        Raises:
            ConnectionFailed: the server does not speak this protocol.
        """
        seen: list[Tick | Event] = []
        notices: list[Notice] = []
        with reading():
            for message in messages_in(frame):
                if message["T"] in TICK_TYPES:
                    seen += self.books.add(tick_in(message))
                else:
                    notices.append(message)
                    seen += self._take_notice(message)
        return seen, notices

    def _take_notice(self, notice: Notice) -> Iterable[Event]:
        match notice["T"]:
            case "gap" | "skipped":
                return self.books.add_notice(notice)
            case "shutdown":
                self.retry_s = notice["retry_ms"] / 1000
            case "subscription" | "configured" | "error":
                self._take_reply(notice)
            case _:
                event = event_in(notice)
                return () if event is None else (event,)
        return ()

    def _take_reply(self, notice: Notice) -> None:
        if "id" not in notice and not self.extended and self._asked:
            # A server without extensions replies in order, but without ids.
            notice["id"] = next(iter(self._asked))
        asked = self._asked.pop(notice.get("id", 0), {})
        changes = self._configuring.pop(notice.get("id", 0), {})
        if notice.get("id") == self._epoch_asked:
            self._epoch_asked = 0
        if notice["T"] == "configured":
            self._configuration.update(changes)
        if notice["T"] == "subscription":
            self._take_subscription(notice, asked)

    def _take_subscription(
        self, notice: Notice, asked: dict[Subscription, RequestedOptions | None]
    ) -> None:
        before = self._wishes.copy()
        # The reply's list won't do: after a cut it has only what was renewed so far.
        for each, wish in asked.items():
            if wish is None:
                self._wishes.pop(each, None)
            else:
                self._wishes[each] = wish.over(before[each]) if each in before else wish
        self.books.keep_positions(self._wishes)
        if "epoch" not in notice:
            return
        epoch = notice["epoch"]
        self.books.name_epoch(epoch)
        if "positions" not in notice:
            return
        self.books.stand_at(notice["positions"])
        held = Coverage(before)
        for each, wish in asked.items():
            if each.is_wildcard or wish is None or wish.start is not None:
                continue
            if not held.covers(StreamKey("", *each)) and self.books.book(*each).seq is None:
                # A stream without a position has no published ticks yet.
                self.books.place(*each, epoch, 0)

    # -- outgoing messages

    def subscribe(
        self,
        channels: Mapping[str, Iterable[str]],
        *,
        snapshot: bool = False,
        wish: RequestedOptions = RequestedOptions(),  # noqa: B008 - a tuple
        plainly: bool = False,
    ) -> Message:
        """Return the message that adds subscriptions.

        Args:
            plainly: add no options besides those in `wish` and `snapshot`.
        """
        entries = _entries(channels)
        options = {"snapshot": True} if snapshot else {}
        if self.extended and not plainly:
            options["positions"] = True
        return self._ask(subscribe(entries, wish, **options), dict.fromkeys(entries, wish))

    def unsubscribe(self, channels: Mapping[str, Iterable[str]]) -> Message:
        """Return the message that ends subscriptions."""
        entries = _entries(channels)
        return self._ask(unsubscribe(entries), dict.fromkeys(entries))

    def configure(self, changes: Mapping[str, Any]) -> Message:
        """Return the message that changes the settings of this and all later connections.

        Args:
            changes: the settings to change, by their names in the protocol.
        """
        message = self._ask({"action": "configure", **changes}, {})
        self._configuring[message[0]] = dict(changes)
        return message

    def ask_epoch(self) -> Message | None:
        """Return a request for the epoch if a numbering has begun; only one may be pending."""
        if not self.books.lacks_epoch or self._epoch_asked or not self.extended:
            return None
        self.books.lacks_epoch = False
        message = self._ask({"action": "list"}, {})
        self._epoch_asked = message[0]
        return message

    def say_again(self) -> list[Message]:
        """Return the messages that restore settings and subscriptions after a reconnect, in order.

        The settings come first, because they are the defaults for the subscriptions.
        """
        known = self._configuration if self.extended else {}
        return [*([self.configure(known)] if known else []), *self.subscribe_again()]

    def subscribe_again(self) -> list[Message]:
        """Return the messages that resume all subscriptions from their positions.

        Send each after the reply to the one before.
        """
        if self.extended:
            self.books.insist_on_epochs()
        else:
            self.books.resume_unasked()
        come_back = ResumePlanner(self.books if self.extended else None, self._size, MESSAGE_BYTES)
        return [self._ask(fields, {}) for fields in come_back.messages(self._wishes)]

    def resume(
        self,
        channels: Mapping[str, Iterable[str]],
        positions: Iterable[Position],
        wish: RequestedOptions = RequestedOptions(),  # noqa: B008 - a tuple
    ) -> list[Message]:
        """Return the messages that resume from positions that the program has saved.

        Streams under a wildcard that have no position begin with the first retained tick. Send each
        message after the reply to the one before.
        """
        entries = _entries(channels)
        coverage = Coverage(entries)
        self._wishes.update(dict.fromkeys(entries, wish))
        for each in positions:
            if coverage.covers(StreamKey("", each.channel, each.symbol)):
                self.books.place(*each)
        return self.subscribe_again()

    def _size(self, fields: Fields) -> int:
        return len(encode(fields, self.encoding))

    def _ask(self, fields: Fields, changes: dict[Subscription, RequestedOptions | None]) -> Message:
        """Give a message its `id`, and remember what to change if it succeeds."""
        self._last_id += 1
        self._asked[self._last_id] = changes
        return self._last_id, to_message({**fields, "id": self._last_id}, self.encoding)


def _entries(channels: Mapping[str, Iterable[str]]) -> list[Subscription]:
    return [Subscription(channel, each) for channel in channels for each in channels[channel]]
