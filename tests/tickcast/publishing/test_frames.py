"""Frames of polars and pandas and tables of pyarrow, as ticks."""

from __future__ import annotations

import math
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from tests.tickcast.broker.stores import ES
from tests.tickcast.wire.test_ticks import FINITE, SYMBOLS, TRADES
from tickcast import Bar, Publisher, Quote, Time, Trade
from tickcast.broker import keys
from tickcast.broker.store import Store
from tickcast.publishing.frames import read_frame
from tickcast.wire.encoding import unpack
from tickcast.wire.errors import InvalidSettings, InvalidTick
from tickcast.wire.ticks import Tick, validate

NS = 1_767_623_400_123_456_789
TEXT = "2026-01-05T14:30:00.123456789Z"
STAMP = pd.Timestamp(TEXT)
ROWS: dict[str, list[Any]] = {"symbol": ["ES", "NQ"], "price": [1.5, 2.5], "size": [3, 4]}
EXPECTED = [Trade("ES", 1.5, 3, time=Time(NS)), Trade("NQ", 2.5, 4, time=Time(NS))]


def ticks_in(frame: Any, channel: str = "trades", **columns: str) -> list[Tick]:
    return [tick for ticks in read_frame(frame, channel, columns, None) for tick in ticks]


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({**ROWS, "time": [NS, NS]}),
        pl.DataFrame({**ROWS, "time": [TEXT, TEXT]}),
        pl.DataFrame({**ROWS, "time": [NS, NS]}).with_columns(
            pl.col("time").cast(pl.Datetime("ns", "Asia/Tokyo")),
            pl.col("symbol").cast(pl.Categorical),
        ),
        pd.DataFrame({**ROWS, "time": [STAMP, STAMP]}),
        pd.DataFrame({**ROWS, "time": [STAMP, STAMP]}).astype({"symbol": "category"}),
        pd.DataFrame({**ROWS, "time": [NS, NS], "price": [Decimal("1.5"), Decimal("2.5")]}),
        pa.table({**ROWS, "time": pa.array([NS, NS], pa.timestamp("ns", "UTC"))}),
        pa.concat_tables(2 * [pa.table({**ROWS, "time": [NS, NS]})]).slice(1, 2).select(
            ["time", "size", "symbol", "price"]
        ),
    ],
    ids=["polars", "text", "zone", "pandas", "category", "decimal", "pyarrow", "chunks"],
)  # fmt: skip
def test_tables_of_all_libraries_make_the_same_ticks(frame: Any) -> None:
    found = ticks_in(frame)
    assert sorted(found, key=lambda tick: tick.symbol) == EXPECTED
    for tick in found:
        validate(tick)


@given(st.lists(TRADES, max_size=20))
def test_a_table_of_valid_trades_makes_these_trades(trades: list[Trade]) -> None:
    # A column has one type, so that ids are all numbers or all text.
    expected = [trade for trade in trades if not isinstance(trade.id, str)]
    names = ("symbol", "id", "venue", "price", "size", "side", "time")
    table = pa.table(
        {name: [getattr(trade, name) for trade in expected] for name in names},
        pa.schema(
            [
                ("symbol", "string"), ("id", "int64"), ("venue", "string"), ("price", "float64"),
                ("size", "float64"), ("side", "string"), ("time", "int64"),
            ]
        ),
    )  # fmt: skip
    assert ticks_in(table) == expected


@given(
    st.lists(st.tuples(SYMBOLS | st.text(max_size=3), FINITE | st.just(math.nan)), min_size=1),
)
def test_a_table_is_refused_exactly_if_a_tick_is(rows: list[tuple[str, float]]) -> None:
    symbols, prices = zip(*rows, strict=True)
    bad = []
    for row, (symbol, price) in enumerate(rows):
        try:
            validate(Trade(symbol, price, 1, time=Time(NS)))
        except InvalidTick:
            bad.append(row)
    frame = pl.DataFrame({"symbol": symbols, "price": prices, "size": 1, "time": NS}, strict=False)
    try:
        assert len(ticks_in(frame)) == len(rows)
        assert not bad
    except InvalidTick as error:
        assert int(str(error).split()[1].rstrip(",")) in bad


def test_quotes_and_bars() -> None:
    quotes = pl.DataFrame(
        {"symbol": "ES", "bid": [1.0], "bs": [2], "ask": [1.5], "as": [4], "ts": [NS], "x": ["N"]}
    )
    assert ticks_in(
        quotes, "quotes", bid_price="bid", bid_size="bs", ask_price="ask", ask_size="as", time="ts",
        bid_venue="x",
    ) == [Quote("ES", 1, 2, 1.5, 4, bid_venue="N", time=Time(NS))]  # fmt: skip
    bars = pl.DataFrame(
        {
            "symbol": "ES", "open": 1, "high": 2.5, "low": 1, "close": 2, "volume": 10, "vwap": 1.5,
            "trade_count": [7], "time": datetime(2026, 1, 5, tzinfo=UTC),
        }
    )  # fmt: skip
    for channel, timeframe in (("bars", "1m"), ("bars:5m", "5m")):
        expected = Bar(
            symbol="ES", open=1, high=2.5, low=1, close=2, volume=10, vwap=1.5, trade_count=7,
            time="2026-01-05T00:00:00Z", timeframe=timeframe,  # type: ignore[arg-type]
        )  # fmt: skip
        assert ticks_in(bars, channel) == [expected]


def frame_with(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame({**ROWS, "time": NS, **columns}, strict=False)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (frame_with(price=[1.0, math.nan]),
         "row 1, column 'price': Trade.price must be a finite number, not nan"),
        (frame_with(price=[None, 1.0]), "row 0, column 'price': Trade.price is missing"),
        (frame_with(size=[-1.0, -2.0]),
         "row 0, column 'size': Trade.size must be at least 0, not -1.0 (and 1 more)"),
        (frame_with(symbol=["ES", "no symbol"]),
         "row 1, column 'symbol': Trade.symbol must be 1 to 32 characters of A-Z a-z 0-9 . _ / : -,"
         " not 'no symbol'"),
        (frame_with(size=[1, 2**53 + 1]),
         "row 1, column 'size': Trade.size: 9007199254740993 has more digits than a 64-bit float"),
        (frame_with(price=["1.5", "2"]), "column 'price': Trade.price must be a number, not "),
        (frame_with(price=[True, False]), "column 'price': Trade.price must be a number, not bool"),
        (frame_with(symbol=[1, 2]), "column 'symbol': Trade.symbol must be text, not int64"),
        (frame_with(time=[1.5, 2.5]), "column 'time': Trade.time must be a time with a time zone,"),
        (frame_with(time=datetime(2026, 1, 5)), "column 'time': Trade.time has no time zone"),
        (frame_with(time=[TEXT, "noon"]),
         "row 1, column 'time': Trade.time is not an RFC 3339 time: 'noon'"),
        (frame_with(time=[datetime(2026, 1, 5, tzinfo=UTC), datetime(2500, 1, 1, tzinfo=UTC)]),
         "row 1, column 'time': Trade.time is not within the years 1677 to 2262, not "),
        (frame_with(side=["B", "buy"]), "row 1, column 'side': Trade.side must be one of B, S"),
        (frame_with(id=["a", ""]), "row 1, column 'id': Trade.id must be printable text of 1"),
        (frame_with(venue=[1.5, 2]), "column 'venue': Trade.venue must be text, not double"),
        (frame_with().drop("time"),
         "no column 'time' for Trade.time; the frame has symbol, price, size"),
        (pa.table([[1], [2]], names=["symbol", "symbol"]), "the frame has 2 columns 'symbol'"),
        (pd.DataFrame({"symbol": ["A", 5]}), "frame: "),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)  # fmt: skip
def test_errors_name_the_row_and_the_column(frame: Any, message: str) -> None:
    with pytest.raises(InvalidTick) as caught:
        read_frame(frame, "trades", {}, None)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InvalidSettings, match="a list is not a table of polars, pandas or pyarrow"):
        read_frame([1], "trades", {}, None)
    with pytest.raises(InvalidSettings, match="channel 'trade' is not one of trades, quotes"):
        read_frame(frame_with(), "trade", {}, None)
    with pytest.raises(InvalidSettings, match="Trade has no field 'px'; it has symbol, id"):
        read_frame(frame_with(), "trades", {"px": "price"}, None)
    with pytest.raises(InvalidTick, match=r"no column 'exchange' for Trade\.venue"):
        read_frame(frame_with(), "trades", {"venue": "exchange"}, None)
    with pytest.raises(InvalidTick, match="symbol 'A B'"):
        read_frame(frame_with(), "trades", {}, "A B")


async def test_a_frame_is_published_in_order(redis: Redis, redis_url: str) -> None:
    rows = 9_000
    frame = pl.DataFrame({"price": range(rows), "size": 1, "time": [NS + n for n in range(rows)]})
    async with Publisher(redis=redis_url) as publisher:
        assert await publisher.publish_frame(frame, symbol="ES") == rows
        assert await publisher.publish_frame(frame.clear(), symbol="ES") == 0
    entries: Any = await redis.xrange(keys.history(ES))
    stored: list[Any] = [tick for _, fields in entries for tick in unpack(fields[b"b"])]
    assert [tick.price for tick in stored] == list(range(rows))


async def test_nothing_of_a_frame_with_a_bad_row_is_published(redis: Redis, redis_url: str) -> None:
    rows = 12_000
    frame = pl.DataFrame({"price": 1.0, "size": [1] * (rows - 1) + [-1], "time": NS})
    async with Publisher(redis=redis_url) as publisher:
        with pytest.raises(InvalidTick, match=r"row 11,999, column 'size'"):
            await publisher.publish_frame(frame, symbol="ES")
    assert publisher.stats().accepted == 0
    assert await Store(redis).streams("live") == set()


def test_without_pyarrow_one_line_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from tickcast.publishing.publisher import ticks_of\n"
        "ticks_of(None, 'trades', None, None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    last = done.stderr.splitlines()[-1]
    assert last.endswith("InvalidSettings: publish_frame needs pyarrow: pip install pyarrow")
