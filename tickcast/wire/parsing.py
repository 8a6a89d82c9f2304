"""Parse client messages into actions. This is the only module that does; see `docs/protocol.md`.

The `_pop` functions remove a field from the message and validate it. They raise InvalidAction, as
everything here does. The fields that are left over are errors, so that misspelled options are
noticed.
"""

from __future__ import annotations

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
    Publish,
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

# The shortest and the longest interval between heartbeats.
HEARTBEAT_MS_RANGE: Final = (100, 60_000)
# Maximum lengths in characters.
TAPE_NAME_MAX: Final = 64
ID_MAX: Final = 64

# Channels of Alpaca's protocol, from which ours is derived, that none of our feeds carries.
_ALPACA_CHANNELS: Final = frozenset(
    "updatedBars dailyBars statuses lulds news corrections cancelErrors orderbooks".split()
)
_SLOW_VALUES: Final = 'slow is "conflate", "skip" or "close"'

_Fields = dict[str, Any]

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
        return _pop_id({"id": id_}) if id_ is not None else None
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
    # Parsed first, so that all later errors can carry it.
    id_ = _pop_id(fields)
    if entries_max is not None and (count := _count_entries(fields)) > 2 * entries_max:
        detail = f"{count} symbols and wildcards, at most {entries_max} are allowed"
        raise InvalidAction(Fault.SYMBOL_LIMIT, detail, id_)
    try:
        action = _parse_fields(fields, id_, message)
        _reject_unknown(fields)
    except InvalidAction as error:
        error.id = id_
        raise
    return action


def _decode_map(message: str | bytes) -> _Fields:
    decoder = _JSON_MAP if isinstance(message, str) else _MSGPACK_MAP
    try:
        return decoder.decode(message)  # type: ignore[arg-type]
    except RecursionError:
        # msgspec's decoders recurse. A few kilobytes of brackets are enough for this.
        raise _syntax_error("nested too deeply") from None
    except msgspec.ValidationError:
        raise _syntax_error("a message is one map with text keys") from None
    except (msgspec.MsgspecError, ValueError, OverflowError):
        kind = "JSON" if isinstance(message, str) else "MessagePack"
        raise _syntax_error(f"not {kind}") from None


def _count_entries(fields: _Fields) -> int:
    # Nothing has been validated yet.
    lists = [fields[channel] for channel in CHANNELS if channel in fields]
    return sum(len(each) for each in lists if isinstance(each, list))


# -- actions


def _parse_fields(fields: _Fields, id_: Id, message: str | bytes) -> Action:  # noqa: PLR0911
    match fields.pop("action", None):
        case "auth":
            return _parse_auth(fields, id_)
        case "subscribe":
            return _parse_subscribe(fields, id_)
        case "unsubscribe":
            return Unsubscribe(_pop_channels(fields), id_)
        case "list":
            return ListSubscriptions(id_)
        case "ping":
            return Ping(id_)
        case "configure":
            return _parse_configure(fields, id_)
        case "publish":
            if not isinstance(fields.pop("ticks", None), list):
                raise _syntax_error("publish takes ticks: a list")
            return Publish(message, id_)
        case "replay":
            return _parse_play(fields, id_)
        case str(name) if name.startswith("replay."):
            return _parse_steer(name, fields, id_)
        case str(name):
            raise _syntax_error(f"unknown action {_printable(name)}")
    raise _syntax_error(
        "a message names its action: auth, subscribe, unsubscribe, list, ping, configure,"
        " publish or replay"
    )


def _parse_auth(fields: _Fields, id_: Id) -> Auth:
    given = {name: fields.pop(name) for name in ("key", "secret", "token") if name in fields}
    _reject_unknown(fields)
    if not all(isinstance(value, str) for value in given.values()):
        raise _syntax_error("key, secret and token are strings")
    if set(given) == {"key", "secret"}:
        return Auth(KeyAndSecret(**given), id_)
    if set(given) == {"token"}:
        return Auth(BearerToken(given["token"]), id_)
    raise _syntax_error("auth takes a key and a secret, or a token")


def _parse_subscribe(fields: _Fields, id_: Id) -> Subscribe:
    conflate_ms = _pop_conflate_ms(fields)
    slow = _pop_slow(fields)
    if slow is None:
        # Only `configure` accepts null: it returns to the defaults.
        raise _syntax_error(_SLOW_VALUES)
    options = DeliveryOptions(
        None if conflate_ms is UNSET else conflate_ms, None if slow is UNSET else slow
    )
    snapshot, positions = _pop_flag(fields, "snapshot"), _pop_flag(fields, "positions")
    start = _pop_time(fields, "start")
    if snapshot and start is not None:
        raise _syntax_error(
            "snapshot and start exclude each other: the past comes before the latest tick"
        )
    resume = fields.pop("resume", None)
    subscriptions = _pop_channels(fields)
    known = NO_POSITIONS if resume is None else parse_positions(resume, subscriptions)
    return Subscribe(subscriptions, id_, options, known, start, snapshot, positions)


def _parse_configure(fields: _Fields, id_: Id) -> Configure:
    heartbeat_ms = fields.pop("heartbeat_ms", UNSET)
    shortest, longest = HEARTBEAT_MS_RANGE
    if heartbeat_ms is not UNSET and not (
        _is_integer(heartbeat_ms) and (heartbeat_ms == 0 or shortest <= heartbeat_ms <= longest)
    ):
        raise _syntax_error(
            f"heartbeat_ms is an integer from {shortest} to {longest}, or 0 for none"
        )
    return Configure(
        id_,
        heartbeat_ms,
        stamps=_pop_flag(fields, "stamps") if "stamps" in fields else UNSET,
        replay=_pop_flag(fields, "replay") if "replay" in fields else UNSET,
        slow=_pop_slow(fields),
        conflate_ms=_pop_conflate_ms(fields),
    )


def _parse_play(fields: _Fields, id_: Id) -> PlayTape:
    if id_ is None:
        raise _syntax_error("a replay has an id, by which its ticks are known")
    tape = fields.pop("tape", None)
    if not isinstance(tape, str) or not 0 < len(tape) <= TAPE_NAME_MAX:
        raise _syntax_error(f"tape is the name of a tape, of at most {TAPE_NAME_MAX} characters")
    speed = _pop_speed(fields) if "speed" in fields else 1.0
    start, end = _pop_time(fields, "start"), _pop_time(fields, "end")
    if start is not None and end is not None and start > end:
        raise _syntax_error("start is later than end")
    return PlayTape(id_, tape, _pop_channels(fields), speed, start, end)


def _parse_steer(name: str, fields: _Fields, id_: Id) -> SteerReplay:
    try:
        command = ReplayCommand(name)
    except ValueError:
        known = ", ".join(each.value for each in ReplayCommand)
        raise _syntax_error(f"{_printable(name)} is none of {known}") from None
    if command is ReplayCommand.STOP and id_ is None:
        raise _syntax_error("replay.stop takes the id of a private replay")
    position = speed = None
    if command is ReplayCommand.SEEK:
        position = _pop_time(fields, "position")
        if position is None:
            raise _syntax_error("replay.seek takes a position: a time")
    elif command is ReplayCommand.SPEED:
        speed = _pop_speed(fields)
    return SteerReplay(id_, command, position, speed)


# -- fields


def _pop_id(fields: _Fields) -> Id:
    if "id" not in fields:
        return None
    id_ = fields.pop("id")
    if isinstance(id_, str):
        if len(id_) <= ID_MAX:
            return id_
    elif _is_integer(id_) and -(2**63) <= id_ < 2**64:
        return id_  # type: ignore[no-any-return]
    raise _syntax_error(f"id is an integer of 64 bits or a string of at most {ID_MAX} characters")


def _pop_channels(fields: _Fields) -> frozenset[Subscription]:
    """Take all remaining fields as channels with their symbols."""
    if not fields:
        raise _syntax_error("name at least one channel: " + ", ".join(CHANNELS))
    found: set[Subscription] = set()
    for channel, patterns in fields.items():
        if channel in _ALPACA_CHANNELS:
            # Valid in Alpaca's protocol, so this is not a syntax error.
            raise InvalidAction(Fault.INVALID_ACTION, f"no channel {channel}")
        if channel not in CHANNELS:
            raise _syntax_error(
                f"unknown key {_printable(channel)}; channels are " + ", ".join(CHANNELS)
            )
        if not isinstance(patterns, list):
            raise _syntax_error(f"{channel} takes a list of symbols")
        for pattern in patterns:
            if not (isinstance(pattern, str) and is_pattern(pattern)):
                raise _syntax_error(
                    f"{channel}: {_printable(pattern)} is not a symbol: 1 to 32 characters of"
                    " A-Z a-z 0-9 . _ / : -, or * alone or at the end"
                )
            found.add(Subscription(channel, pattern))
    fields.clear()
    return frozenset(found)


def _pop_conflate_ms(fields: _Fields) -> int | UnsetType:
    if "conflate_ms" not in fields:
        return UNSET
    value = fields.pop("conflate_ms")
    if not (_is_integer(value) and value >= 0):
        raise _syntax_error("conflate_ms is an integer of at least 0")
    return round_conflate_ms(value)


def _pop_slow(fields: _Fields) -> SlowPolicy | UnsetType | None:
    value = fields.pop("slow", UNSET)
    if value is UNSET or value is None:
        return None if value is None else UNSET
    try:
        return SlowPolicy(value)
    except ValueError:
        raise _syntax_error(_SLOW_VALUES) from None


def _pop_speed(fields: _Fields) -> float:
    value = fields.pop("speed", None)
    try:
        # `parse_speed` accepts numbers as text from people. Clients must send numbers.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return parse_speed(value if is_number or value == "max" else None)
    except ValueError as error:
        raise _syntax_error(f"speed: {error}") from None


def _pop_flag(fields: _Fields, name: str) -> bool:
    value = fields.pop(name, False)
    if not isinstance(value, bool):
        raise _syntax_error(f"{name} is true or false")
    return value


def _pop_time(fields: _Fields, name: str) -> Time | None:
    value = fields.pop(name, None)
    if value is None:
        return None
    try:
        return Time.from_wire(value)
    except ValueError as error:
        raise _syntax_error(f"{name} is an RFC 3339 time or whole nanoseconds: {error}") from None


def _reject_unknown(fields: _Fields) -> None:
    for name in fields:
        raise _syntax_error(f"unknown key {_printable(name)}")


def _is_integer(value: object) -> bool:
    # In Python, a boolean is an integer.
    return isinstance(value, int) and not isinstance(value, bool)


def _syntax_error(detail: str) -> InvalidAction:
    return InvalidAction(Fault.INVALID_SYNTAX, detail)


def _printable(value: object) -> str:
    """Format a client's value so that it is safe to send back and to log: short and ASCII only."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "…")
    return f"a {type(value).__name__}"
