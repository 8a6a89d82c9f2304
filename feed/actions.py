"""What clients may say: read here, by no one else. `docs/protocol.md` describes it."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from feed.access.credentials import CREDENTIAL_MAX, Bearer, Credentials, KeyAndSecret
from feed.delivery import NO_OPTIONS, Options, SlowPolicy, effective_conflate_ms
from feed.errors import Fault, InvalidAction
from feed.positions import NO_POSITIONS, Positions, parse_positions
from feed.ticks import CHANNELS, Subscription, is_pattern
from feed.times import Time

ID_MAX: Final = 64
"""Longest `id` of a client's message, in characters."""

_ALPACA_CHANNELS: Final = frozenset(
    "updatedBars dailyBars statuses lulds news corrections cancelErrors orderbooks".split()
)
"""Channels of the protocol that ours grew from, which no feed of ours carries."""

_LATER_ACTIONS: Final = frozenset(
    ("replay", "replay.pause", "replay.resume", "replay.stop", "replay.seek", "replay.speed")
)
HEARTBEAT_MS: Final = (100, 60_000)
"""The shortest and the longest time between two heartbeats."""

_SYMBOLS_PER_MESSAGE: Final = 100
"""So many symbols make a message cost as much as two."""

_POSITIONS_PER_MESSAGE: Final = 1000
"""And so many positions: whoever comes back to a wildcard names all of its streams."""

_SLOW_WORDS: Final = 'slow is "conflate", "skip" or "close"'

Id = int | str | None


class Auth(Struct, frozen=True):
    """Says who the client is."""

    credentials: Credentials
    id: Id = None


class Subscribe(Struct, frozen=True):
    """Streams a client wants from now on.

    Attributes:
        options: how it wants them.
        resume: where it stands in some of them: it wants what has come since.
        start: of the others it wants all ticks from this time on.
        snapshot: it wants the latest tick of each first.
        positions: it wants to be told where the streams stand.
    """

    subscriptions: frozenset[Subscription]
    id: Id = None
    options: Options = NO_OPTIONS
    resume: Positions = NO_POSITIONS
    start: Time | None = None
    snapshot: bool = False
    positions: bool = False

    @property
    def is_extended(self) -> bool:
        """Whether it uses what is not in the protocol that ours extends."""
        past = self.resume or self.start is not None
        return bool(past or self.snapshot or self.positions or self.options != NO_OPTIONS)


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
    replay: bool | UnsetType = UNSET


Action = Auth | Subscribe | Unsubscribe | ListSubscriptions | Ping | Configure


def uses_extension(action: Action) -> bool:
    """Whether an action shows that the client knows what is not in the protocol ours extends."""
    if action.id is not None or isinstance(action, ListSubscriptions | Ping | Configure):
        return True
    return isinstance(action, Subscribe) and action.is_extended


def price(action: Action) -> float:
    """What an action costs of a client's allowance: 1, and more where it names many symbols."""
    price = 1.0
    if isinstance(action, Subscribe | Unsubscribe):
        price += len(action.subscriptions) / _SYMBOLS_PER_MESSAGE
    if isinstance(action, Subscribe):
        price += len(action.resume) / _POSITIONS_PER_MESSAGE
    return price


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
        return _parse_subscribe(fields, id_)
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
    if any(len(value) > CREDENTIAL_MAX for value in given.values()):
        raise _syntax(f"key, secret and token have at most {CREDENTIAL_MAX} characters")
    if set(given) == {"key", "secret"}:
        return Auth(KeyAndSecret(**given), id_)
    if set(given) == {"token"}:
        return Auth(Bearer(given["token"]), id_)
    raise _syntax("auth takes a key and a secret, or a token")


def _parse_subscribe(fields: dict[str, Any], id_: Id) -> Subscribe:
    options = _take_options(fields)
    snapshot, positions = _take_flag(fields, "snapshot"), _take_flag(fields, "positions")
    start = _take_start(fields)
    if snapshot and start is not None:
        raise _syntax(
            "snapshot and start exclude each other: the past comes before the latest tick"
        )
    resume = fields.pop("resume", None)
    subscriptions = _parse_channels(fields)
    return Subscribe(
        subscriptions,
        id_,
        options,
        NO_POSITIONS if resume is None else parse_positions(resume, subscriptions),
        start,
        snapshot,
        positions,
    )


def _take_flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.pop(name, False)
    if not isinstance(value, bool):
        raise _syntax(f"{name} is true or false")
    return value


def _take_start(fields: dict[str, Any]) -> Time | None:
    if fields.get("start") is None:
        fields.pop("start", None)
        return None
    try:
        return Time.from_wire(fields.pop("start"))
    except ValueError as error:
        raise _syntax(f"start is an RFC 3339 time or whole nanoseconds: {error}") from None


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
    stamps = _take_flag(fields, "stamps") if "stamps" in fields else UNSET
    replay = _take_flag(fields, "replay") if "replay" in fields else UNSET
    slow, conflate_ms = _take_slow(fields), _take_conflate_ms(fields)
    _refuse_unknown(fields)
    return Configure(id_, heartbeat_ms, stamps, slow, conflate_ms, replay)


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
