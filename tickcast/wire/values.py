"""Convert the numbers and times of other libraries to those of ticks, exactly or not at all.

NumPy and pandas are recognized by what their values can do, so that neither has to be installed.
Every error starts with the name of the field.
"""

from __future__ import annotations

import math
from datetime import datetime
from decimal import Decimal
from numbers import Integral, Rational, Real
from typing import Any, Final, TypeGuard

from tickcast.wire.errors import InvalidTick
from tickcast.wire.times import Time

_SHOWN: Final = 60
# Seconds since 1970 within which nanoseconds fit 64 bits.
_SECONDS_MAX: Final = 2**63 // 10**9


def to_number(field: str, value: object) -> float:
    """Convert a price or a size: an int, a float, a Decimal or a number of NumPy.

    A Decimal must be the shortest text of a float, as every number of up to 15 digits is. Any other
    number must be equal to a float.

    Raises:
        InvalidTick: it is none of these, or would lose digits.

    >>> to_number("Trade.price", Decimal("187.10"))
    187.1
    """
    if isinstance(value, Decimal) and value.is_finite():
        number: float = float(value)
        is_exact = Decimal(repr(number)) == value
    elif _is_integer(value):
        number = int(value)
        is_exact = -(2**53) <= number <= 2**53 or float(number) == number
    elif isinstance(value, Decimal) or _is_inexact(value):
        number = float(value)
        is_exact = number == value or math.isnan(number)
    else:
        raise InvalidTick(f"{field}: {_show(value)} is not a number")
    if not is_exact:
        raise InvalidTick(f"{field}: {_show(value)} has more digits than a 64-bit float holds")
    return number


def _is_integer(value: object) -> TypeGuard[Integral]:
    return not isinstance(value, bool) and isinstance(value, Integral)


def _is_inexact(value: object) -> TypeGuard[Real]:
    return isinstance(value, Real) and not isinstance(value, Rational)


def to_time(field: str, value: object) -> Time:
    """Convert a time: nanoseconds since 1970, RFC 3339 text, an aware datetime or Timestamp.

    NumPy's `datetime64` has no time zone and counts from 1970 UTC.

    Raises:
        InvalidTick: it is none of these, or not within the years 1677 to 2262.

    >>> to_time("Trade.time", "2026-01-05T14:30:00.000000001Z")
    1767623400000000001
    """
    try:
        if _is_integer(value):
            return Time.from_wire(int(value))
        if isinstance(value, str | datetime):
            if isinstance(value, datetime) and value.tzinfo is None:
                # This includes NaT, pandas' value for a missing time.
                raise ValueError(f"{_show(value)} has no time zone")
            return Time.from_wire(value)
        if type(value).__name__ == "datetime64":
            return Time.from_wire(_datetime64_ns(value))
    except (ValueError, OverflowError) as error:
        raise InvalidTick(f"{field}: {error}") from None
    hint = "; pass whole nanoseconds, as time.time_ns() does" if _is_inexact(value) else ""
    raise InvalidTick(f"{field}: {_show(value)} is not a time{hint}")


def _datetime64_ns(value: Any) -> int:
    # NumPy converts units without noticing an overflow. NaT is the lowest integer.
    if abs(int(value.astype("datetime64[s]").astype("int64"))) >= _SECONDS_MAX:
        raise ValueError(f"{_show(value)} is not within the years 1677 to 2262")
    ns = value.astype("datetime64[ns]")
    if ns != value:
        raise ValueError(f"{_show(value)} is finer than a nanosecond")
    return int(ns.astype("int64"))


def to_text(field: str, value: object) -> str:
    """Convert text. Raises InvalidTick."""
    if not isinstance(value, str):
        raise InvalidTick(f"{field}: {_show(value)} is not text")
    return str(value)


def to_count(field: str, value: object) -> int:
    """Convert a whole number. Raises InvalidTick."""
    number = to_number(field, value)
    if number != int(number):
        raise InvalidTick(f"{field}: {_show(value)} is not a whole number")
    return int(number)


def to_id(field: str, value: object) -> int | str:
    """Convert the id of a trade: an integer or text. Raises InvalidTick."""
    if _is_integer(value):
        return int(value)
    if isinstance(value, str):
        return str(value)
    raise InvalidTick(f"{field}: {_show(value)} is not an integer or text")


def _show(value: object) -> str:
    return ascii(value)[:_SHOWN]
