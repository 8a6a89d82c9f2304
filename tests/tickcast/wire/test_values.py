"""Numbers and times of other libraries as fields of ticks: exact, or one clear error."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import T0, trade
from tickcast import Bar, Quote, Time, Trade
from tickcast.wire.encoding import pack, unpack
from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import validate

NS = 1_767_623_400_123_456_789
TEXT = "2026-01-05T14:30:00.123456789Z"


@pytest.mark.parametrize(
    "number",
    [187.1, Decimal("187.1"), Decimal("187.100"), np.float64(187.1), Decimal("1871e-1")],
    ids=repr,
)
def test_a_price_is_the_same_whatever_its_type(number: Any) -> None:
    (stored,) = unpack(pack([Trade("A", number, np.int32(5), time=T0)]))
    assert stored == trade("A", price=187.1, size=5)
    assert type(Trade("A", number, 1).price) is float


@given(
    st.decimals(
        allow_nan=False, allow_infinity=False, places=4, min_value=-(10**10), max_value=10**10
    )
)
def test_decimals_of_up_to_15_digits_keep_every_digit(number: Decimal) -> None:
    assert Decimal(repr(Trade("A", number, 1).price)) == number


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_of_numpy_are_exact_or_an_error(number: int) -> None:
    value: Any = np.int64(number)
    try:
        assert Trade("A", value, 1).price == number
    except InvalidTick as error:
        assert "Trade.price" in str(error)
        assert float(number) != number


@pytest.mark.parametrize(
    "moment",
    [
        NS, Time(NS), np.int64(NS), TEXT, pd.Timestamp(TEXT), np.datetime64(TEXT.rstrip("Z"), "ns"),
        pd.Timestamp(TEXT).tz_convert("Asia/Tokyo"),
    ],
    ids=lambda moment: type(moment).__name__,
)  # fmt: skip
def test_a_time_keeps_its_nanoseconds_whatever_its_type(moment: Any) -> None:
    time = Trade("A", 1, 1, time=moment).time
    assert type(time) is Time
    assert time.rfc3339() == TEXT


@given(st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)), st.integers(-23, 23))
def test_aware_datetimes_are_exact(naive: datetime, hours: int) -> None:
    aware = naive.replace(tzinfo=timezone(timedelta(hours=hours)))
    since = aware - datetime(1970, 1, 1, tzinfo=UTC)
    assert Trade("A", 1, 1, time=aware).time == since // timedelta(microseconds=1) * 1000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"price": "187.1"}, "Trade.price: '187.1' is not a number"),
        ({"price": True}, "Trade.price: True is not a number"),
        ({"price": np.bool_(True)}, "Trade.price: np.True_ is not a number"),
        ({"price": None}, "Trade.price: None is not a number"),
        ({"price": pd.NA}, "Trade.price: <NA> is not a number"),
        ({"price": Fraction(1, 3)}, "Trade.price: Fraction(1, 3) is not a number"),
        ({"price": 1 + 2j}, "Trade.price: (1+2j) is not a number"),
        ({"size": Decimal("0.12345678901234567890")}, "Trade.size: Decimal('0.1234567890123456"),
        ({"size": np.uint64(2**63 + 1)}, "Trade.size: np.uint64(9223372036854775809) has more dig"),
        ({"time": datetime(2026, 1, 5)}, "Trade.time: datetime.datetime(2026, 1, 5, 0, 0) has no"),
        ({"time": pd.Timestamp("2026-01-05")}, "Trade.time: Timestamp('2026-01-05 00:00:00') has"),
        ({"time": pd.NaT}, "Trade.time: NaT has no time zone"),
        ({"time": np.datetime64("NaT", "ns")}, "Trade.time: np.datetime64('NaT','ns') is not with"),
        ({"time": np.datetime64("2500-01-01")}, "Trade.time: np.datetime64('2500-01-01') is not w"),
        ({"time": date(2026, 1, 5)}, "Trade.time: datetime.date(2026, 1, 5) is not a time"),
        ({"time": 1.5}, "Trade.time: 1.5 is not a time; pass whole nanoseconds"),
        ({"time": "noon"}, "Trade.time: not an RFC 3339 time: 'noon'"),
        ({"time": 2**63}, "Trade.time: time outside the years 1677 to 2262"),
        ({"time": True}, "Trade.time: True is not a time"),
        ({"symbol": b"A"}, "Trade.symbol: b'A' is not text"),
        ({"id": 1.0}, "Trade.id: 1.0 is not an integer or text"),
        ({"venue": 3}, "Trade.venue: 3 is not text"),
        ({"side": "buy"}, "Trade.side: 'buy' is not one of B, S"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_anything_else_is_an_error_with_the_name_of_the_field(
    fields: dict[str, Any], message: str
) -> None:
    complete: dict[str, Any] = {"symbol": "A", "price": 1.0, "size": 1.0, **fields}
    with pytest.raises(InvalidTick) as caught:
        Trade(**complete)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_quotes_and_bars_convert_each_field() -> None:
    one: Any = Decimal("1.5")
    quote = Quote("A", one, one, one, one, time=TEXT)
    assert (quote.bid_price, quote.bid_size, quote.ask_price, quote.ask_size) == (1.5,) * 4
    bar = Bar(
        symbol="A", open=one, high=one, low=one, close=one, volume=one, trade_count=np.int64(3),
        vwap=one, time=datetime(2026, 1, 5, tzinfo=UTC),
    )  # fmt: skip
    assert {type(value) for value in (bar.open, bar.high, bar.low, bar.close, bar.vwap)} == {float}
    assert (type(bar.trade_count), type(bar.time)) == (int, Time)
    with pytest.raises(InvalidTick, match=r"Quote\.ask_size: 'x'"):
        Quote("A", 1, 1, 1, "x")  # type: ignore[arg-type]
    with pytest.raises(InvalidTick, match=r"Bar\.timeframe: '2m' is not one of 1s, 5s"):
        Bar(
            symbol="A", open=1, high=1, low=1, close=1, volume=1, trade_count=1, vwap=1, time=T0,
            timeframe="2m",  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("price", Decimal(1)), ("price", math.nan), ("price", 2**53 + 1), ("price", 10**400),
        ("size", "1"), ("size", -1), ("symbol", 5), ("time", 5), ("id", 1.5), ("id", True),
        ("venue", b"X"), ("side", "x"),
    ],
)  # fmt: skip
def test_attributes_that_a_program_sets_are_validated(name: str, value: Any) -> None:
    tick = trade()
    setattr(tick, name, value)
    with pytest.raises(InvalidTick):
        validate(tick)


@pytest.mark.parametrize("number", [0, 5, -3, 2**53, 10**17])
def test_integers_that_a_float_holds_are_valid(number: int) -> None:
    validate(Trade("A", number, abs(number), id=number, time=T0))
