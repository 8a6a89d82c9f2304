"""Parses the actions for replays; `tickcast.wire.actions` parses the others. No I/O."""

from __future__ import annotations

from enum import Enum
from typing import Final

from msgspec import Struct

from tickcast.wire.fields import Fields, Id, refuse_unknown, show, syntax, take_channels, take_time
from tickcast.wire.playback import read_speed
from tickcast.wire.ticks import Subscription
from tickcast.wire.times import Time

TAPE_NAME_MAX: Final = 64
"""Maximum length of a tape's name, in characters."""


class Verb(Enum):
    """The commands for a running replay."""

    PAUSE = "replay.pause"
    RESUME = "replay.resume"
    STOP = "replay.stop"
    SEEK = "replay.seek"
    SPEED = "replay.speed"


class Play(Struct, frozen=True):
    """A request to play a tape to the client.

    Attributes:
        id: the client's name for the replay.
        subscriptions: the streams of the tape to play.
        start, end: the part of the tape to play; None means its beginning, or its end.
        speed: multiple of the original speed; infinity means as fast as the client reads.
    """

    id: Id
    tape: str
    subscriptions: frozenset[Subscription]
    speed: float = 1.0
    start: Time | None = None
    end: Time | None = None


class Steer(Struct, frozen=True):
    """A request to steer a replay.

    Attributes:
        id: the client's private replay; None means the shared replay of the feed.
        position: where to continue, for `SEEK`.
        speed: the new speed, for `SPEED`.
    """

    id: Id
    verb: Verb
    position: Time | None = None
    speed: float | None = None


def parse_play(fields: Fields, id_: Id) -> Play:
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
    return Play(id_, tape, take_channels(fields), speed, start, end)


def parse_steer(name: str, fields: Fields, id_: Id) -> Steer:
    """Parse `replay.pause` and the other commands; raises InvalidAction."""
    try:
        verb = Verb(name)
    except ValueError:
        words = ", ".join(each.value for each in Verb)
        raise syntax(f"{show(name)} is none of {words}") from None
    if verb is Verb.STOP and id_ is None:
        raise syntax("replay.stop takes the id of a private replay")
    position = speed = None
    if verb is Verb.SEEK:
        position = take_time(fields, "position")
        if position is None:
            raise syntax("replay.seek takes a position: a time")
    elif verb is Verb.SPEED:
        speed = _take_speed(fields)
    refuse_unknown(fields)
    return Steer(id_, verb, position, speed)


def _take_speed(fields: Fields) -> float:
    value = fields.pop("speed", None)
    try:
        # `read_speed` accepts numbers as text from people. Clients must send numbers.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return read_speed(value if is_number or value == "max" else None)
    except ValueError as error:
        raise syntax(f"speed: {error}") from None
