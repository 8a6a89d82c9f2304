"""Points in time as whole nanoseconds, and their two wire formats."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from msgspec.msgpack import Ext

NS_PER_SECOND: Final = 1_000_000_000
_MIN_NS: Final = -(2**63)
_MAX_NS: Final = 2**63 - 1
_TIMESTAMP_EXT: Final = -1

Unit = Literal["s", "ms", "us", "ns"]
# Seconds since 1970 for which a number without a unit is accepted: the years 1991 to 2059. Within
# these years no number is a time in two units: the range of a unit ends at 4.3 times its start, and
# the next one starts at 1,000 times. Other common numbers lie outside all four ranges: dates
# (20240102, 202401020930, 20240102093000), seconds to nanoseconds after midnight, spreadsheet days,
# NTP seconds (those of 1990 would be in 2060) and .NET ticks of a tenth of a microsecond (those of
# 2100 would be in 1990). Only dates with an hour (2024010209) lie inside, as seconds of 2033 to
# 2036; they are refused.
_PLAUSIBLE_S: Final = (662_688_000, 2_840_140_800)
# For each unit: how many there are in a second, and how many fractional digits it allows.
_UNITS: Final[dict[Unit, tuple[int, int]]] = {
    "s": (1, 9), "ms": (10**3, 6), "us": (10**6, 3), "ns": (10**9, 0),
}  # fmt: skip

_ISO = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(Z|z|[+-]\d\d:?\d\d)?",
    re.ASCII,
)
_FRACTION = re.compile(r"\.(\d{1,9})Z\Z", re.ASCII)
_NUMBER = re.compile(r"(\d{1,40})(?:\.(\d{0,40}))?(?:[eE]([+-]?\d{1,2}))?", re.ASCII)
_CALENDAR = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])", re.ASCII)


class Time(int):
    """Nanoseconds since the Unix epoch, UTC, within the signed 64-bit range (1677 to 2262).

    This is a separate type so that encoders can tell times from other integers.

    >>> time = Time.parse("2013-09-03T13:00:00.000000001Z")
    >>> time, time.rfc3339()
    (1378213200000000001, '2013-09-03T13:00:00.000000001Z')
    >>> Time(time - time % NS_PER_SECOND).rfc3339()
    '2013-09-03T13:00:00Z'
    """

    __slots__ = ()

    @classmethod
    def now(cls) -> Time:
        """The current wall-clock time."""
        return cls(time.time_ns())

    @classmethod
    def parse(cls, text: str) -> Time:
        """Read an RFC 3339 date and time with up to nine fractional digits.

        A space in place of `T` is accepted (RFC 3339, section 5.6), and a missing offset means UTC.

        Raises:
            ValueError: the text is not such a time, or the time is outside the 64-bit range.
        """
        if (digits := _FRACTION.match(text, 19)) is not None:
            # The format in messages and tapes, where many consecutive times share a second.
            return cls._checked(_parse_second(text[:19]) + int(digits[1].ljust(9, "0")))
        return cls._checked(_parse_ns(text))

    @classmethod
    def _checked(cls, ns: int) -> Time:
        if not _MIN_NS <= ns <= _MAX_NS:
            raise ValueError("time outside the years 1677 to 2262")
        return cls(ns)

    @classmethod
    def from_wire(cls, value: object) -> Time:
        """Read a time in any form that messages use.

        The forms are an RFC 3339 string, whole nanoseconds, and a MessagePack timestamp as the
        `msgpack` library returns it.

        Raises:
            ValueError: the value is none of these, or the time is outside the 64-bit range.

        >>> Time.from_wire(1_500_000_000).rfc3339()
        '1970-01-01T00:00:01.5Z'
        >>> Time.from_wire(datetime(2013, 9, 3, 13, tzinfo=UTC)).rfc3339()
        '2013-09-03T13:00:00Z'
        """
        if type(value) is int and _MIN_NS <= value <= _MAX_NS:
            # First and inline, because every tick from the store gets here.
            return cls(value)
        if isinstance(value, Time):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return cls._checked(value)
        if isinstance(value, datetime) and value.tzinfo is not None:
            # msgspec decodes MessagePack timestamps as datetimes.
            since = value - datetime(1970, 1, 1, tzinfo=UTC)
            whole = since.days * 86_400 + since.seconds
            # pandas' timestamps are datetimes, with nanoseconds in addition.
            ns = since.microseconds * 1000 + getattr(value, "nanosecond", 0)
            return cls._checked(whole * NS_PER_SECOND + ns)
        to_ns = getattr(value, "to_unix_nano", None)
        if to_ns is not None:
            return cls._checked(int(to_ns()))
        raise ValueError("a time is an RFC 3339 string or whole nanoseconds")

    @classmethod
    def from_number(cls, text: str, unit: Unit | None = None, *, any_year: bool = False) -> Time:
        """Read a number of units since the Unix epoch without losing digits.

        Without a unit, the number must be a time of the years 1991 to 2059 in exactly one unit.

        Args:
            text: for example `1704205800`, `1704205800123.5` or `1.704205800123e+12`.
            unit: the unit of the number, if it is known.
            any_year: accept times of any year in this unit.

        Raises:
            ValueError: it is not a number, is finer than a nanosecond, or is not a plausible time;
                the message says what it looks like.

        >>> [Time.from_number(text).rfc3339() for text in ("1704205800", "1704205800000000001")]
        ['2024-01-02T14:30:00Z', '2024-01-02T14:30:00.000000001Z']
        """
        number = _NUMBER.fullmatch(text)
        if number is None:
            raise ValueError(f"{text[:40]!a} is not a number")
        if number[3]:
            number = _NUMBER.fullmatch(f"{Decimal(text):f}")
            if number is None:
                raise ValueError(f"{text[:40]} is not a time since 1970")
        whole = int(number[1])
        first_s, end_s = _PLAUSIBLE_S
        for each in _UNITS if unit is None else (unit,):
            per_s, digits = _UNITS[each]
            if any_year or first_s * per_s <= whole < end_s * per_s:
                if each == "s" and unit is None and _date_format(number[1]) is not None:
                    break
                fraction = (number[2] or "").rstrip("0")
                if len(fraction) > digits:
                    raise ValueError(f"finer than a nanosecond: {text[:40]!r}")
                ns = whole * (NS_PER_SECOND // per_s)
                return cls._checked(ns + int(fraction.ljust(digits, "0") or 0))
        raise ValueError(f"{text[:40]} is not a time: {_describe_number(number[1], unit)}")

    def rfc3339(self) -> str:
        """Format this time in UTC, ending in `Z`, with only as many fractional digits as needed."""
        seconds, ns = divmod(int(self), NS_PER_SECOND)
        whole = _format_seconds(seconds)
        if not ns:
            return whole + "Z"
        return f"{whole}.{ns:09d}".rstrip("0") + "Z"

    def msgpack_ext(self) -> Ext:
        """Encode this time as a MessagePack timestamp, in the shortest of its three forms.

        Source: the MessagePack specification, "Timestamp extension type".
        """
        seconds, ns = divmod(int(self), NS_PER_SECOND)
        if seconds < 0 or seconds >> 34:
            data = ns.to_bytes(4, "big") + seconds.to_bytes(8, "big", signed=True)
        elif ns or seconds >> 32:
            data = (ns << 34 | seconds).to_bytes(8, "big")
        else:
            data = seconds.to_bytes(4, "big")
        return Ext(_TIMESTAMP_EXT, data)


def _date_format(digits: str) -> str | None:
    """The format in which a number may be a date; None if it can't be one."""
    if len(digits) not in (8, 10, 12, 14, 17, 20, 23) or not _CALENDAR.match(digits):
        return None
    clock = digits[8:14]
    if clock[:2] >= "24" or clock[2:4] >= "60" or clock[4:6] >= "61":
        return None
    return "YYYYMMDDHHMMSS"[: len(digits)] + "f" * (len(digits) - 14)


def _describe_number(digits: str, unit: Unit | None) -> str:
    """Describe what a number that is not a plausible time looks like."""
    if (date_format := _date_format(digits)) is not None:
        return f"it looks like a date, {date_format}"
    if int(digits) < 100_000:
        return "it looks like seconds after midnight or a spreadsheet's day, without a date"
    units = "seconds, milliseconds, microseconds or nanoseconds" if unit is None else unit
    return f"in {units} since 1970 it is not in the years 1991 to 2059"


def _parse_ns(text: str) -> int:
    """Parse to nanoseconds since the Unix epoch, without a range check; raises ValueError."""
    match = _ISO.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text[:40]!r}")
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    try:
        midnight = _days_since_epoch(year, month, day) * 86_400
    except ValueError as error:
        raise ValueError(f"not an RFC 3339 time: {text[:40]!r}: {error}") from None
    if hour > 23 or minute > 59 or second > 60:
        raise ValueError(f"not an RFC 3339 time: {text[:40]!r}: no such time of day")
    seconds = midnight + hour * 3600 + minute * 60 + second - _offset_seconds(match[8])
    fraction = int(match[7].ljust(9, "0")) if match[7] else 0
    return seconds * NS_PER_SECOND + fraction


@lru_cache(maxsize=64)
def _parse_second(text: str) -> int:
    return _parse_ns(text)


@lru_cache(maxsize=1024)
def _days_since_epoch(year: int, month: int, day: int) -> int:
    return (datetime(year, month, day) - datetime(1970, 1, 1)).days


@lru_cache(maxsize=1024)
def _format_seconds(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _offset_seconds(offset: str | None) -> int:
    if offset is None or offset in "Zz":
        return 0
    hours, minutes = int(offset[1:3]), int(offset[-2:])
    if hours > 23 or minutes > 59:
        raise ValueError(f"no such offset from UTC: {offset}")
    return (hours * 3600 + minutes * 60) * (-1 if offset[0] == "-" else 1)


class Instant(NamedTuple):
    """The current time on two clocks."""

    # For measuring: seconds since a fixed point, which never go back.
    monotonic_s: float
    # For people and other machines.
    wall: Time

    @classmethod
    def now(cls) -> Instant:
        """This moment."""
        return cls(time.monotonic(), Time.now())

    @property
    def wall_us(self) -> int:
        """Microseconds since the Unix epoch."""
        return self.wall // 1000
