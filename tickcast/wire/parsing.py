"""Parse client messages into actions. This is the only module that does; see `docs/protocol.md`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from tickcast.wire.actions import (
    Action,
    Auth,
    BearerToken,
    Configure,
    DeliveryOptions,
    Id,
    KeyAndSecret,
    ListSubscriptions,
    Ping,
    PlayTape,
    ReplayCommand,
    SlowPolicy,
    SteerReplay,
    Subscribe,
    Unsubscribe,
    round_conflate_ms,
)
from tickcast.wire.errors import Fault, InvalidAction
from tickcast.wire.playback import parse_speed
from tickcast.wire.positions import NO_POSITIONS, parse_positions
from tickcast.wire.subscriptions import Subscription, is_pattern
from tickcast.wire.ticks import CHANNELS
from tickcast.wire.times import Time

HEARTBEAT_MS_RANGE: Final = (100, 60_000)
"""The shortest and the longest interval between heartbeats, in ms."""
TAPE_NAME_MAX: Final = 64
"""Maximum length of a tape's name, in characters."""
ID_MAX: Final = 64
"""The maximum length of a message's `id`, in characters."""

_ALPACA_CHANNELS: Final = frozenset(
    "updatedBars dailyBars statuses lulds news corrections cancelErrors orderbooks".split()
)
"""Channels of the protocol that ours is derived from. None of our feeds carries them."""

Fields = dict[str, Any]
"""A message. The functions below remove the fields that they take from it."""
_SLOW_WORDS: Final = 'slow is "conflate", "skip" or "close"'

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
        return Auth(BearerToken(given["token"]), id_)
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


def _take_options(fields: Fields) -> DeliveryOptions:
    conflate_ms = _take_conflate_ms(fields)
    slow = _take_slow(fields)
    if slow is None:
        raise syntax(_SLOW_WORDS)
    return DeliveryOptions(
        None if conflate_ms is UNSET else conflate_ms, None if slow is UNSET else slow
    )


def _parse_configure(fields: Fields, id_: Id) -> Configure:
    heartbeat_ms = fields.pop("heartbeat_ms", UNSET)
    shortest, longest = HEARTBEAT_MS_RANGE
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
    return round_conflate_ms(value)


def _take_slow(fields: Fields) -> SlowPolicy | UnsetType | None:
    """Take the `slow` policy; None selects each channel's default."""
    value = fields.pop("slow", UNSET)
    if value is UNSET or value is None:
        return None if value is None else UNSET
    try:
        return SlowPolicy(value)
    except ValueError:
        raise syntax(_SLOW_WORDS) from None


def parse_play(fields: Fields, id_: Id) -> PlayTape:
    """Parse a `replay` action; raises InvalidAction."""
    if id_ is None:
        raise syntax("a replay has an id, by which its ticks are known")
    tape = fields.pop("tape", None)
    if not isinstance(tape, str) or not 0 < len(tape) <= TAPE_NAME_MAX:
        raise syntax(f"tape is the name of a tape, of at most {TAPE_NAME_MAX} characters")
    speed = _take_speed(fields) if "speed" in fields else 1.0
    start, end = take_time(fields, "start"), take_time(fields, "end")
    if start is not None and end is not None and start > end:
        raise syntax("start is later than end")
    return PlayTape(id_, tape, take_channels(fields), speed, start, end)


def parse_steer(name: str, fields: Fields, id_: Id) -> SteerReplay:
    """Parse `replay.pause` and the other commands; raises InvalidAction."""
    try:
        verb = ReplayCommand(name)
    except ValueError:
        words = ", ".join(each.value for each in ReplayCommand)
        raise syntax(f"{show(name)} is none of {words}") from None
    if verb is ReplayCommand.STOP and id_ is None:
        raise syntax("replay.stop takes the id of a private replay")
    position = speed = None
    if verb is ReplayCommand.SEEK:
        position = take_time(fields, "position")
        if position is None:
            raise syntax("replay.seek takes a position: a time")
    elif verb is ReplayCommand.SPEED:
        speed = _take_speed(fields)
    refuse_unknown(fields)
    return SteerReplay(id_, verb, position, speed)


def _take_speed(fields: Fields) -> float:
    value = fields.pop("speed", None)
    try:
        # `parse_speed` accepts numbers as text from people. Clients must send numbers.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return parse_speed(value if is_number or value == "max" else None)
    except ValueError as error:
        raise syntax(f"speed: {error}") from None


_PARSERS: Final[dict[str, Callable[[Fields, Id], Action]]] = {
    "auth": _parse_auth,
    "subscribe": _parse_subscribe,
    "unsubscribe": _parse_unsubscribe,
    "list": _parse_list,
    "ping": _parse_ping,
    "configure": _parse_configure,
    "replay": parse_play,
}


# ---------------------------------------------------------------------------------- fields


def take_id(fields: Fields) -> Id:
    """Take the `id`; None if there is none."""
    if "id" not in fields:
        return None
    id_ = fields.pop("id")
    if isinstance(id_, str):
        if len(id_) <= ID_MAX:
            return id_
    elif is_integer(id_) and -(2**63) <= id_ < 2**64:
        return id_  # type: ignore[no-any-return]
    raise syntax(f"id is an integer of 64 bits or a string of at most {ID_MAX} characters")


def take_flag(fields: Fields, name: str) -> bool:
    """Take a boolean; False if the field is missing."""
    value = fields.pop(name, False)
    if not isinstance(value, bool):
        raise syntax(f"{name} is true or false")
    return value


def take_time(fields: Fields, name: str) -> Time | None:
    """Take a time; None if the field is missing or null."""
    value = fields.pop(name, None)
    if value is None:
        return None
    try:
        return Time.from_wire(value)
    except ValueError as error:
        raise syntax(f"{name} is an RFC 3339 time or whole nanoseconds: {error}") from None


def take_channels(fields: Fields) -> frozenset[Subscription]:
    """Take all remaining fields as channels with their symbols."""
    if not fields:
        raise syntax("name at least one channel: " + ", ".join(CHANNELS))
    found: set[Subscription] = set()
    for channel, patterns in fields.items():
        if channel in _ALPACA_CHANNELS:
            raise InvalidAction(Fault.INVALID_ACTION, f"no channel {channel}")
        if channel not in CHANNELS:
            raise syntax(f"unknown key {show(channel)}; channels are " + ", ".join(CHANNELS))
        if not isinstance(patterns, list):
            raise syntax(f"{channel} takes a list of symbols")
        for pattern in patterns:
            if not (isinstance(pattern, str) and is_pattern(pattern)):
                raise syntax(
                    f"{channel}: {show(pattern)} is no symbol: 1 to 32 characters of"
                    " A-Z a-z 0-9 . _ / : -, or * alone or at the end"
                )
            found.add(Subscription(channel, pattern))
    return frozenset(found)


def refuse_unknown(fields: Fields) -> None:
    """Check that no field is left."""
    for name in fields:
        raise syntax(f"unknown key {show(name)}")


def is_integer(value: object) -> bool:
    """Whether a value is an integer. Booleans are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def syntax(detail: str) -> InvalidAction:
    """Create the error for a malformed message."""
    return InvalidAction(Fault.INVALID_SYNTAX, detail)


def show(value: object) -> str:
    """Format a client's value so that it is safe to send back and to log: short and ASCII only."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "…")
    return f"a {type(value).__name__}"
