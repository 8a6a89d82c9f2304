from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from producers.recordings.databento import DatabentoRecording
from tests.builders import T0, quote, trade
from tickcast.wire.errors import InvalidRecording

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

dbn = pytest.importorskip("databento_dbn")

DAY = {"start_date": date(2013, 9, 1), "end_date": date(2013, 9, 2), "symbol": "42"}


class Mapping:
    def __init__(self, raw_symbol: str, *intervals: dict[str, Any]) -> None:
        self.raw_symbol = raw_symbol
        self.intervals = [type("Interval", (), each)() for each in intervals]


def head(*mappings: Mapping, **more: Any) -> bytes:
    fields = {
        "dataset": "GLBX.MDP3", "start": int(T0), "stype_in": dbn.SType.RAW_SYMBOL,
        "stype_out": dbn.SType.INSTRUMENT_ID, "schema": dbn.Schema.TRADES, "mappings": mappings,
    }  # fmt: skip
    return bytes(dbn.Metadata(**fields | more))


def a_trade(instrument: int = 42, **more: Any) -> bytes:
    fields = {
        "publisher_id": 1, "instrument_id": instrument, "ts_event": int(T0),
        "price": 1_640_250_000_000, "size": 1, "action": dbn.Action.TRADE, "side": dbn.Side.ASK,
        "depth": 0, "ts_recv": int(T0) + 9,
    }  # fmt: skip
    return bytes(dbn.TradeMsg(**fields | more))


def a_level(**more: Any) -> Any:
    fields = {"bid_px": 99_500_000_000, "ask_px": 100_500_000_000, "bid_sz": 3, "ask_sz": 2}
    return dbn.BidAskPair(**fields | more)


def a_quote(action: Any, kind: Any = dbn.MBP1Msg, **more: Any) -> bytes:
    """A change of the book; with `more`, of its best level."""
    level = a_level(**more)
    if kind is dbn.CMBP1Msg:
        fields = {"levels": dbn.ConsolidatedBidAskPair(
            bid_px=level.bid_px, ask_px=level.ask_px, bid_sz=level.bid_sz, ask_sz=level.ask_sz,
        ), "rtype": dbn.RType.CMBP_1}  # fmt: skip
    elif kind is dbn.MBP10Msg:
        fields = {"levels": [level] * 10, "depth": 0}
    else:
        fields = {"levels": level, "depth": 0}
    return bytes(
        kind(
            publisher_id=1, instrument_id=42, ts_event=int(T0), price=1_640_250_000_000, size=1,
            action=action, side=dbn.Side.BID, ts_recv=int(T0), **fields,
        )
    )  # fmt: skip


def a_bbo(instrument: int, second: int, **more: Any) -> bytes:
    """The quote of an interval, in a market that last traded an hour before."""
    fields = {
        "rtype": dbn.RType.BBO_1S, "publisher_id": 1, "instrument_id": instrument,
        "ts_event": int(T0) - 3600 * 10**9, "price": 1, "size": 1, "side": dbn.Side.NONE,
        "ts_recv": int(T0) + second * 10**9, "levels": a_level(),
    }  # fmt: skip
    return bytes(dbn.BBOMsg(**fields | more))


def read(
    path: Path, *records: bytes, mappings: tuple[Mapping, ...] = (Mapping("ES", DAY),), **more: Any
) -> tuple[list[Any], list[tuple[int, str]]]:
    """Return the ticks of a file of these records, and its bad rows."""
    reported: list[tuple[int, str]] = []
    path.joinpath("a.dbn").write_bytes(head(*mappings, **more) + b"".join(records))
    recording = DatabentoRecording(path / "a.dbn", None, lambda *what: reported.append(what))
    return list(recording), reported


@pytest.mark.parametrize("compressed", [False, True])
def test_trades_and_quotes(tmp_path: Path, compressed: bool) -> None:
    data = head(Mapping("ES", DAY)) + a_trade() + a_quote(dbn.Action.TRADE)
    data += a_quote(dbn.Action.ADD) + a_quote(dbn.Action.ADD, bid_px=dbn.UNDEF_PRICE)
    path = tmp_path / "a.dbn"
    path.write_bytes(zstd.compress(data) if compressed else data)
    assert list(DatabentoRecording(path, None)) == [
        trade(side="S"),
        trade(side="B"),
        quote(),
        quote(),
    ]


def test_symbols_depend_on_the_day(tmp_path: Path) -> None:
    next_day = {"start_date": date(2013, 9, 2), "end_date": date(2013, 9, 3), "symbol": "42"}
    path = tmp_path / "a.dbn"
    later = int(T0) + 86_400 * 10**9
    times = (int(T0), later, later * 2)
    records = b"".join(a_trade(ts_event=time, ts_recv=time + 9) for time in times) + a_trade(7)
    path.write_bytes(head(Mapping("ESU3", DAY), Mapping("ESZ3", next_day)) + records)
    reported: list[tuple[int, str]] = []
    found = DatabentoRecording(path, None, lambda *what: reported.append(what))
    assert [tick.symbol for tick in found] == ["ESU3", "ESZ3"]
    assert reported[1] == (4, "instrument 7 has no symbol; use --symbol")
    assert [tick.symbol for tick in DatabentoRecording(path, "X")] == ["ESU3", "ESZ3", "X", "X"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.dbn"
    for data in (b"nonsense" * 100, head() + a_trade()[:-3], zstd.compress(head())[:-4]):
        path.write_bytes(data)
        with pytest.raises(InvalidRecording, match=r"a\.dbn: damaged after record 0"):
            list(DatabentoRecording(path, "ES"))
    with pytest.raises(InvalidRecording, match="No such file"):
        list(DatabentoRecording(tmp_path / "none.dbn", "ES"))


def test_other_records_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "a.dbn"
    bar = dbn.OHLCVMsg(dbn.RType.OHLCV_1S, 1, 42, int(T0), 1, 2, 1, 2, 10)
    path.write_bytes(head() + bytes(bar))
    reported: list[tuple[int, str]] = []
    assert list(DatabentoRecording(path, "ES", lambda *what: reported.append(what))) == []
    assert reported == [(1, "OHLCVMsg is neither a trade nor a quote")]


def test_quotes_at_intervals_have_the_time_of_the_interval(tmp_path: Path) -> None:
    """`ts_event` is the time of the last trade, and undefined if there was none."""
    never = {"ts_event": dbn.UNDEF_TIMESTAMP, "price": dbn.UNDEF_PRICE}
    records = [a_bbo(42, 1), a_bbo(43, 1, **never), a_bbo(42, 60, rtype=dbn.RType.BBO_1M)]
    other = {"start_date": date(2013, 9, 1), "end_date": date(2013, 9, 2), "symbol": "43"}
    ticks, reported = read(tmp_path, *records, mappings=(Mapping("ES", DAY), Mapping("NQ", other)))
    assert [(tick.symbol, (tick.time - T0) // 10**9) for tick in ticks] == [
        ("ES", 1), ("NQ", 1), ("ES", 60)
    ]  # fmt: skip
    assert reported == []
    ticks, reported = read(tmp_path, a_bbo(42, 1, ts_recv=dbn.UNDEF_TIMESTAMP))
    assert (ticks, reported) == ([], [(1, "a quote without a time")])


def test_consolidated_quotes_at_intervals(tmp_path: Path) -> None:
    level = dbn.ConsolidatedBidAskPair(bid_px=10**9, ask_px=2 * 10**9, bid_sz=3, ask_sz=2)
    record = dbn.CBBOMsg(
        rtype=dbn.RType.CBBO_1S, publisher_id=1, instrument_id=42, ts_event=dbn.UNDEF_TIMESTAMP,
        price=dbn.UNDEF_PRICE, size=0, side=dbn.Side.NONE, ts_recv=int(T0), levels=level,
    )  # fmt: skip
    ((tick,), reported) = read(tmp_path, bytes(record), schema=dbn.Schema.CBBO_1S)
    assert (tick.bid_price, tick.ask_price, tick.time, reported) == (1.0, 2.0, T0, [])


@pytest.mark.parametrize("kind", [dbn.MBP1Msg, dbn.CMBP1Msg, dbn.MBP10Msg])
def test_book_changes_are_not_trades(tmp_path: Path, kind: Any) -> None:
    actions = dbn.Action
    others = (actions.ADD, actions.MODIFY, actions.CANCEL, actions.FILL, actions.CLEAR)
    records = [a_quote(action, kind) for action in (*others, actions.TRADE)]
    ticks, reported = read(tmp_path, *records)
    assert ticks == [*[quote()] * 5, trade(side="B"), quote()]
    assert reported == []


def test_unknown_values_are_reported(tmp_path: Path) -> None:
    add, one = dbn.Action.ADD, dbn.Action.TRADE
    px, sz = dbn.UNDEF_PRICE, dbn.UNDEF_ORDER_SIZE
    ticks, reported = read(
        tmp_path,
        a_trade(price=px),
        a_trade(size=sz),
        a_trade(action=dbn.Action.CANCEL),
        a_quote(add, bid_px=px),
        a_quote(add, ask_px=px),
        a_quote(add, bid_sz=sz),
        a_bbo(42, 1, levels=a_level(bid_px=px, ask_px=px)),
        # The book is empty at the beginning of a session, which is not an error.
        a_quote(dbn.Action.CLEAR, bid_px=px, ask_px=px),
        a_quote(one, ask_px=px),
    )
    assert ticks == [trade(side="B")]
    assert reported == [
        (1, "a trade without a price"),
        (2, "the size is not known"),
        (3, "action C is not a trade"),
        (4, "a quote without a bid"),
        (5, "a quote without an ask"),
        (6, "the size is not known"),
        (7, "a quote without a bid"),
    ]


def test_a_trade_without_a_time_has_that_of_its_receipt(tmp_path: Path) -> None:
    ((tick,), _) = read(tmp_path, a_trade(ts_event=dbn.UNDEF_TIMESTAMP))
    assert tick.time == T0 + 9


@pytest.mark.parametrize(
    ("raw", "symbol"),
    [
        ("AAPL  240119C00150000", "AAPL240119C00150000"),
        ("SPXW  240102P04700000", "SPXW240102P04700000"),
        ("F     240119C00010500", "F240119C00010500"),
        ("GOOGL1240119C00150000", "GOOGL1240119C00150000"),
        ("BRK.B", "BRK.B"),
    ],
)
def test_symbols_with_blanks(tmp_path: Path, raw: str, symbol: str) -> None:
    ((tick,), reported) = read(tmp_path, a_trade(), mappings=(Mapping(raw, DAY),))
    assert (tick.symbol, reported) == (symbol, [])
    named = dbn.SymbolMappingMsg(1, 42, int(T0), dbn.SType.RAW_SYMBOL, raw, dbn.SType.RAW_SYMBOL,
                                 raw, int(T0), int(T0) + 1)  # fmt: skip
    ((tick,), reported) = read(tmp_path, bytes(named), a_trade(), mappings=())
    assert (tick.symbol, reported) == (symbol, [])


def test_symbols_that_are_renamed(tmp_path: Path) -> None:
    ticks, reported = read(tmp_path, a_trade(), mappings=(Mapping("ESH4 C4800", DAY),))
    assert (ticks, [row for row, _ in reported]) == ([], [1])
    assert reported[0][1].endswith("; rename it with --symbol 'ESH4 C4800=NAME'")
    recording = DatabentoRecording(tmp_path / "a.dbn", None, renamed={"ESH4 C4800": "ESH4.C4800"})
    assert [tick.symbol for tick in recording] == ["ESH4.C4800"]


def test_a_file_requested_by_instrument_number(tmp_path: Path) -> None:
    day = {**DAY, "symbol": "ESU3"}
    number_first = {"stype_in": dbn.SType.INSTRUMENT_ID, "stype_out": dbn.SType.RAW_SYMBOL}
    ((tick,), _) = read(tmp_path, a_trade(), mappings=(Mapping("42", day),), **number_first)
    assert tick.symbol == "ESU3"


@pytest.mark.parametrize("schema", [dbn.Schema.MBO, dbn.Schema.OHLCV_1D, dbn.Schema.DEFINITION])
def test_other_schemas_are_refused(tmp_path: Path, schema: Any) -> None:
    with pytest.raises(InvalidRecording, match=f"the schema {schema} holds neither trades nor"):
        read(tmp_path, schema=schema)
