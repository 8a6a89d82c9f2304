"""What clients may say of replays; `feed.actions` reads the rest. No I/O."""

from __future__ import annotations

from enum import Enum
from typing import Final

from msgspec import Struct

from feed.fields import Fields, Id, refuse_unknown, show, syntax, take_channels, take_time
from feed.playback import read_speed
from feed.ticks import Subscription
from feed.times import Time

TAPE_NAME_MAX: Final = 64
"""Longest name of a tape, in characters."""


class Verb(Enum):
    """What can be done to a replay that plays."""

    PAUSE = "replay.pause"
    RESUME = "replay.resume"
    STOP = "replay.stop"
    SEEK = "replay.seek"
    SPEED = "replay.speed"


class Play(Struct, frozen=True):
    """The client wants a tape played to it.

    Attributes:
        id: what it calls the replay.
        subscriptions: which streams of the tape.
        start, end: what of it; None is from its beginning, or to its end.
        speed: how many times as fast as it happened; infinity is as fast as the client reads.
    """

    id: Id
    tape: str
    subscriptions: frozenset[Subscription]
    speed: float = 1.0
    start: Time | None = None
    end: Time | None = None


class Steer(Struct, frozen=True):
    """The client wants a replay to go on otherwise.

    Attributes:
        id: of its private replay; None means the one that plays into the feed, for all.
        position: where to go on, with `SEEK`.
        speed: how fast, with `SPEED`.
    """

    id: Id
    verb: Verb
    position: Time | None = None
    speed: float | None = None


def parse_play(fields: Fields, id_: Id) -> Play:
    """Read `replay`; raises InvalidAction."""
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
    """Read `replay.pause` and the like; raises InvalidAction."""
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
        # People may write numbers as text, and clients not.
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return read_speed(value if is_number or value == "max" else None)
    except ValueError as error:
        raise syntax(f"speed: {error}") from None
