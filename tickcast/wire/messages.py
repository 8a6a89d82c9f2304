"""Server messages, and the negotiation in the handshake; see `docs/protocol.md`.

Each function returns an array with one message, because every WebSocket message is an array.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from tickcast.wire.actions import DeliveryOptions, Id
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import Fault
from tickcast.wire.playback import ReplayState
from tickcast.wire.sequence import SequenceGap
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.ticks import StreamKey, sort_channels
from tickcast.wire.times import Time

JSON_SUBPROTOCOL: Final = "tickcast.v1.json"
MSGPACK_SUBPROTOCOL: Final = "tickcast.v1.msgpack"
_SUBPROTOCOLS: Final = {JSON_SUBPROTOCOL: Encoding.JSON, MSGPACK_SUBPROTOCOL: Encoding.MSGPACK}

_ALWAYS_LISTED: Final = ("trades", "quotes", "bars")

# The first message to every client, before any authentication.
CONNECTED: Final[Any] = [{"T": "success", "msg": "connected"}]


def authenticated(id_: Id) -> list[dict[str, Any]]:
    """The reply to valid credentials."""
    return [_with_id({"T": "success", "msg": "authenticated"}, id_)]


def pong(now: Time, id_: Id) -> list[dict[str, Any]]:
    """The reply to a `ping` action."""
    return [_with_id({"T": "pong", "t": now}, id_)]


def published(count: int, id_: Id) -> list[dict[str, Any]]:
    """The reply to a `publish` action."""
    return [_with_id({"T": "published", "n": count}, id_)]


def error(fault: Fault, detail: str = "", id_: Id = None) -> list[dict[str, Any]]:
    """An error message; `msg` is the text of the fault, then the detail."""
    msg = f"{fault.text}: {detail}" if detail else fault.text
    return [_with_id({"T": "error", "code": fault.code, "msg": msg}, id_)]


def subscription(
    held: Iterable[Subscription],
    epoch: str | None = None,
    id_: Id = None,
    conflate_ms: int | None = None,
    positions: Sequence[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """All subscriptions of a client, sorted.

    Args:
        epoch: the feed's epoch, if the client expects it.
        conflate_ms: the interval that is served, if the client requested one.
        positions: positions of the new streams, if the client requested them.
    """
    # The first channels are listed even if they are empty, the others only if they are held.
    patterns: dict[str, list[str]] = {channel: [] for channel in _ALWAYS_LISTED}
    for channel, pattern in sorted(held):
        patterns.setdefault(channel, []).append(pattern)
    message: dict[str, Any] = {"T": "subscription"}
    message.update((channel, patterns[channel]) for channel in sort_channels(patterns))
    if epoch is not None:
        message["epoch"] = epoch
    if conflate_ms is not None:
        message["conflate_ms"] = conflate_ms
    if positions is not None:
        message["positions"] = positions
    return [_with_id(message, id_)]


def configured(
    id_: Id, *, heartbeat_ms: int, stamps: bool, defaults: DeliveryOptions, replay: bool
) -> list[dict[str, Any]]:
    """The current options of a connection; null for `slow` means each channel's default."""
    message = {
        "T": "configured",
        "heartbeat_ms": heartbeat_ms,
        "stamps": stamps,
        "slow": defaults.slow.value if defaults.slow else None,
        "conflate_ms": defaults.conflate_ms or 0,
        "replay": replay,
    }
    return [_with_id(message, id_)]


def heartbeat(
    now: Time, queue_bytes: int, lag_ms: int, *, sent: int, merged: int, skipped: int
) -> list[dict[str, Any]]:
    """A heartbeat with the client's queue, lag and tick counts."""
    return [
        {"T": "heartbeat", "t": now, "queue": queue_bytes, "lag_ms": lag_ms,
         "sent": sent, "merged": merged, "skipped": skipped}
    ]  # fmt: skip


def replay(state: ReplayState) -> list[dict[str, Any]]:
    """The state of the feed's replay."""
    return [{"T": "replay", **state.to_fields()}]


def skipped(key: StreamKey, first_seq: int, last_seq: int, count: int) -> list[dict[str, Any]]:
    """A notice of ticks that a slow client does not receive."""
    return [
        {"T": "skipped", "ch": key.channel, "S": key.symbol,
         "from": first_seq, "to": last_seq, "n": count}
    ]  # fmt: skip


def gap(key: StreamKey, gap: SequenceGap) -> list[dict[str, Any]]:
    """A notice of ticks that are lost, with the reason."""
    return [
        {"T": "gap", "ch": key.channel, "S": key.symbol,
         "from": gap.first_seq, "to": gap.last_seq, "reason": gap.reason.value}
    ]  # fmt: skip


def shutdown(retry_ms: int) -> list[dict[str, Any]]:
    """A notice that the server is about to close the connection, and when to reconnect."""
    return [{"T": "shutdown", "retry_ms": retry_ms}]


def _with_id(message: dict[str, Any], id_: Id) -> dict[str, Any]:
    if id_ is not None:
        message["id"] = id_
    return message


# -- handshake


def choose_encoding(
    subprotocols: Iterable[str], content_type: str, query: str | None
) -> tuple[Encoding, str | None]:
    """Choose the encoding, and the subprotocol to accept, if the handshake offers a known one.

    First match wins: subprotocol, `Content-Type: application/msgpack`, `?encoding=`, else JSON.
    """
    # The client's order counts. Subprotocols come first because they work from a browser and show
    # that the client knows our extensions.
    for offered in subprotocols:
        if offered in _SUBPROTOCOLS:
            return _SUBPROTOCOLS[offered], offered
    if content_type.partition(";")[0].strip().lower() == "application/msgpack":
        return Encoding.MSGPACK, None
    return Encoding.MSGPACK if query == "msgpack" else Encoding.JSON, None
