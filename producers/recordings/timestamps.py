"""Parse times as recordings write them: dates and times of day in several forms, or numbers.

`parse_time` parses times whose form is unambiguous. For other recordings, pass the format, the unit
or the time zone to a `TimeReader`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, NamedTuple, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from tickcast.wire.times import NS_PER_SECOND, Time, Unit

_DATE_TIME: Final = re.compile(
    r"(?:(\d{4})([-/.])(\d{1,2})\2(\d{1,2})|(\d{4})(\d\d)(\d\d))"
    r"(?:[TtDd_-]|\s+)"
    r"(?:(\d{1,2}):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?"
    # Without colons, require all six digits: fewer may be seconds after midnight.
    r"|(\d\d)(\d\d)(\d\d)(?:[.,](\d{1,9})|(\d{3}|\d{6}|\d{9}))?)"
    r"\s*(?:(Z|z|UTC|GMT)|(?:UTC|GMT)?([+-]\d\d(?::?\d\d)?)(?:\s+UTC)?)?",
    re.ASCII,
)
_DATE: Final = re.compile(r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2})", re.ASCII)
_DATE_AND_NUMBER: Final = re.compile(r"\d{4}\D?\d\d\D?\d\d\s+\d+(?:\.\d*)?", re.ASCII)
_CLOCK: Final = re.compile(r"\d{1,2}:\d\d(:\d\d)?([.,]\d*)?", re.ASCII)
_AMBIGUOUS_DATE: Final = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4}|\d\d)\b", re.ASCII)
_ZONE_NAME: Final = re.compile(r".*\d\s*\[?([A-Za-z]{3,}(?:/[A-Za-z_]+)?)\]?", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9.]+(?:[eE][+-]?\d+)?", re.ASCII)
_END_NS: Final = 2**63
# Consecutive ticks often have the same time, or at least the same second.
_CACHED_TIMES: Final = 64

_MONTHS: Final = "jan feb mar apr may jun jul aug sep oct nov dec".split()
_DIRECTIVES: Final = {
    "Y": r"(?P<Y>\d{4})", "y": r"(?P<y>\d\d)", "m": r"(?P<m>\d{1,2})", "d": r"(?P<d>\d{1,2})",
    "b": r"(?P<b>[A-Za-z]{3})", "B": r"(?P<b>[A-Za-z]{3,9})", "a": r"[A-Za-z]{3}",
    "A": r"[A-Za-z]{6,9}", "H": r"(?P<H>\d{1,2})", "I": r"(?P<I>\d{1,2})", "M": r"(?P<M>\d\d)",
    "S": r"(?P<S>\d\d)", "f": r"(?P<f>\d{1,9})", "p": r"(?P<p>[AaPp])\.?[Mm]\.?",
    "z": r"(?:(?:UTC|GMT)(?=[+-]))?(?P<z>Z|z|UTC|GMT|[+-]\d\d(?::?\d\d)?)", "%": "%",
}  # fmt: skip


class _Parts(NamedTuple):
    year: int
    month: int
    day: int
    hour: int
    minute: int
    second: int
    # The digits of a fraction of a second.
    fraction: str
    offset: str | None

    @classmethod
    def of_date_time(cls, match: re.Match[str]) -> _Parts:
        """Return the parts of a match of `_DATE_TIME`."""
        (y, _, m, d, y2, m2, d2, hour, minute, second, fraction, hour2, minute2, second2,
         fraction2, fraction3, utc, offset) = match.groups()  # fmt: skip
        return cls(
            int(y or y2), int(m or m2), int(d or d2), int(hour or hour2), int(minute or minute2),
            int(second or second2 or 0), fraction or fraction2 or fraction3 or "", utc or offset,
        )  # fmt: skip

    @classmethod
    def of_directives(cls, match: re.Match[str]) -> _Parts:
        """Return the parts of a match of a pattern that `_compile` made."""
        given = {name: text for name, text in match.groupdict().items() if text is not None}
        if "y" in given:
            year = int(given["y"]) + (1900 if int(given["y"]) > 68 else 2000)
        else:
            year = int(given["Y"])
        month = given.get("m", "")
        if "b" in given:
            name = given["b"][:3].lower()
            if name not in _MONTHS:
                raise ValueError(f"{given['b']} is not a month")
            month = str(_MONTHS.index(name) + 1)
        hour = int(given.get("H", 0))
        if "I" in given:
            if not 1 <= int(given["I"]) <= 12:
                raise ValueError(f"{given['I']} is not an hour from 1 to 12")
            hour = int(given["I"]) % 12 + 12 * (given["p"] in "pP")
        return cls(
            year, int(month), int(given["d"]), hour, int(given.get("M", 0)),
            int(given.get("S", 0)), given.get("f", ""), given.get("z"),
        )  # fmt: skip


class TimeReader:
    """Parses times that all have the same form.

    Args:
        format: as for `time.strptime` (`%d.%m.%Y %H:%M:%S.%f`, where `%f` is one to nine digits),
            or the unit of a number: `s`, `ms`, `us`, `ns`. The default is the forms of
            `parse_time`.
        zone: the zone of times without an offset from UTC, such as `America/New_York`. The default
            is UTC. If a clock shows an hour twice, times in it refer to the first one.

    Raises:
        ValueError: the format or the zone is invalid.
    """

    def __init__(self, format: str | None = None, zone: str | None = None) -> None:
        self._format = format
        self._unit: Unit | None = next((unit for unit in get_args(Unit) if unit == format), None)
        self._pattern = None if format is None or self._unit else _compile(format)
        self.zone = None if zone is None else _find_zone(zone)
        self._parse_whole_second = lru_cache(maxsize=_CACHED_TIMES)(self._parse_second)
        # Returns the time that a text stands for. Raises ValueError with the reason.
        self.parse = lru_cache(maxsize=_CACHED_TIMES)(self._parse)

    def _parse(self, text: str) -> Time:
        text = text.strip()
        if self._pattern is not None:
            match = self._pattern.fullmatch(text)
            if match is None:
                raise ValueError(f"{text[:40]!a} is not a time of the form {self._format}")
            return self._build(text, _Parts.of_directives(match))
        # Parse the whole second, which is often that of the time before, and add the fraction.
        whole, _, fraction = text.rpartition(".")
        if ":" in whole and len(fraction) <= 10 and fraction.isascii():
            if fraction[-1:] == "Z":
                whole, fraction = whole + "Z", fraction[:-1]
            if fraction.isdigit() and len(fraction) <= 9:
                try:
                    ns = self._parse_whole_second(whole) + int(fraction.ljust(9, "0"))
                except ValueError:
                    return self._parse_other(text)
                return Time(ns) if ns < _END_NS else Time.from_wire(ns)
        return self._parse_other(text)

    def _parse_second(self, text: str) -> int:
        if self.zone is None and self._unit is None and text[4:5] == "-":
            with suppress(ValueError):
                return Time.parse(text)  # The most common form, and faster to parse.
        return self._parse_other(text)

    def _parse_other(self, text: str) -> Time:
        if self._unit is not None:
            return Time.from_number(text, self._unit, any_year=True)
        match = _DATE_TIME.fullmatch(text)
        if match is not None:
            return self._build(text, _Parts.of_date_time(match))
        if _NUMBER.fullmatch(text):
            return _parse_number(text)
        raise ValueError(_describe(text) if text else "the time is missing")

    def _build(self, text: str, parts: _Parts) -> Time:
        year, month, day, hour, minute, second, fraction, offset = parts
        zone = self.zone if offset is None else None
        try:
            # `datetime` has no leap seconds. Treat one as the following second.
            at = datetime(year, month, day, hour, minute, min(second, 59), tzinfo=zone or UTC)
        except ValueError as error:
            raise ValueError(f"{text[:40]!a} is not a time: {error}") from None
        if second > 60:
            raise ValueError(f"{text[:40]!a} is not a time: second must be in 0..60")
        if zone is not None:
            utc = at.astimezone(UTC)
            if utc.astimezone(zone).replace(tzinfo=None) != at.replace(tzinfo=None):
                raise ValueError(f"{text[:40]!a} is not a time: clocks in {zone.key} leave it out")
            at = utc
        since = at - datetime(1970, 1, 1, tzinfo=UTC)
        seconds = since.days * 86_400 + since.seconds + (second == 60) - _offset_s(offset)
        return Time.from_wire(seconds * NS_PER_SECOND + int(fraction.ljust(9, "0")))


def _parse_number(text: str) -> Time:
    try:
        return Time.from_number(text)
    except ValueError as error:
        message = str(error)
    if (index := message.find("YYYYMMDD")) >= 0:
        parts = message[index:].replace("YYYY", "%Y").replace("MM", "%m", 1).replace("DD", "%d")
        parts = parts.replace("HH", "%H").replace("MM", "%M").replace("SS", "%S")
        message += f"; if so, use --time-format {re.sub('f+', '%f', parts)}"
    raise ValueError(message)


def _describe(text: str) -> str:
    """Describe why a text is not a time, and what may help."""
    shown = f"{text[:40]!a}"
    if _DATE.fullmatch(text):
        sep = text[4]
        return (
            f"{shown} has no time of day; --columns clock=NAME names its column,"
            f" --time-format %Y{sep}%m{sep}%d makes it midnight"
        )
    if _CLOCK.fullmatch(text):
        return f"{shown} has no date; --columns time=DATE,clock=TIME names two columns"
    if _DATE_AND_NUMBER.fullmatch(text):
        return (
            f"{shown} has a time of day that is only a number; --time-format '%Y%m%d %H%M%S' reads"
            " it as hours, minutes and seconds, --columns time=NAME,clock=- reads one column alone"
        )
    if (date := _AMBIGUOUS_DATE.match(text)) is not None:
        return f"{shown} is ambiguous; use --time-format " + _suggest_formats(text, date)
    if (zone := _ZONE_NAME.fullmatch(text)) is not None and zone[1].lower() not in ("am", "pm"):
        return f"{shown}: {zone[1]} is not an offset from UTC; leave it out and use --time-zone"
    return (
        f"{shown} is not a time such as 2024-01-02T14:30:00.123Z or a number since 1970;"
        " --time-format says how it is written"
    )


def _suggest_formats(text: str, date: re.Match[str]) -> str:
    sep, year = date[2], "%Y" if len(date[4]) == 4 else "%y"
    dates = [f"%d{sep}%m{sep}{year}", f"%m{sep}%d{sep}{year}"]
    if int(date[1]) > 12 or sep == ".":
        dates.pop()
    elif int(date[3]) > 12:
        del dates[0]
    clock = text[date.end() :]
    is_12_hours = text[-1:] in "mM"
    rest = " %I:%M" if is_12_hours else " %H:%M"
    rest += ":%S" * (clock.count(":") > 1) + ".%f" * ("." in clock) + " %p" * is_12_hours
    return " or ".join(f"'{each}{rest if clock else ''}'" for each in dates)


def _find_zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(
            f"{name[:40]!a} is not a time zone such as America/New_York that this system knows;"
            " pip install tzdata brings them all"
        ) from None


def _compile(format: str) -> re.Pattern[str]:
    """Convert a format to a regular expression."""
    expanded = format.replace("%T", "%H:%M:%S").replace("%F", "%Y-%m-%d")
    pattern, names = "", set[str]()
    for part in re.split(r"(%.|\s+)", expanded, flags=re.DOTALL):
        if not part.startswith("%"):
            pattern += r"\s+" if part.isspace() else re.escape(part)
        elif part[1:] not in _DIRECTIVES or part[1:] in names:
            raise ValueError(f"{part} in {format[:40]!a} is unknown or repeated")
        else:
            pattern += _DIRECTIVES[part[1:]]
            names.add(part[1:])
    if not (names & {"Y", "y"} and names & {"m", "b", "B"} and "d" in names):
        raise ValueError(f"{format[:40]!a} has no date (%Y %m %d), and is not s, ms, us or ns")
    if (
        len(names & {"m", "b", "B"}) > 1
        or {"Y", "y"} <= names
        or ("I" in names) != ("p" in names)
        or {"H", "I"} <= names
    ):
        raise ValueError(f"{format[:40]!a} repeats a part, or has only one of %I and %p")
    return re.compile(pattern, re.ASCII)


def _offset_s(offset: str | None) -> int:
    if offset is None or offset[0] not in "+-":
        return 0
    hours, minutes = int(offset[1:3]), int(offset[3:].lstrip(":") or 0)
    if hours > 23 or minutes > 59:
        raise ValueError(f"no such offset from UTC: {offset}")
    return (hours * 3600 + minutes * 60) * (-1 if offset[0] == "-" else 1)


# Parses a time whose form is unambiguous; raises ValueError with the reason.
#
# It can be a date, year first, and a time of day, in the forms that ISO 8601, databases and market
# data vendors use, with up to nine digits for fractions of a second. Without an offset it is UTC.
# It can also be a number since 1970, as `Time.from_number` reads it.
parse_time: Final = TimeReader().parse
