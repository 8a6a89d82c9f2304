"""A client's half of the conversation, without I/O: frames in, ticks, gaps and notices out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgpack
import msgspec

from clients.books import Book, Books, Gap
from feed.errors import ConnectionFailed, InvalidTick
from feed.protocol import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL
from feed.ticks import CHANNELS, Encoding, Subscription, Tick, encode, from_wire

MESSAGE_BYTES: Final = 60_000
"""What one message of ours may take: servers accept 64 KiB."""
_TICK_TYPES: Final = frozenset("tqb")

Notice = dict[str, Any]
"""A message that is no tick, such as a reply or an error, as it was sent."""
Message = tuple[int, str | bytes]
"""What is to be sent, after the `id` that its reply will carry."""


class Wish(NamedTuple):
    """How a subscription was asked for; None is what was not said.

    Attributes:
        start: from this time on, nanoseconds since the Unix epoch.
    """

    conflate_ms: int | None = None
    slow: str | None = None
    start: int | None = None


class ClientState:
    """What a client must remember to read its messages, and to take up again after a cut.

    Attributes:
        subscriptions: what the server has last confirmed.
        books: what has become of every tick.
        extended: whether the server knows our extensions, as far as was seen.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.subscriptions: frozenset[Subscription] = frozenset()
        self.books = Books()
        self.extended = True
        self._wishes: dict[Subscription, Wish] = {}
        self._asked: dict[int, dict[Subscription, Wish | None]] = {}
        self._epoch_asked = 0
        self._last_id = 0

    @property
    def subprotocol(self) -> str:
        """What to offer in the handshake."""
        return JSON_SUBPROTOCOL if self.encoding is Encoding.JSON else MSGPACK_SUBPROTOCOL

    # -- what comes

    def receive(self, frame: str | bytes) -> tuple[list[Tick | Gap], list[Notice]]:
        """Take one message of the server apart: what the application is to see, and notices.

        Raises:
            ConnectionFailed: the server does not speak this protocol.
        """
        seen: list[Tick | Gap] = []
        notices: list[Notice] = []
        try:
            messages: list[Notice] = (
                msgspec.json.decode(frame) if isinstance(frame, str) else msgpack.unpackb(frame)
            )
            for message in messages:
                if message["T"] in _TICK_TYPES:
                    seen += self.books.take(from_wire(message))
                else:
                    notices.append(message)
                    seen += self._take_notice(message)
        except (ValueError, KeyError, TypeError, InvalidTick) as error:
            raise ConnectionFailed(f"the server sent what is no message: {error}") from None
        return seen, notices

    def _take_notice(self, notice: Notice) -> Iterable[Gap]:
        if notice["T"] in ("gap", "skipped"):
            return self.books.take_notice(notice)
        asked = self._asked.pop(notice.get("id", 0), None)
        if notice.get("id") == self._epoch_asked:
            self._epoch_asked = 0
        if notice["T"] == "subscription":
            self._take_subscription(notice, asked or {})
        return ()

    def _take_subscription(self, notice: Notice, asked: dict[Subscription, Wish | None]) -> None:
        before, self.subscriptions = self.subscriptions, _listed_in(notice)
        # Not what is listed: after a cut that is only what has been asked for again so far.
        for each, wish in asked.items():
            if wish is None:
                self._wishes.pop(each, None)
            else:
                self._wishes[each] = wish
        self.books.keep_positions(self._wishes)
        epoch = notice.get("epoch")
        if epoch is None:
            return
        self.books.name_epoch(epoch)
        if "positions" in notice:
            for book, known, seq in self._positions_in(notice["positions"]):
                book.stand_at(known, seq)
            for each, wish in asked.items():
                # Where it is not said, nothing was published yet.
                if each in before or each.is_wildcard or wish is None or wish.start is not None:
                    continue
                if (book := self.books.book(*each)).seq is None:
                    book.stand_at(epoch, 0)

    def _positions_in(self, maps: Iterable[dict[str, Any]]) -> Iterator[tuple[Book, str, int]]:
        for positions in maps:
            for channel in CHANNELS:
                for symbol, seq in positions.get(channel, {}).items():
                    yield self.books.book(channel, symbol), positions["epoch"], seq

    # -- what to say

    def subscribe(
        self,
        channels: Mapping[str, Iterable[str]],
        *,
        snapshot: bool = False,
        wish: Wish = Wish(),  # noqa: B008 - a tuple
    ) -> Message:
        """The message that adds subscriptions."""
        wanted = {
            Subscription(channel, each): wish for channel in channels for each in channels[channel]
        }
        options: dict[str, Any] = {"snapshot": True} if snapshot else {}
        if self.extended:
            options["positions"] = True
        return self._subscribe(wanted, wish, options)

    def unsubscribe(self, channels: Mapping[str, Iterable[str]]) -> Message:
        """The message that ends subscriptions."""
        named = {channel: list(symbols) for channel, symbols in channels.items() if symbols}
        id_, message = self._action("unsubscribe", **named)
        self._asked[id_] = {
            Subscription(channel, each): None for channel in named for each in named[channel]
        }
        return id_, message

    def ask_epoch(self) -> Message | None:
        """The message that asks for the epoch, where a numbering has begun: one at a time."""
        if not self.books.lacks_epoch or self._epoch_asked or not self.extended:
            return None
        self.books.lacks_epoch = False
        self._epoch_asked, message = self._action("list")
        return self._epoch_asked, message

    def subscribe_again(self) -> list[Message]:
        """After a reconnect: the messages that ask for all that was held, from where it stood."""
        self._asked.clear()
        self._epoch_asked = 0
        by_wish: dict[Wish, dict[Subscription, Wish]] = {}
        for each, wish in self._wishes.items():
            by_wish.setdefault(wish, {})[each] = wish
        return [
            message for wish, wanted in by_wish.items() for message in self._resume(wanted, wish)
        ]

    def _resume(self, wanted: dict[Subscription, Wish], wish: Wish) -> Iterator[Message]:
        if not self.extended:
            yield self._subscribe(wanted, Wish(), {})
            return
        known = self.books.positioned(wanted)
        while True:
            id_, message = self._subscribe(
                wanted, wish, {"resume": _resume_value(wanted, known, self.books.epoch, wish)}
            )
            if len(message) <= MESSAGE_BYTES:
                yield id_, message
                return
            del self._asked[id_]
            if len(wanted) > 1:
                items = list(wanted.items())
                yield from self._resume(dict(items[: len(items) // 2]), wish)
                yield from self._resume(dict(items[len(items) // 2 :]), wish)
                return
            # One wildcard over so many streams: the quietest get all that is retained again, and
            # leave out what they know.
            for book in known[len(known) // 2 :]:
                book.overlaps = True
            known = known[: len(known) // 2]

    def _subscribe(
        self, wanted: dict[Subscription, Wish], wish: Wish, options: dict[str, Any]
    ) -> Message:
        channels: dict[str, list[str]] = {}
        for channel, pattern in wanted:
            channels.setdefault(channel, []).append(pattern)
        said = {name: value for name, value in wish._asdict().items() if value is not None}
        id_, message = self._action("subscribe", **channels, **said, **options)
        self._asked[id_] = dict(wanted)
        return id_, message

    def _action(self, name: str, **fields: object) -> Message:
        self._last_id += 1
        message = encode({"action": name, "id": self._last_id, **fields}, self.encoding)
        is_json = self.encoding is Encoding.JSON
        return self._last_id, message.decode() if is_json else message


def _resume_value(
    wanted: Iterable[Subscription], known: Iterable[Book], epoch_now: str, wish: Wish
) -> list[dict[str, Any]]:
    """Positions by epoch; streams under a wildcard that are not known have all that is retained."""
    maps: dict[str, dict[str, Any]] = {}
    for book in known:
        epoch = book.epoch or epoch_now
        positions = maps.setdefault(epoch, {"epoch": epoch})
        positions.setdefault(book.channel, {})[book.symbol] = book.seq
    if wish.start is None:
        for channel, pattern in wanted:
            if pattern.endswith("*"):
                maps.setdefault("", {"epoch": ""}).setdefault(channel, {})[pattern] = 0
    return list(maps.values())


def _listed_in(notice: Notice) -> frozenset[Subscription]:
    return frozenset(
        Subscription(channel, pattern)
        for channel, patterns in notice.items()
        if channel in CHANNELS
        for pattern in patterns
    )
