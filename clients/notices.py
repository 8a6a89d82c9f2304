"""What a server tells beside ticks and replies, as types. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from clients.books import Gap
from feed.playback import State
from feed.times import Time


class Heartbeat(NamedTuple):
    """A sign of life, after `Stream.configure(heartbeat_ms=…)`.

    The three counts are those of the connection, up to the tick before it. They begin at 0 when the
    client has come back.

    Attributes:
        time: by the server's clock.
        queue_bytes: what was waiting for us in the server.
        lag_ms: how far behind we are, see `docs/protocol.md`, section "Heartbeats".
        sent, merged, skipped: ticks.
    """

    time: Time
    queue_bytes: int
    lag_ms: int
    sent: int
    merged: int
    skipped: int


class Configured(NamedTuple):
    """What holds for a connection; see `Stream.configure`.

    Attributes:
        slow: None is each channel's own.
        conflate_ms: 0 is off.
    """

    heartbeat_ms: int
    stamps: bool
    slow: str | None
    conflate_ms: int
    replay: bool


Event = Gap | State | Heartbeat
"""What stands among the ticks and is handed to functions: `on_gap`, `on_replay`, `on_heartbeat`."""


class Handlers(NamedTuple):
    """Functions that are called with what stands among the ticks, in its place."""

    on_gap: Callable[[Gap], None] | None = None
    on_replay: Callable[[State], None] | None = None
    on_heartbeat: Callable[[Heartbeat], None] | None = None

    def take(self, event: Event) -> None:
        """Call the function for an event, if there is one."""
        if isinstance(event, Gap):
            if self.on_gap is not None:
                self.on_gap(event)
        elif isinstance(event, State):
            if self.on_replay is not None:
                self.on_replay(event)
        elif self.on_heartbeat is not None:
            self.on_heartbeat(event)


def event_in(notice: Mapping[str, Any]) -> State | Heartbeat | None:
    """What is to be handed on of a notice, if anything.

    Raises:
        ValueError, KeyError, TypeError: it is not what it says it is.

    >>> state = event_in({"T": "replay", "state": "paused", "position": "2013-09-03T13:00:00Z",
    ...                   "speed": "max", "from": 0, "to": "2013-09-03T14:00:00Z"})
    >>> state.mode, state.position.rfc3339(), state.speed
    (<Mode.PAUSED: 'paused'>, '2013-09-03T13:00:00Z', inf)
    """
    match notice["T"]:
        case "replay" if "id" not in notice:
            return State.of_fields(notice)
        case "heartbeat":
            time = Time.from_wire(notice["t"])
            counts = (
                int(notice[name]) for name in ("queue", "lag_ms", "sent", "merged", "skipped")
            )
            return Heartbeat(time, *counts)
    return None


def configured_in(notice: Mapping[str, Any]) -> Configured:
    """What a reply to `configure` says.

    Raises:
        KeyError: it does not say all of it.
    """
    return Configured(**{name: notice[name] for name in Configured._fields})
