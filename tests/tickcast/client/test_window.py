from __future__ import annotations

from datetime import UTC

import pandas as pd
import polars as pl
import pytest

from tests.builders import T0, quote, trade
from tickcast import Window
from tickcast.wire.ticks import Bar
from tickcast.wire.times import Time

BAR = Bar(symbol="ES", open=1, high=3, low=1, close=2, volume=9, trade_count=4, vwap=2.5, time=T0)


@pytest.fixture
def window() -> Window:
    window = Window(ticks_max=2)
    late = Time(T0 + 1)
    window.add([trade(id=1), quote(), trade(id="x", side="B", time=late, seq=2), BAR])
    return window


def test_a_window_keeps_the_latest_of_each_kind(window: Window) -> None:
    window.add([trade(id=3), trade(id=4)])
    assert [row.id for row in window.trades.rows] == [3, 4]
    assert (len(window.trades), len(window.quotes), len(window.bars)) == (2, 1, 1)


def test_polars_keeps_nanoseconds(window: Window) -> None:
    frame = window.trades.to_polars()
    assert frame.schema["time"] == pl.Datetime("ns", "UTC")
    assert frame["time"].dt.epoch("ns").to_list() == [T0, T0 + 1]
    assert frame["id"].to_list() == ["1", "x"]
    assert frame["side"].to_list() == [None, "B"]
    assert frame["seq"].to_list() == [None, 2]
    assert window.bars.to_polars().row(0, named=True)["vwap"] == 2.5
    assert window.quotes.to_polars()["ask_price"].dtype == pl.Float64


def test_pandas_keeps_nanoseconds(window: Window) -> None:
    frame = window.trades.to_pandas()
    assert frame["time"].dt.tz == UTC
    assert [stamp.value for stamp in frame["time"]] == [T0, T0 + 1]
    assert frame["id"].tolist() == ["1", "x"]
    assert frame["side"].isna().tolist() == [True, False]
    assert frame["seq"].tolist() == [pd.NA, 2]
    assert window.bars.to_pandas()["trade_count"].tolist() == [4]


def test_empty_tables_have_the_same_columns(window: Window) -> None:
    empty = Window()
    for name in ("trades", "quotes", "bars"):
        full, none = getattr(window, name), getattr(empty, name)
        assert none.to_polars().schema == full.to_polars().schema
        assert list(none.to_pandas().dtypes) == list(full.to_pandas().dtypes)
