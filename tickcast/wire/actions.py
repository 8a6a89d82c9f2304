"""Parse client messages into actions. This is the only module that does; see `docs/protocol.md`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tickcast.wire.credentials import Bearer, Credentials, KeyAndSecret
from tickcast.wire.delivery import NO_OPTIONS, Options, SlowPolicy, effective_conflate_ms
from tickcast.wire.errors import Fault, InvalidAction
from tickcast.wire.fields import (
    Fields,
    Id,
    is_integer,
    refuse_unknown,
    show,
    syntax,
    take_channels,
    take_flag,
    take_id,
    take_time,
)
from tickcast.wire.positions import NO_POSITIONS, Positions, parse_positions
from tickcast.wire.replay_actions import Play, Steer, parse_play, parse_steer
from tickcast.wire.ticks import CHANNELS, Subscription
from tickcast.wire.times import Time

HEARTBEAT_MS: Final = (100, 60_000)
"""The shortest and the longest interval between heartbeats, in ms."""

_SYMBOLS_PER_MESSAGE: Final = 100
"""A message with this many symbols costs twice as much as a plain one."""

_CONNECTED_PER_MESSAGE: Final = 5000
_BEGUN_PER_MESSAGE: Final = 2500
"""Connecting 5,000 streams takes 20 ms. So do 2,500 snapshots with their positions."""

_POSITIONS_PER_MESSAGE: Final = 1000
"""A message with this many positions costs twice as much as a plain one.

The number is higher because a client that resumes a wildcard names all of its streams.
"""

_BYTES_PER_MESSAGE: Final = 32 * 1024
"""The price of a message rises by 1 for each of these, whatever the message contains."""

_SLOW_WORDS: Final = 'slow is "conflate", "skip" or "close"'


class Auth(Struct, frozen=True):
    """Authenticates the client."""

    credentials: Credentials
    id: Id = None


class Subscribe(Struct, frozen=True):
    """Subscribes to streams.

    Attributes:
        options: how to deliver them.
        resume: the client's positions in some of the streams; it receives what came after them.
        start: for the other streams, send all ticks from this time on.
        snapshot: send the latest tick of each stream first.
        positions: report the current position of each stream.
    """

    subscriptions: frozenset[Subscription]
    id: Id = None
    options: Options = NO_OPTIONS
    resume: Positions = NO_POSITIONS
    start: Time | None = None
    snapshot: bool = False
    positions: bool = False

    @property
    def wants_past(self) -> bool:
        """Whether it asks for ticks that have already been published."""
        return bool(self.resume) or self.start is not None

    @property
    def is_extended(self) -> bool:
        """Whether it uses an extension to the protocol that ours is based on."""
        return bool(
            self.wants_past or self.snapshot or self.positions or self.options != NO_OPTIONS
        )


class Unsubscribe(Struct, frozen=True):
    """Unsubscribes from streams."""

    subscriptions: frozenset[Subscription]
    id: Id = None


class ListSubscriptions(Struct, frozen=True):
    """Requests the current subscriptions."""

    id: Id = None


class Ping(Struct, frozen=True):
    """Requests a pong."""

    id: Id = None


class Configure(Struct, frozen=True):
    """Sets options of the connection; an option that the message leaves out is UNSET."""

    id: Id = None
    heartbeat_ms: int | UnsetType = UNSET
    stamps: bool | UnsetType = UNSET
    slow: SlowPolicy | UnsetType | None = UNSET
    conflate_ms: int | UnsetType = UNSET
    replay: bool | UnsetType = UNSET


Action = Auth | Subscribe | Unsubscribe | ListSubscriptions | Ping | Configure | Play | Steer


def uses_extension(action: Action) -> bool:
    """Whether an action shows that the client knows the extensions to the base protocol."""
    if action.id is not None or isinstance(action, ListSubscriptions | Ping | Configure):
        return True
    return isinstance(action, Subscribe) and action.is_extended


def price_of_size(size: int) -> float:
    """The price of a message before it is parsed: 1, or more if it is long."""
    return 1.0 + size // _BYTES_PER_MESSAGE


def price(action: Action) -> float:
    """The price of an action, charged to the client's allowance: 1, or more for many symbols."""
    price = 1.0
    if isinstance(action, Subscribe | Unsubscribe | Play):
        price += len(action.subscriptions) / _SYMBOLS_PER_MESSAGE
    if isinstance(action, Subscribe):
        price += len(action.resume) / _POSITIONS_PER_MESSAGE
    return price


def price_of_streams(connected: int, begun: int) -> float:
    """The additional price of an action, known once its streams have been found.

    Args:
        connected: how many streams had to be connected for the client. Joining an audience that
            already exists connects none.
        begun: for how many streams the client received the snapshot or the position.
    """
    return connected / _CONNECTED_PER_MESSAGE + begun / _BEGUN_PER_MESSAGE


_JSON_MAP = msgspec.json.Decoder(dict[str, Any])
_MSGPACK_MAP = msgspec.msgpack.Decoder(dict[str, Any])


class _Identified(Struct):
    """The only field that is read from a message that is refused without parsing it."""

    id: int | str | None = None


_JSON_ID = msgspec.json.Decoder(_Identified)
_MSGPACK_ID = msgspec.msgpack.Decoder(_Identified)


def read_id(message: str | bytes) -> Id:
    """The `id` of a message that is not parsed further; None if there is no usable one."""
    decoder = _JSON_ID if isinstance(message, str) else _MSGPACK_ID
    try:
        id_ = decoder.decode(message).id  # type: ignore[arg-type]
        return take_id({"id": id_}) if id_ is not None else None
    except (msgspec.MsgspecError, InvalidAction, ValueError, OverflowError, RecursionError):
        return None


def parse_action(message: str | bytes, entries_max: int | None = None) -> Action:
    """Parse one client message: JSON if it is text, MessagePack if it is bytes.

    Args:
        entries_max: how many symbols and wildcards a client may hold. A message that names more
            than twice as many is refused before they are parsed.

    Raises:
        InvalidAction: the message is invalid. The error carries its `id` if that could be read.
    """
    fields = _decode_map(message)
    id_ = take_id(fields)
    if entries_max is not None and (count := _count_entries(fields)) > 2 * entries_max:
        detail = f"{count} symbols and wildcards, at most {entries_max} are allowed"
        raise InvalidAction(Fault.SYMBOL_LIMIT, detail, id_)
    try:
        return _parse_fields(fields, id_)
    except InvalidAction as error:
        error.id = id_
        raise


def _count_entries(fields: Fields) -> int:
    lists = [fields[channel] for channel in CHANNELS if channel in fields]
    return sum(len(each) for each in lists if isinstance(each, list))


def _decode_map(message: str | bytes) -> dict[str, Any]:
    decoder = _JSON_MAP if isinstance(message, str) else _MSGPACK_MAP
    try:
        return decoder.decode(message)  # type: ignore[arg-type]
    except RecursionError:
        raise syntax("nested too deeply") from None
    except msgspec.ValidationError:
        raise syntax("a message is one map with text keys") from None
    except (msgspec.MsgspecError, ValueError, OverflowError):
        kind = "JSON" if isinstance(message, str) else "MessagePack"
        raise syntax(f"not {kind}") from None


def _parse_fields(fields: Fields, id_: Id) -> Action:
    name = fields.pop("action", None)
    if not isinstance(name, str):
        raise syntax(
            "a message names its action: auth, subscribe, unsubscribe, list, ping, configure"
            " or replay"
        )
    if name in _PARSERS:
        return _PARSERS[name](fields, id_)
    if name.startswith("replay."):
        return parse_steer(name, fields, id_)
    raise syntax(f"unknown action {show(name)}")


def _parse_unsubscribe(fields: Fields, id_: Id) -> Unsubscribe:
    return Unsubscribe(take_channels(fields), id_)


def _parse_list(fields: Fields, id_: Id) -> ListSubscriptions:
    refuse_unknown(fields)
    return ListSubscriptions(id_)


def _parse_ping(fields: Fields, id_: Id) -> Ping:
    refuse_unknown(fields)
    return Ping(id_)


def _parse_auth(fields: Fields, id_: Id) -> Auth:
    given = {name: fields.pop(name) for name in ("key", "secret", "token") if name in fields}
    refuse_unknown(fields)
    if not all(isinstance(value, str) for value in given.values()):
        raise syntax("key, secret and token are strings")
    if set(given) == {"key", "secret"}:
        return Auth(KeyAndSecret(**given), id_)
    if set(given) == {"token"}:
        return Auth(Bearer(given["token"]), id_)
    raise syntax("auth takes a key and a secret, or a token")


def _parse_subscribe(fields: Fields, id_: Id) -> Subscribe:
    options = _take_options(fields)
    snapshot, positions = take_flag(fields, "snapshot"), take_flag(fields, "positions")
    start = take_time(fields, "start")
    if snapshot and start is not None:
        raise syntax("snapshot and start exclude each other: the past comes before the latest tick")
    resume = fields.pop("resume", None)
    subscriptions = take_channels(fields)
    return Subscribe(
        subscriptions,
        id_,
        options,
        NO_POSITIONS if resume is None else parse_positions(resume, subscriptions),
        start,
        snapshot,
        positions,
    )


def _take_options(fields: Fields) -> Options:
    conflate_ms = _take_conflate_ms(fields)
    slow = _take_slow(fields)
    if slow is None:
        raise syntax(_SLOW_WORDS)
    return Options(None if conflate_ms is UNSET else conflate_ms, None if slow is UNSET else slow)


def _parse_configure(fields: Fields, id_: Id) -> Configure:
    heartbeat_ms = fields.pop("heartbeat_ms", UNSET)
    shortest, longest = HEARTBEAT_MS
    if heartbeat_ms is not UNSET and not (
        is_integer(heartbeat_ms) and (heartbeat_ms == 0 or shortest <= heartbeat_ms <= longest)
    ):
        raise syntax(f"heartbeat_ms is an integer from {shortest} to {longest}, or 0 for none")
    stamps = take_flag(fields, "stamps") if "stamps" in fields else UNSET
    replay = take_flag(fields, "replay") if "replay" in fields else UNSET
    slow, conflate_ms = _take_slow(fields), _take_conflate_ms(fields)
    refuse_unknown(fields)
    return Configure(id_, heartbeat_ms, stamps, slow, conflate_ms, replay)


def _take_conflate_ms(fields: Fields) -> int | UnsetType:
    if "conflate_ms" not in fields:
        return UNSET
    value = fields.pop("conflate_ms")
    if not (is_integer(value) and value >= 0):
        raise syntax("conflate_ms is an integer of at least 0")
    return effective_conflate_ms(value)


def _take_slow(fields: Fields) -> SlowPolicy | UnsetType | None:
    """Take the `slow` policy; None selects each channel's default."""
    value = fields.pop("slow", UNSET)
    if value is UNSET or value is None:
        return None if value is None else UNSET
    try:
        return SlowPolicy(value)
    except ValueError:
        raise syntax(_SLOW_WORDS) from None


_PARSERS: Final[dict[str, Callable[[Fields, Id], Action]]] = {
    "auth": _parse_auth,
    "subscribe": _parse_subscribe,
    "unsubscribe": _parse_unsubscribe,
    "list": _parse_list,
    "ping": _parse_ping,
    "configure": _parse_configure,
    "replay": parse_play,
}
