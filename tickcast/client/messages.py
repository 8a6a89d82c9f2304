"""Messages of a server as Python objects: ticks, events, settings and errors. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import msgpack
import msgspec

from tickcast.client.accounts import Gap
from tickcast.wire.encoding import Encoding, Stamped, encode, tick_from_message
from tickcast.wire.errors import ConnectionFailed, Fault, InvalidTick
from tickcast.wire.messages import JSON_SUBPROTOCOL, MSGPACK_SUBPROTOCOL
from tickcast.wire.playback import ReplayState
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

# How servers reject extensions that they do not know.
_UNKNOWN: Final = frozenset((Fault.INVALID_SYNTAX.code, Fault.INVALID_ACTION.code))
# Errors that depend on the moment, not on the request.
_TEMPORARY: Final = frozenset(
    (Fault.RATE_LIMITED.code, Fault.INTERNAL_ERROR.code, Fault.BROKER_UNAVAILABLE.code)
)

Notice = dict[str, Any]
"""A message other than a tick, such as a reply or an error, as it was sent."""


class Refused(ConnectionFailed):
    """The server replied with an error.

    Attributes:
        code: the error code; see `docs/protocol.md`, section "Errors and closing".
    """

    def __init__(self, notice: Notice) -> None:
        self.code: int | None = notice.get("code")
        super().__init__(f"the server refused: {self.code} {notice.get('msg')}")

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in _TEMPORARY

    @property
    def is_unknown_extension(self) -> bool:
        """Whether the server may have refused because it does not know the extensions."""
        return self.code in _UNKNOWN


# -- frames


def subprotocol_of(encoding: Encoding) -> str:
    """Return the subprotocol to offer in the handshake for an encoding."""
    return JSON_SUBPROTOCOL if encoding is Encoding.JSON else MSGPACK_SUBPROTOCOL


def encode_frame(fields: Mapping[str, Any], encoding: Encoding) -> str | bytes:
    """Encode a message: as text for a text frame, or as bytes for a binary frame."""
    # `websockets` chooses the opcode by the type: str for text frames, bytes for binary ones.
    message = encode(fields, encoding)
    return message.decode() if encoding is Encoding.JSON else message


def decode_frame(frame: str | bytes) -> list[Notice]:
    """Return the messages in a frame; raises ValueError. Call it in a `reading_frame` block."""
    # The frame's type tells the encoding, even if a server ignores the subprotocol.
    messages: list[Notice] = (
        msgspec.json.decode(frame) if isinstance(frame, str) else msgpack.unpackb(frame)
    )
    return messages


@contextmanager
def reading_frame() -> Iterator[None]:
    """Turn errors in a frame into ConnectionFailed: the server does not speak this protocol."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, InvalidTick) as error:
        raise ConnectionFailed(f"the server sent an invalid message: {error}") from None


# -- ticks


def parse_tick(message: dict[str, Any]) -> Tick:
    """Return the tick in a message, which is `Stamped` if the message has stamps.

    Raises:
        InvalidTick: a field is missing or of the wrong type.

    >>> tick = parse_tick({"T": "t", "S": "AAPL", "p": 190.0, "s": 100.0, "seq": 18,
    ...     "t": "2026-11-24T00:08:02Z", "tr": 1795478882398165, "tw": 1795478882399104})
    >>> isinstance(tick, Stamped), tick.written_us - tick.published_us
    (True, 939)
    """
    return tick_from_message(message, Stamped) if "tw" in message else tick_from_message(message)


# -- events and settings


class Heartbeat(NamedTuple):
    """A heartbeat, requested with `Stream.configure(heartbeat_ms=…)`.

    The three counts cover the connection, up to the tick before the heartbeat. They restart at 0
    after a reconnect.

    Attributes:
        time: the time by the server's clock.
        queue_bytes: the bytes queued for this client in the server.
        lag_ms: how far this client is behind; see `docs/protocol.md`, section "Heartbeats".
        sent, merged, skipped: numbers of ticks.
    """

    time: Time
    queue_bytes: int
    lag_ms: int
    sent: int
    merged: int
    skipped: int


class Configured(NamedTuple):
    """The settings of a connection; see `Stream.configure`.

    Attributes:
        slow: None leaves it to each channel's default.
        conflate_ms: 0 turns conflation off.
    """

    heartbeat_ms: int
    stamps: bool
    slow: str | None
    conflate_ms: int
    replay: bool


Event = Gap | ReplayState | Heartbeat
"""An event among the ticks, passed to a callback: `on_gap`, `on_replay` or `on_heartbeat`."""


class EventHandlers(NamedTuple):
    """Callbacks for events, which are called in order with the ticks."""

    on_gap: Callable[[Gap], None] | None = None
    on_replay: Callable[[ReplayState], None] | None = None
    on_heartbeat: Callable[[Heartbeat], None] | None = None

    def notify(self, event: Event) -> None:
        """Call the callback for an event, if there is one."""
        if isinstance(event, Gap):
            if self.on_gap is not None:
                self.on_gap(event)
        elif isinstance(event, ReplayState):
            if self.on_replay is not None:
                self.on_replay(event)
        elif self.on_heartbeat is not None:
            self.on_heartbeat(event)


def parse_event(notice: Notice) -> ReplayState | Heartbeat | None:
    """Return the event in a notice, or None if it has none.

    Raises:
        ValueError, KeyError, TypeError: the notice is malformed.

    >>> state = parse_event({"T": "replay", "state": "paused", "position": "2013-09-03T13:00:00Z",
    ...                      "speed": "max", "from": 0, "to": "2013-09-03T14:00:00Z"})
    >>> state.mode, state.position.rfc3339(), state.speed
    (<ReplayMode.PAUSED: 'paused'>, '2013-09-03T13:00:00Z', inf)
    """
    match notice["T"]:
        case "replay" if "id" not in notice:  # With an id, it is about a private replay.
            return ReplayState.from_fields(notice)
        case "heartbeat":
            counts = (
                int(notice[name]) for name in ("queue", "lag_ms", "sent", "merged", "skipped")
            )
            return Heartbeat(Time.from_wire(notice["t"]), *counts)
    return None
