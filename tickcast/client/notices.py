"""Types for heartbeats, settings and other events besides ticks. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tickcast.client.accounts import Gap
from tickcast.wire.playback import ReplayState
from tickcast.wire.times import Time


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


def event_in(notice: Mapping[str, Any]) -> ReplayState | Heartbeat | None:
    """Return the event in a notice, or None if it has none.

    Raises:
        ValueError, KeyError, TypeError: the notice is malformed.

    >>> state = event_in({"T": "replay", "state": "paused", "position": "2013-09-03T13:00:00Z",
    ...                   "speed": "max", "from": 0, "to": "2013-09-03T14:00:00Z"})
    >>> state.mode, state.position.rfc3339(), state.speed
    (<Mode.PAUSED: 'paused'>, '2013-09-03T13:00:00Z', inf)
    """
    match notice["T"]:
        case "replay" if "id" not in notice:
            return ReplayState.from_fields(notice)
        case "heartbeat":
            time = Time.from_wire(notice["t"])
            counts = (
                int(notice[name]) for name in ("queue", "lag_ms", "sent", "merged", "skipped")
            )
            return Heartbeat(time, *counts)
    return None


def configured_in(notice: Mapping[str, Any]) -> Configured:
    """Return the settings in a reply to `configure`.

    Raises:
        KeyError: a setting is missing.
    """
    return Configured(**{name: notice[name] for name in Configured._fields})
