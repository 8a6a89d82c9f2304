"""Kinds of recordings found in practice: each is read correctly, or refused with a hint."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from producers.recordings.columns import parse_columns, parse_symbols
from producers.recordings.csv import CsvRecording
from producers.recordings.formats import open_recording
from producers.recordings.json_lines import JsonLinesRecording
from producers.recordings.rows import TableFormat
from producers.recordings.timestamps import TimeReader
from producers.recordings.values import NumberReader
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import Quote, Trade
from tickcast.wire.times import Time

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

T = "2024-01-02T14:30:0"
HEADER = "time,symbol,price,size"


class Found:
    """The result of a file: ticks as short texts, bad rows and notes; or the refusal."""

    def __init__(self, path: Path, symbol: str | None, columns: str, form: TableFormat) -> None:
        self.bad: dict[int, str] = {}
        self.ticks: list[str] = []
        self.notes: list[str] = []
        self.refusal = ""
        try:
            recording = open_recording(
                path,
                symbol,
                parse_columns(columns) if columns else {},
                lambda line, error: self.bad.update({line: error}),
                form,
            )
            assert isinstance(recording.first, Time)
            self.ticks = [_short(tick) for tick in recording.read(None)]
            self.notes = list(recording.notes) if isinstance(recording, CsvRecording) else []
        except InvalidRecording as error:
            self.refusal = str(error)
            assert "\n" not in self.refusal


def _short(tick: Any) -> str:
    at = tick.time.rfc3339()
    if isinstance(tick, Trade):
        return f"{at} {tick.symbol} {tick.price:g}x{tick.size:g} {tick.side or '-'}"
    assert isinstance(tick, Quote)
    sizes = f"{tick.bid_price:g}x{tick.bid_size:g} {tick.ask_price:g}x{tick.ask_size:g}"
    return f"{at} {tick.symbol} {sizes}"


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., Found]:
    def find(
        content: str | bytes,
        symbol: str | None = "A",
        columns: str = "",
        time_format: str | None = None,
        time_zone: str | None = None,
        symbols: str | None = None,
        **numbers: Any,
    ) -> Found:
        path = tmp_path / "file"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        renamed = parse_symbols(symbols)[1] if symbols else {}
        form = TableFormat(TimeReader(time_format, time_zone), NumberReader(**numbers), renamed)
        return Found(path, symbol, columns, form)

    return find


Find = Callable[..., Found]


# ---------------------------------------------------------------------------------------- times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-01-02 14:30:00.123456+00", "2024-01-02T14:30:00.123456Z"),
        ("2024-01-02 09:30:02.5-05", "2024-01-02T14:30:02.5Z"),
        ("2024-01-02 20:00:00+0530", "2024-01-02T14:30:00Z"),
        ("2024-01-02 14:30:00 UTC", "2024-01-02T14:30:00Z"),
        ("2024-01-02 14:30:00.123456 UTC", "2024-01-02T14:30:00.123456Z"),
        ("2024-01-02 14:30:00 GMT", "2024-01-02T14:30:00Z"),
        ("2024-01-02D14:30:00.123456789", "2024-01-02T14:30:00.123456789Z"),
        ("2024.01.02D14:30:00.123456789", "2024-01-02T14:30:00.123456789Z"),
        ("2024/01/02 14:30:00", "2024-01-02T14:30:00Z"),
        ("2024/1/2 9:30:00", "2024-01-02T09:30:00Z"),
        ("2024-01-02 14:30", "2024-01-02T14:30:00Z"),
        ("2024-01-02 16:30:00.5 GMT+0200", "2024-01-02T14:30:00.5Z"),
        ("2024-01-02 14:30:00.123 +0000 UTC", "2024-01-02T14:30:00.123Z"),
        ("2024-01-02 14:30:00,123", "2024-01-02T14:30:00.123Z"),
        ("20240102-14:30:00.123", "2024-01-02T14:30:00.123Z"),
        ("20240102T143000Z", "2024-01-02T14:30:00Z"),
        ("20240102 143000123", "2024-01-02T14:30:00.123Z"),
        (" 2024-01-02T14:30:00Z ", "2024-01-02T14:30:00Z"),
        ("1.7042058e+09", "2024-01-02T14:30:00Z"),
        ("1.7042058e18", "2024-01-02T14:30:00Z"),
        ("1704205800000000001", "2024-01-02T14:30:00.000000001Z"),
        ("1704205800123456", "2024-01-02T14:30:00.123456Z"),
        ("1704205800123.25", "2024-01-02T14:30:00.12325Z"),
        ("1704205800.000000001", "2024-01-02T14:30:00.000000001Z"),
        ("662688000", "1991-01-01T00:00:00Z"),
        ("2840140799999", "2059-12-31T23:59:59.999Z"),
    ],
)
def test_forms_of_times(found: Find, text: str, expected: str) -> None:
    (tick,) = found(f'time,price,size\n"{text}",1,1\n').ticks
    assert tick == f"{expected} A 1x1 -"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("20240102", "looks like a date, YYYYMMDD; if so, use --time-format %Y%m%d"),
        ("2024010214", "looks like a date, YYYYMMDDHH; if so, use --time-format %Y%m%d%H"),
        ("202401021430", "if so, use --time-format %Y%m%d%H%M"),
        ("20240102143000", "if so, use --time-format %Y%m%d%H%M%S"),
        ("20240102143000123", "if so, use --time-format %Y%m%d%H%M%S%f"),
        ("45293.604166", "a spreadsheet's day"),
        ("34201.123456789", "seconds after midnight"),
        ("0", "seconds after midnight"),
        ("34201123", "not in the years 1991 to 2059"),
        ("34201123456789", "not in the years 1991 to 2059"),
        ("638397810000000000", "not in the years 1991 to 2059"),
        ("133486938000000000", "not in the years 1991 to 2059"),
        ("3913194600", "not in the years 1991 to 2059"),
        ("662687999", "not in the years 1991 to 2059"),
        ("2840140800", "not in the years 1991 to 2059"),
        ("9" * 30, "not in the years 1991 to 2059"),
        ("-1704205800", "is not a time such as"),
        ("1e99", "is not a time since 1970"),
        ("1e-9", "seconds after midnight"),
        ("1704205800.0000000001", "finer than a nanosecond"),
        ("01/02/2024 09:30:00", "'%d/%m/%Y %H:%M:%S' or '%m/%d/%Y %H:%M:%S'"),
        ("01/22/2024 09:30:00 PM", "use --time-format '%m/%d/%Y %I:%M:%S %p'"),
        ("22.01.2024 09:30:00.5", "use --time-format '%d.%m.%Y %H:%M:%S.%f'"),
        ("1/22/2024 9:30", "use --time-format '%m/%d/%Y %H:%M'"),
        ("1/22/2024 9:30 AM", "use --time-format '%m/%d/%Y %I:%M %p'"),
        ("02.01.24 09:30:00", "use --time-format '%d.%m.%y %H:%M:%S'"),
        ("2024-01-02", "--time-format %Y-%m-%d makes it midnight"),
        ("09:30:00.5", "has no date"),
        ("2024-01-02 09:30:00 EST", "EST is not an offset from UTC"),
        ("2024-01-02 09:30:00 America/New_York", "use --time-zone"),
        ("2024-13-02 09:30:00", "month must be in 1..12"),
        ("2024-01-02 25:30:00", "hour must be in 0..23"),
        ("2024-01-02 09:30:61", "second must be in 0..60"),
        ("9999-12-31 00:00:00", "1677 to 2262"),
        ("20240102 93000", "a time of day that is only a number"),
        ("2024-01-02 34200.5", "a time of day that is only a number"),
        ("２０２４-01-02 09:30:00", "is not a time such as"),
        ("", "the time is missing"),
        ("soon", "is not a time such as"),
    ],
)
def test_invalid_times_are_refused_with_a_hint(found: Find, text: str, hint: str) -> None:
    alone = found(f'time,price,size\n"{text}",1,1\n')
    assert (alone.ticks, "no row has a time; line 2: " in alone.refusal) == ([], True)
    assert hint in alone.refusal
    beside = found(f'time,price,size\n{T}0Z,1,1\n"{text}",1,1\n')
    assert len(beside.ticks) == 1
    assert hint in beside.bad[3]


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("%d.%m.%Y %H:%M:%S.%f", "02.01.2024 00:00:12.345", "2024-01-02T00:00:12.345Z"),
        ("%m/%d/%Y %H:%M:%S", "01/02/2024 09:30:00", "2024-01-02T09:30:00Z"),
        ("%m/%d/%y %I:%M:%S %p", "1/2/24 9:30:00 pm", "2024-01-02T21:30:00Z"),
        ("%Y%m%d%H%M%S", "20240102093000", "2024-01-02T09:30:00Z"),
        ("%Y%m%d%H%M%S%f", "20240102093000123456789", "2024-01-02T09:30:00.123456789Z"),
        ("%Y%m%d %H%M%S", "20240102 93000", "2024-01-02T09:30:00Z"),
        ("%d %b %Y %T %z", "02 Jan 2024 09:30:00 -0500", "2024-01-02T14:30:00Z"),
        ("%A, %B %d %Y %H:%M", "Tuesday, January 2 2024 09:30", "2024-01-02T09:30:00Z"),
        ("%d.%m.%Y %T.%f %z", "02.01.2024 16:30:00.5 GMT+0200", "2024-01-02T14:30:00.5Z"),
        ("%F", "2024-01-02", "2024-01-02T00:00:00Z"),
        ("s", "7.5", "1970-01-01T00:00:07.5Z"),
        ("ms", "1704205800123", "2024-01-02T14:30:00.123Z"),
    ],
)
def test_a_time_format(found: Find, form: str, text: str, expected: str) -> None:
    result = found(f'time,price,size\n"{text}",1,1\nx,1,1\n', time_format=form)
    assert result.ticks == [f"{expected} A 1x1 -"]
    assert list(result.bad) == [3]


@pytest.mark.parametrize(
    "form", ["", "x", "%Y", "%Y-%m", "%Y%m%d%Y", "%Q%Y%m%d", "%Y %y%m%d", "%F %I:%M", "%F %b"]
)
def test_formats_that_make_no_sense(form: str) -> None:
    with pytest.raises(ValueError, match="%"):
        TimeReader(form)


def test_a_time_zone(found: Find) -> None:
    rows = ("2024-01-02 09:30:00.123", "2024-07-02 09:30:00.123", "2024-07-02T09:30:00Z",
            "2024-11-03 01:30:00", "2024-03-10 02:30:00")  # fmt: skip
    content = "time,price,size\n" + "".join(f"{row},1,1\n" for row in rows)
    result = found(content, time_zone="America/New_York")
    assert [tick.split()[0] for tick in result.ticks] == [
        "2024-01-02T14:30:00.123Z", "2024-07-02T13:30:00.123Z", "2024-07-02T09:30:00Z",
        "2024-11-03T05:30:00Z",
    ]  # fmt: skip
    assert result.bad == {
        6: "'2024-03-10 02:30:00' is not a time: clocks in America/New_York leave it out"
    }
    with pytest.raises(ValueError, match="'Mars/Base' is not a time zone"):
        TimeReader(None, "Mars/Base")


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        ("DATE,TIME_M,EX,SYM_ROOT,SYM_SUFFIX,SIZE,PRICE",
         "20240102,9:30:00.004219648,N,BRK,B,100,1",
         "2024-01-02T09:30:00.004219648Z BRK.B 1x100 -"),
        ("DATE,TIME_M,SYM_ROOT,SYM_SUFFIX,SIZE,PRICE",
         "20240102,9:30:00.5,AAPL,,100,1", "2024-01-02T09:30:00.5Z AAPL 1x100 -"),
        ("ticker,date,time,price,volume", "A,20240102,093000,1,2", "2024-01-02T09:30:00Z A 1x2 -"),
        ("time,date,price,size", "09:30:00,2024-01-02,1,2", "2024-01-02T09:30:00Z A 1x2 -"),
        ("<DATE>\t<TIME>\t<LAST>\t<VOLUME>", "2024.01.02\t09:30:00.5\t1\t2",
         "2024-01-02T09:30:00.5Z A 1x2 -"),
        ("date,timestamp,price,size", "2024-01-02,1704205800,1,2", "2024-01-02T14:30:00Z A 1x2 -"),
        ("timestamp_ms,price,size", "1704205800123,1,2", "2024-01-02T14:30:00.123Z A 1x2 -"),
        ("time[ns],price,size", "1704205800123456789,1,2",
         "2024-01-02T14:30:00.123456789Z A 1x2 -"),
        ("Time (UTC),price,size", "2024-01-02 14:30:00,1,2", "2024-01-02T14:30:00Z A 1x2 -"),
        ("created at,product,side,size,price", "2024-01-02T14:30:00Z,BTC-USD,BUY,2,1",
         "2024-01-02T14:30:00Z BTC-USD 1x2 B"),
        ("ticker,participant_timestamp,price,sip_timestamp,size",
         "A,1704205800000000000,1,1704205800000000001,2", "2024-01-02T14:30:00.000000001Z A 1x2 -"),
        ("agg_trade_id,price,quantity,transact_time,is_buyer_maker",
         "7,1,2,1704205800123,true", "2024-01-02T14:30:00.123Z A 1x2 S"),
        ("id,price,qty,quote_qty,time,is_buyer_maker", "7,1,2,2,1704205800123,False",
         "2024-01-02T14:30:00.123Z A 1x2 B"),
        ("update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,event_time",
         "7,1,2,3,4,1704205800123,1704205800999", "2024-01-02T14:30:00.123Z A 1x2 3x4"),
        ("exchange,symbol,timestamp,local_timestamp,ask_amount,ask_price,bid_price,bid_amount",
         "x,A,1704205800000001,1704205800000009,4,3,1,2", "2024-01-02T14:30:00.000001Z A 1x2 3x4"),
        ("timestamp,asks[0].price,asks[0].amount,bids[0].price,bids[0].amount",
         "1704205800000001,3,4,1,2", "2024-01-02T14:30:00.000001Z A 1x2 3x4"),
        ("time,symbol,BID,BIDSIZ,ASK,ASKSIZ", f"{T}0Z,A,1,2,3,4", "2024-01-02T14:30:00Z A 1x2 3x4"),
        ("timestamp,askPrice,bidPrice,askVolume,bidVolume", "2024-01-02 02:00,3,1,4,2",
         "2024-01-02T02:00:00Z A 1x2 3x4"),
    ],
)  # fmt: skip
def test_headers_of_vendors(found: Find, header: str, row: str, expected: str) -> None:
    result = found(f"{header}\n{row}\n")
    assert (result.ticks, result.bad) == ([expected], {})


# ---------------------------------------------------------------------------------- order books


@pytest.mark.parametrize(
    "header",
    [
        "exchange,symbol,timestamp,local_timestamp,is_snapshot,side,price,amount",
        "symbol,timestamp,first_update_id,last_update_id,side,update_type,price,qty",
        "time,symbol,side,level,price,size",
        "time,symbol,side,depth,price,size",
        "time,type,order_id,size,price,direction",
        "time,symbol,is_bid,price,size",
        "ts_recv,ts_event,rtype,publisher_id,instrument_id,ts_ref,price,quantity,stat_type",
    ],
)
def test_rows_of_an_order_book_are_not_trades(found: Find, header: str) -> None:
    row = ",".join("1704205800123456" if "time" in name or "ts_" in name else "1"
                   for name in header.split(","))  # fmt: skip
    result = found(f"{header}\n{row}\n")
    assert result.ticks == []
    assert "no trades: rows of an order book" in result.refusal or "neither price" in result.refusal


def test_an_action_distinguishes_trades_from_the_book(found: Find) -> None:
    header = "ts_event,action,side,price,size,order_id"
    rows = "".join(f"{T}{n}Z,{action},B,1,2,7\n" for n, action in enumerate("ACTMFRN"))
    result = found(f"{header}\n{rows}")
    assert result.ticks == ["2024-01-02T14:30:02Z A 1x2 B"]
    assert list(result.bad) == [2, 3, 5, 6, 7, 8]
    assert result.bad[2] == "not a trade: 'A', as in an order book or among quotes"
    mine = found(f"time,action,price,size\n{T}0Z,Sell,1,2\n")
    assert mine.ticks == ["2024-01-02T14:30:00Z A 1x2 -"]
    kinds = ("TRADE", "TRADE NB", "QUOTE BID", "QUOTE ASK NB", "TRADE CANCELLED")
    content = "time,EventType,price,quantity\n" + "".join(f"{T}0Z,{kind},1,2\n" for kind in kinds)
    result = found(content)
    assert (len(result.ticks), list(result.bad)) == (2, [4, 5, 6])
    assert len(found(content, columns="price=price,size=quantity").ticks) == 5


def test_a_blank_symbol_is_the_one_that_is_given(found: Find) -> None:
    content = f"{HEADER}\n{T}0Z,X,1,1\n{T}0Z, ,1,1\n"
    assert [tick.split()[1] for tick in found(content, "A").ticks] == ["X", "A"]
    assert found(content, None).bad == {3: "the symbol is missing"}


DATABENTO = "ts_recv,ts_event,rtype,publisher_id,instrument_id"


def test_databento_mbp_1(found: Find) -> None:
    header = f"{DATABENTO},action,side,depth,price,size,bid_px_00,ask_px_00,bid_sz_00,ask_sz_00"
    start = f"{T}9Z,{T}0Z,1,1,7"
    rows = (
        "A,B,0,1.000000000,3,1.000000000,2.000000000,4,5",
        "T,A,0,1.000000000,3,1.000000000,2.000000000,4,5",
        "R,N,0,,0,,,0,0",
        "C,B,0,1.000000000,3,,2.000000000,0,5",
        "T,A,0,2.000000000,3,,2.000000000,0,5",
    )
    result = found(header + "\n" + "".join(f"{start},{row}\n" for row in rows))
    at = "2024-01-02T14:30:00Z A"
    assert result.ticks == [f"{at} 1x4 2x5", f"{at} 1x3 S", f"{at} 1x4 2x5", f"{at} 2x3 S"]
    assert list(result.bad) == [4, 5, 6]
    assert result.bad[6] == "the bid is missing", "the trade in it is good"


def test_databento_bbo_is_quotes_alone_at_their_own_time(found: Find) -> None:
    header = f"{DATABENTO},side,price,size,bid_px_00,ask_px_00,bid_sz_00,ask_sz_00"
    result = found(f"{header}\n{T}9Z,{T}0Z,195,1,7,B,1.5,2,1.000000000,2.000000000,4,5\n")
    assert result.ticks == ["2024-01-02T14:30:09Z A 1x4 2x5"]


@pytest.mark.parametrize(
    ("price", "expected"),
    [("4770500000000", "4770.5"), ("500000000", "0.5"), ("-37630000000", "-37.63"), ("1.5", "1.5")],
)
def test_databento_prices_with_a_fixed_point(found: Find, price: str, expected: str) -> None:
    header = f"{DATABENTO},action,side,depth,price,size"
    start = "1704205800000100000,1704205800000000000,0,1,7,T,B,0"
    result = found(f"{header}\n{start},{price},1\n{start},9223372036854775807,1\n")
    assert result.ticks == [f"2024-01-02T14:30:00Z A {expected}x1 B"]
    assert result.bad == {3: "the price is missing"}


def test_other_prices_with_a_fixed_point(found: Find) -> None:
    content = f"time,price,size\n{T}0Z,187150000000,1\n{T}1Z,1.5,1\n"
    result = found(content)
    assert len(result.ticks) == 1
    assert "looks like a number with a fixed point; use --price-scale 1e-9" in result.bad[2]
    assert found(content, scale=1e-9).ticks[0] == "2024-01-02T14:30:00Z A 187.15x1 -"
    assert found(content, scale=1.0).bad == {}
    lobster = found(f"time,price,size\n{T}0Z,1871500,1\n", scale=1e-4)
    assert lobster.ticks == ["2024-01-02T14:30:00Z A 187.15x1 -"]


# ------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (",100", "the price is missing"),
        ("   ,100", "the price is missing"),
        ("1,", "the size is missing"),
        ("1_87.15,100", "price '1_87.15' is not a number"),
        ("\uff11\uff18,100", "is not a number"),
        ("1,1_0", "size '1_0' is not a number"),
        ("nan,1", "price 'nan' is not a finite number"),
        ("inf,1", "not a finite number"),
        ("-Infinity,1", "not a finite number"),
        ("1e400,1", "not a finite number"),
        ("0x1p3,1", "is not a number"),
        ("five,1", "price 'five' is not a number"),
        ("$1.5,1", "is not a number"),
        ("1,-2", "size -2.0 is negative; if that means a sale, use --columns side=size"),
        ('"542,625.00",1', "use --decimal , or --decimal . to say what the comma is"),
        ("187,15,100", "has 5 columns, and the header 4: is there a delimiter inside a number?"),
        ("1", "has only 3 columns"),
    ],
)
def test_bad_rows_are_reported_among_good_ones(found: Find, row: str, error: str) -> None:
    result = found(f"{HEADER}\n{T}0Z,A,1,1\n{T}1Z,A,{row}\n{T}2Z,A,2,1\n")
    assert [tick.split()[2] for tick in result.ticks] == ["1x1", "2x1"]
    assert list(result.bad) == [3]
    assert error in result.bad[3]


def test_half_quotes_are_reported(found: Find) -> None:
    rows = ("1,2,3,4", ",2,3,4", "1,,3,4", ",,3,4", "1,2,,4", "1,2,3,", "nan,2,3,4")
    content = "time,bid,ask,bidsize,asksize\n" + "".join(f"{T}0Z,{row}\n" for row in rows)
    result = found(content)
    assert result.ticks == ["2024-01-02T14:30:00Z A 1x3 2x4"]
    assert result.bad == {
        3: "the bid is missing", 4: "the ask is missing", 5: "the bid is missing",
        6: "the bid size is missing", 7: "the ask size is missing",
        8: "bid 'nan' is not a finite number",
    }  # fmt: skip


def test_the_valid_half_of_a_row_with_a_trade_and_a_quote_is_kept(found: Find) -> None:
    rows = ("1,1,2,3", "1,1,2,", "1,1,,", ",,2,3", "x,1,2,3", ",,,", ",,2,", "1,,2,3")
    content = "time,price,size,bid,ask\n" + "".join(f"{T}0Z,{row}\n" for row in rows)
    result = found(content)
    trade, quote = "2024-01-02T14:30:00Z A 1x1 -", "2024-01-02T14:30:00Z A 2x0 3x0"
    assert result.ticks == [trade, quote, trade, trade, quote, quote, quote]
    assert list(result.bad) == [3, 6, 7, 8, 9]
    assert result.bad[7] == "neither a price nor a bid and an ask"


def test_a_column_that_may_hold_sizes_is_not_ignored(found: Find) -> None:
    row = f"{T}0Z,1,2,3,4\n"
    result = found(f"time,bid,ask,bid_lots,ask_lots\n{row}")
    assert "no column with bid sizes (is it one of bid_lots, ask_lots?); name it" in result.refusal
    named = found(f"time,bid,ask,bid_lots,ask_lots\n{row}", columns="bid_size=4,ask_size=ask_lots")
    assert named.ticks == ["2024-01-02T14:30:00Z A 1x3 2x4"]
    half = found(f"time,bid,ask,bid_size,x\n{row}")
    assert "no column with ask sizes; name it with --columns ask_size=NAME" in half.refusal
    none = found(f"time,bid,ask,bid_ct,ask_ct\n{row}", columns="bid_size=-,ask_size=-")
    assert none.notes == ["quotes have no sizes here: they are published with size 0"]


def test_sides(found: Find) -> None:
    signed = "time,price,amount\n" + "".join(f"{T}0Z,1,{n}\n" for n in ("2", "-3", "-0.5"))
    assert [tick[-5:] for tick in found(signed, columns="side=amount").ticks] == [
        "1x2 B", "1x3 S", "0.5 S",
    ]  # fmt: skip
    maker = "time,price,size,is_buyer_maker\n" + "".join(
        f"{T}0Z,1,1,{n}\n" for n in ("true", "0", "", "maybe")
    )
    result = found(maker)
    assert [tick[-1] for tick in result.ticks] == ["S", "B", "-"]
    assert list(result.bad) == [5]


@pytest.mark.parametrize(
    ("decimal", "text", "number"),
    [
        (",", "187,15", 187.15), (",", "1.187,15", 1187.15), (",", "1.000", 1000),
        (",", "1 000,5", 1000.5), (",", "5", 5), (".", "542,625.00", 542625),
        (".", "1,200", 1200), (".", "1'200.5", 1200.5), (".", "1.5", 1.5), (".", "-1,200", -1200),
    ],
)  # fmt: skip
def test_decimal_marks(found: Find, decimal: str, text: str, number: float) -> None:
    (tick,) = found(f"time;price;size\n{T}0Z;{text};1\n", decimal=decimal).ticks
    assert tick == f"2024-01-02T14:30:00Z A {number:g}x1 -"


@pytest.mark.parametrize(("decimal", "text"), [(",", "187.15"), (".", "1,20"), (",", "1.00.000")])
def test_numbers_that_no_decimal_mark_explains(found: Find, decimal: str, text: str) -> None:
    result = found(f"time;price;size\n{T}0Z;{text};1\n", decimal=decimal)
    assert (result.ticks, list(result.bad)) == ([], [2])


def test_a_german_export(found: Find) -> None:
    result = found(
        "Datum;Zeit;Kurs;Stück\n02.01.2024;09:00:01;187,15;1.000\n",
        columns="time=Datum,clock=Zeit,price=Kurs,size=Stück",
        time_format="%d.%m.%Y %H:%M:%S",
        time_zone="Europe/Berlin",
        decimal=",",
    )
    assert result.ticks == ["2024-01-02T08:00:01Z A 187.15x1000 -"]


# --------------------------------------------------------------------------------------- symbols


def test_symbols_that_a_feed_cannot_carry(found: Find) -> None:
    names = ("BRK.B", "AAPL  240119C00150000", "^GSPC", "ES=F", "M&M", "BRK B", "")
    content = f"{HEADER}\n" + "".join(f"{T}0Z,{name},1,1\n" for name in names)
    result = found(content, None)
    assert [tick.split()[1] for tick in result.ticks] == ["BRK.B", "AAPL240119C00150000"]
    assert list(result.bad) == [4, 5, 6, 7, 8]
    assert "rename it with --symbol 'ES=F=NAME'" in result.bad[5]
    assert result.bad[8] == "the symbol is missing"
    result = found(content, None, symbols="^GSPC=GSPC,ES=F=ES,M&M=MM,BRK B=BRK.B,BRK.B=X")
    assert [tick.split()[1] for tick in result.ticks][2:] == ["GSPC", "ES", "MM", "BRK.B"]
    assert result.ticks[0].split()[1] == "X"


def test_a_symbol_stands_for_the_one_of_the_first_row(found: Find) -> None:
    content = f"{HEADER}\n{T}0Z,^GSPC,1,1\n{T}1Z,^DJI,1,1\n{T}2Z,^GSPC,1,1\n"
    result = found(content, "GSPC")
    assert [tick.split()[1] for tick in result.ticks] == ["GSPC", "GSPC"]
    assert list(result.bad) == [3]
    good = found(f"{HEADER}\n{T}0Z,AAPL,1,1\n{T}1Z,^GSPC,1,1\n", "GSPC")
    assert [tick.split()[1] for tick in good.ticks] == ["AAPL"], "no other symbol is renamed"


def test_instruments_are_not_mixed_up(found: Find) -> None:
    content = f"{DATABENTO},action,price,size\n" + "".join(
        f"{T}0Z,{T}0Z,0,1,{instrument},T,1.0,1\n" for instrument in (17, 18, 17)
    )
    result = found(content, "ES")
    assert [tick.split()[1] for tick in result.ticks] == ["ES", "ES"]
    assert result.bad == {3: "instrument '18' has no symbol; name it with --symbol 18=NAME"}
    result = found(content, None, symbols="17=ES,18=NQ")
    assert [tick.split()[1] for tick in result.ticks] == ["ES", "NQ", "ES"]
    assert "no symbol column" in found(content, None).refusal


def test_symbols_that_are_numbers_stay(found: Find) -> None:
    (tick,) = found(f"{HEADER}\n{T}0Z,600519,1,1\n", "A").ticks
    assert tick.split()[1] == "600519"


@pytest.mark.parametrize("text", ["", "A B", "=A", "A=", "A,B", "^A", "^A=^B"])
def test_other_names_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match="is neither a symbol nor OLD=NEW"):
        parse_symbols(text)


# --------------------------------------------------------------------------------------- headers


ROW = f"{T}0Z,A,1,1"


@pytest.mark.parametrize(
    ("before", "line"),
    [
        ("", 2), ("\n\n", 4), ("# exported by x\n# tz=UTC\n", 4), ("// a comment\n", 3),
        ("https://www.example.com\n", 3), ("Symbol: A\nExported 2024-01-02\n\n", 5),
        ("\ufeff", 2), ("sep=,\n", 3), ("Report,2024\n", 3),
        ("Report,2024,,\n", 3), ("Instrument,Venue,Currency,Zone\n", 3), ("a;b;c;d;e\n\n", 4),
    ],
)  # fmt: skip
def test_lines_before_the_header(found: Find, before: str, line: int) -> None:
    result = found(f"{before}{HEADER}\n{ROW}\nx,A,1,1\n{ROW}\n")
    assert (len(result.ticks), list(result.bad)) == (2, [line + 1])


def test_excel_names_the_separator(found: Find) -> None:
    assert len(found(f"sep=;\n{HEADER}\n{ROW}\n".replace(",", ";")).ticks) == 1
    assert len(found(f'"sep=|"\r\n{HEADER}\r\n{ROW}\r\n'.replace(",", "|")).ticks) == 1


def test_a_header_in_a_comment(found: Find) -> None:
    assert len(found(f"# made by x\n# {HEADER}\n{ROW}\n{ROW}\n").ticks) == 2


@pytest.mark.parametrize(
    "rows",
    [
        "4000000001,42123.45,0.0012,50.5,1704067200123,True,True",
        "20240102 170000003,1.104410,1.104430,0",
        f"{T}0Z,187.15,100",
        "AAPL,T,P,187.15,100,1704205800123",
        "1704067200123;42123.45;0.5",
    ],
)
def test_a_missing_header_is_reported(found: Find, rows: str) -> None:
    result = found(f"{rows}\n{rows}\n")
    assert "no header: line 1 holds values" in result.refusal
    assert "--columns time=1,price=2,size=3" in result.refusal


def test_columns_by_number(found: Find) -> None:
    result = found(
        "7,42123.45,0.0012,50.5,1704067200123,True,True\n7,1,2,2,1704067200456,False,True\n",
        columns="id=1,price=2,size=3,time=5,buyer_maker=6",
    )
    assert [tick[-1] for tick in result.ticks] == ["S", "B"]
    result = found(
        "20240102 170000003,1.1,1.2,0\n", columns="time=1,bid=2,ask=3", time_zone="Etc/GMT+5"
    )
    assert result.ticks == ["2024-01-02T22:00:00.003Z A 1.1x0 1.2x0"]
    result = found(f"{T}0Z,ABC,1,2\nx,ABC,1,2\n", None, columns="time=1,symbol=2,price=3,size=4")
    assert (len(result.ticks), list(result.bad)) == (1, [2])
    with_header = found(f"a,b,c\n{T}0Z,1,2\n", columns="time=1,price=2,size=3")
    assert len(with_header.ticks) == 1
    assert "no column '9' among a, b, c" in found("a,b,c\n", columns="time=9").refusal


def test_a_wide_header_is_shown_in_part(found: Find) -> None:
    result = found(",".join(f"x{n}" for n in range(1000)) + "\n")
    assert result.refusal.endswith(" and 970 more; name it with --columns time=NAME")


# ----------------------------------------------------------------------------------------- files


def zipped(*names: str) -> Callable[[bytes], bytes]:
    def pack(content: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, content)
        return file.getvalue()

    return pack


def tarred(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        entry = tarfile.TarInfo("a.csv")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def long_window(content: bytes) -> bytes:
    options = {
        int(zstd.CompressionParameter.window_log): 31,
        int(zstd.CompressionParameter.enable_long_distance_matching): 1,
    }
    compressor = zstd.ZstdCompressor(options=options)
    return compressor.compress(content) + compressor.flush()


@pytest.mark.parametrize(
    "pack",
    [
        bytes, gzip.compress, zstd.compress, bz2.compress, lzma.compress, long_window,
        zipped("a.csv"), zipped("a/", "a/b.csv", "__MACOSX/b.csv"),
        lambda content: content.decode().encode("utf-16"),
        lambda content: content.decode().encode("utf-16-le"),
        lambda content: content.decode().encode("utf-16-be"),
        lambda content: gzip.compress(content.decode().encode("utf-16")),
        lambda content: content.replace(b"\n", b"\r\n"),
    ],
)  # fmt: skip
def test_files_in_any_packing(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "file"
    rows = "".join(f"{1_704_205_800 + n},A,{n},1\n" for n in range(3000))
    path.write_bytes(pack(f"{HEADER}\n{rows}".encode()))
    recording = CsvRecording(path, None)
    assert recording.last - recording.first == 2999 * 10**9
    assert len(list(recording)) == 3000
    late = [
        tick.price
        for tick in recording.read(Time(recording.last - 10**9))
        if isinstance(tick, Trade)
    ]
    assert late[-2:] == [2998.0, 2999.0]
    assert len(late) < 1000, "most was skipped"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped("a.csv", "b.csv")(b"x"), "a zip archive of 2 files: unpack it first"),
        (zipped("xl/workbook.xml", "b")(b"x"), "an Excel workbook: save it as CSV"),
        (zipped()(b""), "a zip archive of 0 files"),
        (zipped("a.csv")(ROW.encode())[:40], "zip"),
        (bz2.compress(ROW.encode() * 100)[:30], "ended before|no header|empty|end"),
        (lzma.compress(ROW.encode() * 100)[:60], "ended before|no header|empty|Compressed"),
        (tarred(b"x"), "a tar archive: unpack it first"),
        (b"\x04\x22\x4d\x18....", "compressed with lz4: unpack it first"),
        (b"7z\xbc\xaf\x27\x1c..", "a 7z archive"),
        (b"SQLite format 3\x00", "an SQLite database"),
        (b"<!DOCTYPE html><html>", "a web page"),
        ("time,symbol,price,größe\n".encode("latin-1"), "not UTF-8: .* iconv"),
        ("trade_id/成交id,价格\n".encode("gbk"), "not UTF-8: .* iconv"),
        (b"\xff\xfe\x00", "UTF-16|truncated|empty"),
        (b'{"a":1}\n', "JSON, but not a tick a line"),
        (b"[\n{}\n]\n", "JSON, but not|an array over several lines"),
        (b'{"T":\n', "not a JSON object"),
    ],
    # The compressed content includes the time, so two test workers would create different ids.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_of_unreadable_files_suggest_what_to_do(
    found: Find, content: bytes, message: str
) -> None:
    result = found(content)
    assert result.ticks == []
    assert re.search(message, result.refusal), result.refusal
    assert "neither text nor" not in result.refusal


def test_text_that_is_not_utf_8_further_on(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f"{HEADER}\n".encode() + f"{ROW}\n".encode() * 5000 + b"\xff,1,1,1\n")
    with pytest.raises(InvalidRecording, match=r"damaged after line \d+: not UTF-8: .* 0xff"):
        list(CsvRecording(path, None))


@pytest.mark.parametrize(
    ("days", "notes"),
    [
        ((0, 1, 2), []),
        ((0, 6, 3), []),
        ((0, 30, 31), ["times jump by 30 days, line 3"]),
        ((0, 30, 0, 30), ["times jump by 30 days, line 3", "times go back by 30 days, line 4"]),
    ],
)
def test_jumps_are_noted_before_playing(
    found: Find, days: tuple[int, ...], notes: list[str]
) -> None:
    rows = "".join(f"{1_704_205_800 + 86_400 * day},1,1\n" for day in days)
    result = found(f"time,price,size\n{rows}")
    assert [note.split(":")[0] for note in result.notes] == notes


def test_jumps_between_blocks_are_noted(found: Find) -> None:
    rows = "".join(f"{1_704_205_800 + n},1,1\n" for n in range(2048))
    (note,) = found(f"time,price,size\n{rows}1706205800,1,1\n").notes
    assert note.startswith("times jump by 23 days, line 2,050: ")


# ------------------------------------------------------------------------------------ JSON lines


def test_json_lines_are_played(tmp_path: Path) -> None:
    path = tmp_path / "watched.jsonl"
    path.write_text(
        '[{"T":"success","msg":"connected"}]\n'
        '{"T":"t","S":"A","p":1,"s":2,"t":"2024-01-02T14:30:00Z","seq":1,"snap":true,"tr":1}\n'
        '{"T":"gap","ch":"trades","S":"A","from":1,"to":2,"reason":"retention"}\n'
        '[{"T":"q","S":"A","bp":1,"bs":2,"ap":3,"as":4,"t":1704205801123}]\n'
        '{"T":"t","S":"A","p":1,"s":2}\n'
    )
    bad: list[tuple[int, str]] = []
    for packed in (path.read_bytes(), gzip.compress(path.read_bytes())):
        path.write_bytes(packed)
        bad.clear()
        recording = JsonLinesRecording(path, lambda *what: bad.append(what))
        assert [_short(tick) for tick in recording] == [
            "2024-01-02T14:30:00Z A 1x2 -", "2024-01-02T14:30:01.123Z A 1x2 3x4",
        ]  # fmt: skip
        assert bad == [(5, "no time t")]
