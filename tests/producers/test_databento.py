from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from feed.errors import InvalidRecording
from producers.databento import DatabentoRecording
from tests.builders import T0, quote, trade

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


def head(*mappings: Mapping) -> bytes:
    return bytes(
        dbn.Metadata(
            dataset="GLBX.MDP3", start=int(T0), stype_in=dbn.SType.RAW_SYMBOL,
            stype_out=dbn.SType.INSTRUMENT_ID, schema=dbn.Schema.TRADES, mappings=mappings,
        )
    )  # fmt: skip


def a_trade(instrument: int = 42, **more: Any) -> bytes:
    fields = {
        "publisher_id": 1, "instrument_id": instrument, "ts_event": int(T0),
        "price": 1_640_250_000_000, "size": 1, "action": dbn.Action.TRADE, "side": dbn.Side.ASK,
        "depth": 0, "ts_recv": int(T0) + 9,
    }  # fmt: skip
    return bytes(dbn.TradeMsg(**fields | more))


def a_quote(action: Any, bid: int = 99_500_000_000) -> bytes:
    level = dbn.BidAskPair(bid_px=bid, ask_px=100_500_000_000, bid_sz=3, ask_sz=2)
    return bytes(
        dbn.MBP1Msg(
            publisher_id=1, instrument_id=42, ts_event=int(T0), price=1_640_250_000_000, size=1,
            action=action, side=dbn.Side.BID, depth=0, ts_recv=int(T0), levels=level,
        )
    )  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
def test_trades_and_quotes(tmp_path: Path, compressed: bool) -> None:
    data = head(Mapping("ES", DAY)) + a_trade() + a_quote(dbn.Action.TRADE)
    data += a_quote(dbn.Action.ADD) + a_quote(dbn.Action.ADD, bid=dbn.UNDEF_PRICE)
    path = tmp_path / "a.dbn"
    path.write_bytes(zstd.compress(data) if compressed else data)
    assert list(DatabentoRecording(path, None)) == [
        trade(side="S"),
        trade(side="B"),
        quote(),
        quote(),
    ]


def test_symbols_go_by_the_day(tmp_path: Path) -> None:
    next_day = {"start_date": date(2013, 9, 2), "end_date": date(2013, 9, 3), "symbol": "42"}
    path = tmp_path / "a.dbn"
    later = int(T0) + 86_400 * 10**9
    records = a_trade() + a_trade(ts_event=later) + a_trade(ts_event=later * 2) + a_trade(7)
    path.write_bytes(head(Mapping("ESU3", DAY), Mapping("ESZ3", next_day)) + records)
    told: list[tuple[int, str]] = []
    found = DatabentoRecording(path, None, lambda *what: told.append(what))
    assert [tick.symbol for tick in found] == ["ESU3", "ESZ3"]
    assert told[1] == (4, "instrument 7 has no symbol; use --symbol")
    assert [tick.symbol for tick in DatabentoRecording(path, "X")] == ["ESU3", "ESZ3", "X", "X"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.dbn"
    for data in (b"nonsense" * 100, head() + a_trade()[:-3], zstd.compress(head())[:-4]):
        path.write_bytes(data)
        with pytest.raises(InvalidRecording, match=r"a\.dbn: damaged after record 0"):
            list(DatabentoRecording(path, "ES"))
    with pytest.raises(InvalidRecording, match="No such file"):
        list(DatabentoRecording(tmp_path / "none.dbn", "ES"))


def test_other_records_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.dbn"
    bar = dbn.OHLCVMsg(dbn.RType.OHLCV_1S, 1, 42, int(T0), 1, 2, 1, 2, 10)
    path.write_bytes(head() + bytes(bar))
    told: list[tuple[int, str]] = []
    assert list(DatabentoRecording(path, "ES", lambda *what: told.append(what))) == []
    assert told == [(1, "OHLCVMsg is neither a trade nor a quote")]
