"""A client's half of the conversation, without I/O: frames in, ticks and notices out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgpack
import msgspec

from feed.errors import ConnectionFailed, InvalidTick
from feed.protocol import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL
from feed.ticks import CHANNELS, Encoding, Subscription, Tick, encode, from_wire

_TICK_TYPES: Final = frozenset("tqb")

Notice = dict[str, Any]
"""A message that is no tick, such as a reply or an error, as it was sent."""


class ClientState:
    """What a client must remember to read its messages, and to take up again after a cut.

    Attributes:
        subscriptions: what the server has last confirmed.
    """

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.subscriptions: frozenset[Subscription] = frozenset()
        self._last_id = 0

    @property
    def subprotocol(self) -> str:
        """What to offer in the handshake."""
        return JSON_SUBPROTOCOL if self.encoding is Encoding.JSON else MSGPACK_SUBPROTOCOL

    def receive(self, frame: str | bytes) -> tuple[list[Tick], list[Notice]]:
        """Take one message of the server apart.

        Raises:
            ConnectionFailed: the server does not speak this protocol.
        """
        try:
            messages: list[dict[str, Any]] = (
                msgspec.json.decode(frame) if isinstance(frame, str) else msgpack.unpackb(frame)
            )
            ticks = [from_wire(fields) for fields in messages if fields["T"] in _TICK_TYPES]
            notices = [fields for fields in messages if fields["T"] not in _TICK_TYPES]
        except (ValueError, KeyError, TypeError, InvalidTick) as error:
            raise ConnectionFailed(f"the server sent what is no message: {error}") from None
        for notice in notices:
            if notice["T"] == "subscription":
                self.subscriptions = _listed_in(notice)
        return ticks, notices

    def subscribe(
        self, channels: Mapping[str, Iterable[str]], *, snapshot: bool = False
    ) -> tuple[int, str | bytes]:
        """The message that adds subscriptions, and the `id` its reply will carry."""
        named = {channel: list(symbols) for channel, symbols in channels.items() if symbols}
        options = {"snapshot": True} if snapshot else {}
        return self._action("subscribe", **named, **options)

    def unsubscribe(self, channels: Mapping[str, Iterable[str]]) -> tuple[int, str | bytes]:
        """The message that ends subscriptions, and the `id` its reply will carry."""
        named = {channel: list(symbols) for channel, symbols in channels.items() if symbols}
        return self._action("unsubscribe", **named)

    def subscribe_again(self) -> tuple[int, str | bytes]:
        """After a reconnect: the message that asks for all that was held before, and its `id`."""
        channels: dict[str, list[str]] = {}
        for channel, pattern in sorted(self.subscriptions):
            channels.setdefault(channel, []).append(pattern)
        return self._action("subscribe", **channels)

    def _action(self, name: str, **fields: object) -> tuple[int, str | bytes]:
        self._last_id += 1
        message = encode({"action": name, "id": self._last_id, **fields}, self.encoding)
        is_json = self.encoding is Encoding.JSON
        return self._last_id, message.decode() if is_json else message


def _listed_in(notice: Notice) -> frozenset[Subscription]:
    return frozenset(
        Subscription(channel, pattern)
        for channel, patterns in notice.items()
        if channel in CHANNELS
        for pattern in patterns
    )
