"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

import click

from tickcast.wire.errors import InvalidSettings
from tickcast.wire.playback import parse_speed, resolve_time
from tickcast.wire.ticks import CHANNELS, DEFAULT_FEED, is_feed_name
from tickcast.wire.times import Time

T = TypeVar("T")

_DURATION_UNITS: Final = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_LIFETIME_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION_MAX_S: Final = 7 * 86_400


class ValueType(click.ParamType[T]):
    """The type of an option's value, made from a function that parses it.

    Args:
        name: what `--help` shows in place of the value.
        parse: raises ValueError with the rest of a sentence that begins with the value.
    """

    def __init__(self, name: str, parse: Callable[[str], T]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> T:
        try:
            return self._parse(str(value))
        except ValueError as error:
            self.fail(f"{value!a} {error}", param, ctx)


def parse_duration(text: str) -> float:
    """Parse a duration and return it in seconds.

    >>> [parse_duration(text) for text in ("500ms", "30", "2m", "1.5h")]
    [0.5, 30.0, 120.0, 5400.0]
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h|)", text)
    if match is None or float(match[1]) * _DURATION_UNITS[match[2]] > _DURATION_MAX_S:
        raise ValueError("is not a duration such as 30s, 500ms or 2m")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def _parse_lifetime(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if match is None or not int(match[1]):
        raise ValueError("is not a duration such as 90d, 12h, 30m or 45s")
    return timedelta(seconds=int(match[1]) * _LIFETIME_UNITS[match[2]])


def _parse_rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError("is not a number above 0")
    return rate


def _parse_share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise ValueError("is not a share from 0% to 100%")
    return share


def _parse_speed(text: str) -> float:
    try:
        return parse_speed(text)
    except ValueError as error:
        raise ValueError(f"is not a valid speed: {error}") from None


def _parse_position(text: str) -> str:
    try:
        resolve_time(text, Time(0))
    except ValueError as error:
        raise ValueError(f"is not a valid position: {error}") from None
    return text


DURATION: Final = ValueType("time", parse_duration)
LIFETIME: Final = ValueType("time", _parse_lifetime)
RATE: Final = ValueType("ticks", _parse_rate)
RATE_PER_SECOND: Final = ValueType("n/s", lambda text: _parse_rate(text.removesuffix("/s")))
SHARE: Final = ValueType("share", _parse_share)
SPEED: Final = ValueType("speed", _parse_speed)
POSITION: Final = ValueType("time", _parse_position)
"""A position in a recording, for `time_of`: a time, or an offset from its beginning or its end."""


def time_of(position: str | None, first: Time, last: Time) -> Time | None:
    """Return the time of a `POSITION` in a recording with the given first and last time.

    Raises ValueError if the time is outside the 64-bit range.
    """
    if position is None:
        return None
    return resolve_time(position, last if position.startswith("-") else first)


def check_feed(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Check the name of a feed, and return it unchanged."""
    if not is_feed_name(value):
        raise click.BadParameter(f"{value!a} is not 1 to 32 characters of a-z 0-9 _ -")
    return value


def check_channel(name: str, option: str) -> None:
    """Raise InvalidSettings if there is no such channel."""
    if name not in CHANNELS:
        raise InvalidSettings(f"{option}: {name!a} is none of {', '.join(CHANNELS)}")


redis_option: Final = click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    help="redis://, rediss:// or unix://; default: the embedded store.",
)
config_option: Final = click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file of settings; the environment and options win over it.",
)
feed_option: Final = click.option(
    "--feed",
    default=DEFAULT_FEED,
    show_default=True,
    callback=check_feed,
    help="Feed to publish into; /stream serves `live`, /v2/NAME any.",
)
