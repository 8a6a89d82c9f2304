"""Types of option values."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Final

import click

from tickcast.wire.playback import parse_speed, resolve_time
from tickcast.wire.times import Time


class RateParameter(click.ParamType[float]):
    """Ticks per second: a finite number above 0."""

    name = "ticks"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            rate = float(str(value))
        except ValueError:
            rate = 0.0
        if not 0 < rate < math.inf:
            self.fail(f"{value!a} is not a number above 0", param, ctx)
        return rate


class DurationParameter(click.ParamType[float]):
    """A duration: 30s, 2m, 500ms, 1h; a number without a unit is in seconds."""

    name = "time"
    _UNITS: Final = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h|)", str(value))
        if match is None or float(match[1]) * self._UNITS[match[2]] > 7 * 86_400:
            self.fail(f"{value!a} is no time such as 30s, 500ms or 2m", param, ctx)
        return float(match[1]) * self._UNITS[match[2]]


class SpanParameter(click.ParamType[timedelta]):
    """A longer duration: 90d, 12h, 30m, 45s."""

    name = "time"
    _UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        match = re.fullmatch(r"(\d{1,6})([smhd])", str(value))
        if match is None or not int(match[1]):
            self.fail(f"{value!a} is no time such as 90d, 12h, 30m or 45s", param, ctx)
        return timedelta(seconds=int(match[1]) * self._UNITS[match[2]])


class PerSecondParameter(RateParameter):
    """A rate per second: 100/s, or just the number."""

    name = "n/s"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        return super().convert(str(value).removesuffix("/s"), param, ctx)


class ShareParameter(click.ParamType[float]):
    """A fraction: 5%, or 0.05."""

    name = "share"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = math.nan
        if not 0 <= share <= 1:
            self.fail(f"{value!a} is no share from 0% to 100%", param, ctx)
        return share


class SpeedParameter(click.ParamType[float]):
    """The speed relative to the original, or `max`."""

    name = "speed"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            return parse_speed(value)
        except ValueError as error:
            self.fail(f"{value!a}: {error}", param, ctx)


class RecordingPoint(click.ParamType[str]):
    """A position in a recording: a time, or an offset from its beginning or its end."""

    name = "time"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        try:
            resolve_time(value, Time(0))
        except ValueError as error:
            self.fail(f"{value!a}: {error}", param, ctx)
        return str(value)


def placed(text: str | None, first: Time, last: Time) -> Time | None:
    """Return the time of a `RecordingPoint` in a recording with the given first and last time.

    Raises:
        ValueError: the time is outside the 64-bit range.
    """
    return None if text is None else resolve_time(text, last if text.startswith("-") else first)
