"""What clients may say and what the server says: parsed and built here, by no one else.

The words and codes are those of `docs/protocol.md`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from feed.counters import Totals
from feed.delivery import NO_OPTIONS, Options, SlowPolicy, effective_conflate_ms
from feed.errors import Fault, InvalidAction
from feed.ticks import CHANNELS, Encoding, StreamKey, Subscription, is_pattern, sort_channels
from feed.times import Time

JSON_SUBPROTOCOL: Final = "tickcast.v1.json"
MSGPACK_SUBPROTOCOL: Final = "tickcast.v1.msgpack"
_SUBPROTOCOLS: Final = {
    JSON_SUBPROTOCOL: Encoding.JSON,
    MSGPACK_SUBPROTOCOL: Encoding.MSGPACK,
}
ID_MAX: Final = 64
"""Longest `id` of a client's message, in characters."""

_ALWAYS_LISTED: Final = ("trades", "quotes", "bars")
_ALPACA_CHANNELS: Final = frozenset(
    "updatedBars dailyBars statuses lulds news corrections cancelErrors orderbooks".split()
)
"""Channels of the protocol that ours grew from, which no feed of ours carries."""

_LATER_OPTIONS: Final = frozenset(("start", "resume"))
_LATER_ACTIONS: Final = frozenset(
    ("replay", "replay.pause", "replay.resume", "replay.stop", "replay.seek", "replay.speed")
)
HEARTBEAT_MS: Final = (100, 60_000)
"""The shortest and the longest time between two heartbeats."""

_SLOW_WORDS: Final = 'slow is "conflate", "skip" or "close"'

Id = int | str | None


# --------------------------------------------------------------------------- client to server


class Auth(Struct, frozen=True):
    """Credentials: a key with its secret, or a token."""

    id: Id = None
    key: str | None = None
    secret: str | None = None
    token: str | None = None


class Subscribe(Struct, frozen=True):
    """Streams a client wants from now on, the latest tick of each first if `snapshot`."""

    subscriptions: frozenset[Subscription]
    id: Id = None
    snapshot: bool = False
    options: Options = NO_OPTIONS


class Unsubscribe(Struct, frozen=True):
    """Streams a client no longer wants."""

    subscriptions: frozenset[Subscription]
    id: Id = None


class ListSubscriptions(Struct, frozen=True):
    """Asks for the current subscriptions."""

    id: Id = None


class Ping(Struct, frozen=True):
    """Asks for a pong."""

    id: Id = None


class Configure(Struct, frozen=True):
    """Wishes for the whole connection; UNSET where the message says nothing."""

    id: Id = None
    heartbeat_ms: int | UnsetType = UNSET
    stamps: bool | UnsetType = UNSET
    slow: SlowPolicy | UnsetType | None = UNSET
    conflate_ms: int | UnsetType = UNSET


Action = Auth | Subscribe | Unsubscribe | ListSubscriptions | Ping | Configure


def uses_extension(action: Action) -> bool:
    """Whether an action shows that the client knows what is not in the protocol ours extends."""
    if action.id is not None or isinstance(action, ListSubscriptions | Ping | Configure):
        return True
    return isinstance(action, Subscribe) and (action.snapshot or action.options != NO_OPTIONS)


_JSON_MAP = msgspec.json.Decoder(dict[str, Any])
_MSGPACK_MAP = msgspec.msgpack.Decoder(dict[str, Any])


def parse_action(message: str | bytes) -> Action:
    """Read one client message: JSON when it is text, MessagePack when it is bytes.

    Raises:
        InvalidAction: with what was wrong, and the message's `id` if it could be read.
    """
    fields = _decode_map(message)
    id_ = _take_id(fields)
    try:
        return _parse_fields(fields, id_)
    except InvalidAction as error:
        error.id = id_
        raise


def _decode_map(message: str | bytes) -> dict[str, Any]:
    decoder = _JSON_MAP if isinstance(message, str) else _MSGPACK_MAP
    try:
        return decoder.decode(message)  # type: ignore[arg-type]
    except RecursionError:
        raise _syntax("nested too deeply") from None
    except msgspec.ValidationError:
        raise _syntax("a message is one map with text keys") from None
    except (msgspec.MsgspecError, ValueError, OverflowError):
        kind = "JSON" if isinstance(message, str) else "MessagePack"
        raise _syntax(f"not {kind}") from None


def _take_id(fields: dict[str, Any]) -> Id:
    if "id" not in fields:
        return None
    id_ = fields.pop("id")
    if isinstance(id_, str):
        if len(id_) <= ID_MAX:
            return id_
    elif _is_integer(id_) and -(2**63) <= id_ < 2**64:
        return id_  # type: ignore[no-any-return]
    raise _syntax(f"id is an integer of 64 bits or a string of at most {ID_MAX} characters")


def _parse_fields(fields: dict[str, Any], id_: Id) -> Action:
    name = fields.pop("action", None)
    if not isinstance(name, str):
        raise _syntax(
            "a message names its action: auth, subscribe, unsubscribe, list, ping or configure"
        )
    if name == "auth":
        return _parse_auth(fields, id_)
    if name == "subscribe":
        snapshot = fields.pop("snapshot", False)
        if not isinstance(snapshot, bool):
            raise _syntax("snapshot is true or false")
        options = _take_options(fields)
        _refuse_later_options(fields)
        return Subscribe(_parse_channels(fields), id_, snapshot, options)
    if name == "unsubscribe":
        return Unsubscribe(_parse_channels(fields), id_)
    if name in ("list", "ping"):
        _refuse_unknown(fields)
        return ListSubscriptions(id_) if name == "list" else Ping(id_)
    if name == "configure":
        return _parse_configure(fields, id_)
    if name in _LATER_ACTIONS:
        raise InvalidAction(Fault.INVALID_ACTION, f"{name} is not served here")
    raise _syntax(f"unknown action {_show(name)}")


def _parse_auth(fields: dict[str, Any], id_: Id) -> Auth:
    given = {name: fields.pop(name) for name in ("key", "secret", "token") if name in fields}
    _refuse_unknown(fields)
    if not all(isinstance(value, str) for value in given.values()):
        raise _syntax("key, secret and token are strings")
    if set(given) not in ({"key", "secret"}, {"token"}):
        raise _syntax("auth takes a key and a secret, or a token")
    return Auth(id_, **given)


def _take_options(fields: dict[str, Any]) -> Options:
    conflate_ms = _take_conflate_ms(fields)
    slow = _take_slow(fields)
    if slow is None:
        raise _syntax(_SLOW_WORDS)
    return Options(None if conflate_ms is UNSET else conflate_ms, None if slow is UNSET else slow)


def _parse_configure(fields: dict[str, Any], id_: Id) -> Configure:
    heartbeat_ms = fields.pop("heartbeat_ms", UNSET)
    shortest, longest = HEARTBEAT_MS
    if heartbeat_ms is not UNSET and not (
        _is_integer(heartbeat_ms) and (heartbeat_ms == 0 or shortest <= heartbeat_ms <= longest)
    ):
        raise _syntax(f"heartbeat_ms is an integer from {shortest} to {longest}, or 0 for none")
    stamps = fields.pop("stamps", UNSET)
    if stamps is not UNSET and not isinstance(stamps, bool):
        raise _syntax("stamps is true or false")
    slow, conflate_ms = _take_slow(fields), _take_conflate_ms(fields)
    if "replay" in fields:
        raise InvalidAction(Fault.INVALID_ACTION, "replay is not served here")
    _refuse_unknown(fields)
    return Configure(id_, heartbeat_ms, stamps, slow, conflate_ms)


def _take_conflate_ms(fields: dict[str, Any]) -> int | UnsetType:
    if "conflate_ms" not in fields:
        return UNSET
    value = fields.pop("conflate_ms")
    if not (_is_integer(value) and value >= 0):
        raise _syntax("conflate_ms is an integer of at least 0")
    return effective_conflate_ms(value)


def _take_slow(fields: dict[str, Any]) -> SlowPolicy | UnsetType | None:
    """A policy; None stands for the default of each channel."""
    value = fields.pop("slow", UNSET)
    if value is UNSET or value is None:
        return None if value is None else UNSET
    try:
        return SlowPolicy(value)
    except ValueError:
        raise _syntax(_SLOW_WORDS) from None


def _parse_channels(fields: dict[str, Any]) -> frozenset[Subscription]:
    if not fields:
        raise _syntax("name at least one channel: " + ", ".join(CHANNELS))
    found: set[Subscription] = set()
    for channel, patterns in fields.items():
        if channel in _ALPACA_CHANNELS:
            raise InvalidAction(Fault.INVALID_ACTION, f"no channel {channel}")
        if channel not in CHANNELS:
            raise _syntax(f"unknown key {_show(channel)}; channels are " + ", ".join(CHANNELS))
        if not isinstance(patterns, list):
            raise _syntax(f"{channel} takes a list of symbols")
        for pattern in patterns:
            if not (isinstance(pattern, str) and is_pattern(pattern)):
                raise _syntax(
                    f"{channel}: {_show(pattern)} is no symbol: 1 to 32 characters of"
                    " A-Z a-z 0-9 . _ / : -, or * alone or at the end"
                )
            found.add(Subscription(channel, pattern))
    return frozenset(found)


def _refuse_later_options(fields: dict[str, Any]) -> None:
    for name in fields:
        if name in _LATER_OPTIONS:
            raise InvalidAction(Fault.INVALID_ACTION, f"{name} is not served here")


def _refuse_unknown(fields: dict[str, Any]) -> None:
    for name in fields:
        raise _syntax(f"unknown key {_show(name)}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _syntax(detail: str) -> InvalidAction:
    return InvalidAction(Fault.INVALID_SYNTAX, detail)


def _show(value: object) -> str:
    """A client's own words, safe to send back and to log: short, and ASCII only."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "…")
    return f"a {type(value).__name__}"


# --------------------------------------------------------------------------- server to client

CONNECTED: Final[Any] = [{"T": "success", "msg": "connected"}]


def authenticated(id_: Id) -> list[dict[str, Any]]:
    """The answer to credentials that are good."""
    return [_with_id({"T": "success", "msg": "authenticated"}, id_)]


def pong(now: Time, id_: Id) -> list[dict[str, Any]]:
    """The answer to a `ping` action."""
    return [_with_id({"T": "pong", "t": now}, id_)]


def error(fault: Fault, detail: str = "", id_: Id = None) -> list[dict[str, Any]]:
    """An error message; `msg` is the fault's own words, then what was wrong this time."""
    msg = f"{fault.words}: {detail}" if detail else fault.words
    return [_with_id({"T": "error", "code": fault.code, "msg": msg}, id_)]


def subscription(
    held: Iterable[Subscription],
    epoch: str | None = None,
    id_: Id = None,
    conflate_ms: int | None = None,
) -> list[dict[str, Any]]:
    """The whole set of a client's subscriptions, sorted.

    Args:
        epoch: the feed's, for those who want it.
        conflate_ms: the interval that is served, for those who asked for one.
    """
    patterns: dict[str, list[str]] = {channel: [] for channel in _ALWAYS_LISTED}
    for channel, pattern in sorted(held):
        patterns.setdefault(channel, []).append(pattern)
    message: dict[str, Any] = {"T": "subscription"}
    message.update((channel, patterns[channel]) for channel in sort_channels(patterns))
    if epoch is not None:
        message["epoch"] = epoch
    if conflate_ms is not None:
        message["conflate_ms"] = conflate_ms
    return [_with_id(message, id_)]


def configured(
    id_: Id, *, heartbeat_ms: int, stamps: bool, defaults: Options
) -> list[dict[str, Any]]:
    """What holds for a connection from now on; `slow` null is the default of each channel."""
    message = {
        "T": "configured",
        "heartbeat_ms": heartbeat_ms,
        "stamps": stamps,
        "slow": defaults.slow.value if defaults.slow else None,
        "conflate_ms": defaults.conflate_ms or 0,
    }
    return [_with_id(message, id_)]


def heartbeat(now: Time, queue_bytes: int, lag_ms: int, totals: Totals) -> list[dict[str, Any]]:
    """A sign of life, and how the client is doing."""
    message = {"T": "heartbeat", "t": now, "queue": queue_bytes, "lag_ms": lag_ms}
    return [message | {name: getattr(totals, name) for name in ("sent", "merged", "skipped")}]


def skipped(key: StreamKey, first_seq: int, last_seq: int, count: int) -> list[dict[str, Any]]:
    """Says which ticks of a stream a slow client does not get."""
    return [
        {"T": "skipped", "ch": key.channel, "S": key.symbol,
         "from": first_seq, "to": last_seq, "n": count}
    ]  # fmt: skip


def shutdown(retry_ms: int) -> list[dict[str, Any]]:
    """Says that the server is about to close the connection, and when to come back."""
    return [{"T": "shutdown", "retry_ms": retry_ms}]


def _with_id(message: dict[str, Any], id_: Id) -> dict[str, Any]:
    if id_ is not None:
        message["id"] = id_
    return message


# ---------------------------------------------------------------------------------- handshake


def choose_encoding(
    subprotocols: Iterable[str], content_type: str, query: str | None
) -> tuple[Encoding, str | None]:
    """The encoding a handshake asks for, and the subprotocol to accept, if it offers one of ours.

    First match wins: subprotocol, `Content-Type: application/msgpack`, `?encoding=`, else JSON.
    """
    for offered in subprotocols:
        if offered in _SUBPROTOCOLS:
            return _SUBPROTOCOLS[offered], offered
    if content_type.partition(";")[0].strip().lower() == "application/msgpack":
        return Encoding.MSGPACK, None
    return Encoding.MSGPACK if query == "msgpack" else Encoding.JSON, None
