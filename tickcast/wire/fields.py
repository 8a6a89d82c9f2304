"""Take single fields from a client's message and validate them. No I/O.

The `take_` functions and `refuse_unknown` raise InvalidAction if the message is invalid.
"""

from __future__ import annotations

from typing import Any, Final

from tickcast.wire.errors import Fault, InvalidAction
from tickcast.wire.ticks import CHANNELS, Subscription, is_pattern
from tickcast.wire.times import Time

ID_MAX: Final = 64
"""The maximum length of a message's `id`, in characters."""

_ALPACA_CHANNELS: Final = frozenset(
    "updatedBars dailyBars statuses lulds news corrections cancelErrors orderbooks".split()
)
"""Channels of the protocol that ours is derived from. None of our feeds carries them."""

Fields = dict[str, Any]
"""A message. The functions below remove the fields that they take from it."""
Id = int | str | None


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
