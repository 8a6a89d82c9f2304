from __future__ import annotations

from datetime import UTC, datetime

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickcast.wire.times import Time

ANY_NS = st.integers(-(2**63), 2**63 - 1)


@given(ANY_NS)
def test_rfc3339_round_trip_keeps_every_nanosecond(ns: int) -> None:
    text = Time(ns).rfc3339()
    assert text.endswith("Z")
    assert Time.parse(text) == ns


@given(ANY_NS)
def test_the_extension_equals_that_of_the_reference_library(ns: int) -> None:
    expected = msgpack.packb(msgpack.Timestamp.from_unix_nano(ns))
    assert msgspec.msgpack.encode(Time(ns).msgpack_ext()) == expected
    assert Time.from_wire(msgpack.unpackb(expected)) == ns


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_378_054_800_083_000_000, "2013-09-01T17:00:00.083Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (100_000_000, "1970-01-01T00:00:00.1Z"),
    ],
)
def test_writes_no_more_digits_than_needed(ns: int, text: str) -> None:
    assert Time(ns).rfc3339() == text


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("2013-09-01 17:00:00.083", "2013-09-01T17:00:00.083Z"),
        ("2013-09-01T19:00:00.083+02:00", "2013-09-01T17:00:00.083Z"),
        ("2013-09-01t11:30:00-0530", "2013-09-01T17:00:00Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
    ],
)
def test_reads_the_usual_variants(text: str, same_as: str) -> None:
    assert Time.parse(text).rfc3339() == same_as


@pytest.mark.parametrize(
    "text",
    ["", "now", "2013-09-01", "2013-13-01T00:00:00Z", "2013-02-30T00:00:00Z",
     "2013-09-01T24:00:00Z",
     "2013-09-01T00:00:00.1234567890Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
     "2013-09-01T00:00:00+99:00", "２０１３-09-01T00:00:00Z"],
)  # fmt: skip
def test_refuses_text_that_is_not_a_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"time|offset"):
        Time.parse(text)


@pytest.mark.parametrize("value", [None, True, 1.5, 2**63, [], {}, datetime(2020, 1, 1)])
def test_refuses_other_values(value: object) -> None:
    with pytest.raises(ValueError, match="time"):
        Time.from_wire(value)


def test_reads_a_datetime_as_msgspec_returns_it() -> None:
    moment = datetime(2013, 9, 1, 17, 0, 0, 83_000, tzinfo=UTC)
    assert Time.from_wire(moment) == 1_378_054_800_083_000_000
