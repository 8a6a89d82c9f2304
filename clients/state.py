"""A client's half of the conversation, without I/O: frames in, ticks, gaps and notices out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import msgpack
import msgspec

from clients.books import Books, Position
from clients.comeback import ComeBack, Fields, Wish, subscribe, unsubscribe
from clients.notices import Event, event_in
from clients.stamps import tick_in
from feed.encoding import Encoding, encode
from feed.errors import ConnectionFailed, Fault, InvalidTick
from feed.protocol import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL
from feed.ticks import Coverage, StreamKey, Subscription, Tick

MESSAGE_BYTES: Final = 60_000
"""What one message of ours may take: servers accept 64 KiB."""
TICK_TYPES: Final = frozenset("tqb")
_UNKNOWN: Final = frozenset((Fault.INVALID_SYNTAX.code, Fault.INVALID_ACTION.code))
_PASSING: Final = frozenset(
    (Fault.RATE_LIMITED.code, Fault.INTERNAL_ERROR.code, Fault.BROKER_UNAVAILABLE.code)
)

Notice = dict[str, Any]
"""A message that is no tick, such as a reply or an error, as it was sent."""
Message = tuple[int, str | bytes]
"""What is to be sent, after the `id` that its reply will carry."""


class Refused(ConnectionFailed):
    """The server has answered with an error.

    Attributes:
        code: its number, see `docs/protocol.md`, section "Errors and closing".
    """

    def __init__(self, notice: Notice) -> None:
        self.code: int | None = notice.get("code")
        super().__init__(f"the server refused: {self.code} {notice.get('msg')}")

    @property
    def is_passing(self) -> bool:
        """Whether the same may be granted later."""
        return self.code in _PASSING

    @property
    def is_of_the_unknown(self) -> bool:
        """Whether that is what a server says of extensions that it does not know."""
        return self.code in _UNKNOWN


def subprotocol_of(encoding: Encoding) -> str:
    """What to offer in the handshake to get this encoding."""
    return JSON_SUBPROTOCOL if encoding is Encoding.JSON else MSGPACK_SUBPROTOCOL


def to_message(fields: Fields, encoding: Encoding) -> str | bytes:
    """What to send, text or bytes as its frame is to be."""
    message = encode(fields, encoding)
    return message.decode() if encoding is Encoding.JSON else message


def messages_in(frame: str | bytes) -> list[Notice]:
    """The messages in a frame, ticks or others; raises ValueError. To be called in `reading`."""
    messages: list[Notice] = (
        msgspec.json.decode(frame) if isinstance(frame, str) else msgpack.unpackb(frame)
    )
    return messages


@contextmanager
def reading() -> Iterator[None]:
    """Whatever is wrong with a frame is ConnectionFailed: the server speaks something else."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, InvalidTick) as error:
        raise ConnectionFailed(f"the server sent what is no message: {error}") from None


class ClientState:
    """What a client must remember to read its messages, and to take up again after a cut.

    Attributes:
        books: what has become of every tick.
        extended: whether the server knows our extensions, as far as was seen.
        retry_s: when to come back, where the server has said so before it shut down.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.books = Books()
        self.extended = True
        self.retry_s = 0.0
        self._wishes: dict[Subscription, Wish] = {}
        self._asked: dict[int, dict[Subscription, Wish | None]] = {}
        self._configuration: Fields = {}
        self._configuring: dict[int, Fields] = {}
        self._epoch_asked = 0
        self._last_id = 0

    @property
    def subprotocol(self) -> str:
        """What to offer in the handshake."""
        return subprotocol_of(self.encoding)

    def connected(self, subprotocol: str | None) -> None:
        """Begin another connection, on which the server has accepted this subprotocol."""
        self.extended = subprotocol is not None
        self.retry_s = 0.0
        self._asked.clear()
        self._configuring.clear()
        self._epoch_asked = 0

    # -- what comes

    def receive(self, frame: str | bytes) -> tuple[list[Tick | Event], list[Notice]]:
        """Take one message of the server apart: what the application is to see, and notices.

        Raises:
            ConnectionFailed: the server does not speak this protocol.
        """
        seen: list[Tick | Event] = []
        notices: list[Notice] = []
        with reading():
            for message in messages_in(frame):
                if message["T"] in TICK_TYPES:
                    seen += self.books.take(tick_in(message))
                else:
                    notices.append(message)
                    seen += self._take_notice(message)
        return seen, notices

    def _take_notice(self, notice: Notice) -> Iterable[Event]:
        match notice["T"]:
            case "gap" | "skipped":
                return self.books.take_notice(notice)
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
            # It answers one by one, in order, but knows nothing of ids.
            notice["id"] = next(iter(self._asked))
        asked = self._asked.pop(notice.get("id", 0), {})
        changes = self._configuring.pop(notice.get("id", 0), {})
        if notice.get("id") == self._epoch_asked:
            self._epoch_asked = 0
        if notice["T"] == "configured":
            self._configuration.update(changes)
        if notice["T"] == "subscription":
            self._take_subscription(notice, asked)

    def _take_subscription(self, notice: Notice, asked: dict[Subscription, Wish | None]) -> None:
        before = self._wishes.copy()
        # Not what is listed: after a cut that is only what has been asked for again so far.
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
                # Where it is not said, nothing was published yet.
                self.books.place(*each, epoch, 0)

    # -- what to say

    def subscribe(
        self,
        channels: Mapping[str, Iterable[str]],
        *,
        snapshot: bool = False,
        wish: Wish = Wish(),  # noqa: B008 - a tuple
        plainly: bool = False,
    ) -> Message:
        """The message that adds subscriptions.

        Args:
            plainly: with nothing in it that `wish` and `snapshot` do not ask for.
        """
        entries = _entries(channels)
        options = {"snapshot": True} if snapshot else {}
        if self.extended and not plainly:
            options["positions"] = True
        return self._ask(subscribe(entries, wish, **options), dict.fromkeys(entries, wish))

    def unsubscribe(self, channels: Mapping[str, Iterable[str]]) -> Message:
        """The message that ends subscriptions."""
        entries = _entries(channels)
        return self._ask(unsubscribe(entries), dict.fromkeys(entries))

    def configure(self, changes: Mapping[str, Any]) -> Message:
        """The message that sets what holds for the whole connection, and those that follow it.

        Args:
            changes: what is to be another than it was, by the protocol's names.
        """
        message = self._ask({"action": "configure", **changes}, {})
        self._configuring[message[0]] = dict(changes)
        return message

    def ask_epoch(self) -> Message | None:
        """The message that asks for the epoch, where a numbering has begun: one at a time."""
        if not self.books.lacks_epoch or self._epoch_asked or not self.extended:
            return None
        self.books.lacks_epoch = False
        message = self._ask({"action": "list"}, {})
        self._epoch_asked = message[0]
        return message

    def say_again(self) -> list[Message]:
        """After a reconnect: the messages that bring back all that held, each as the next.

        What was configured comes first, since it is the default of what is subscribed to.
        """
        known = self._configuration if self.extended else {}
        return [*([self.configure(known)] if known else []), *self.subscribe_again()]

    def subscribe_again(self) -> list[Message]:
        """After a reconnect: the messages that ask for all that was held, from where it stood.

        Each is to be sent when the one before has been answered.
        """
        if self.extended:
            self.books.insist_on_epochs()
        else:
            self.books.resume_unasked()
        come_back = ComeBack(self.books if self.extended else None, self._size, MESSAGE_BYTES)
        return [self._ask(fields, {}) for fields in come_back.messages(self._wishes)]

    def resume(
        self,
        channels: Mapping[str, Iterable[str]],
        positions: Iterable[Position],
        wish: Wish = Wish(),  # noqa: B008 - a tuple
    ) -> list[Message]:
        """The messages that go on from positions that the program has kept.

        Streams under a wildcard that have none begin with the first tick that is kept. Each message
        is to be sent when the one before has been answered.
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

    def _ask(self, fields: Fields, changes: dict[Subscription, Wish | None]) -> Message:
        """Give a message its `id`, and note what its success will change."""
        self._last_id += 1
        self._asked[self._last_id] = changes
        return self._last_id, to_message({**fields, "id": self._last_id}, self.encoding)


def _entries(channels: Mapping[str, Iterable[str]]) -> list[Subscription]:
    return [Subscription(channel, each) for channel in channels for each in channels[channel]]
