from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from feed.errors import InvalidRecording
from feed.ticks import Quote, Trade
from producers.parquet import ParquetRecording
from tests.builders import T0, trade

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def a_file(tmp_path: Path, **columns: Any) -> Path:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    "times",
    [
        pa.array([T0], pa.timestamp("ns", "UTC")),
        pa.array([T0 // 1_000_000], pa.timestamp("ms")),
        pa.array([T0], pa.timestamp("ns", "Europe/Berlin")),
        pa.array([int(T0)], pa.int64()),
        pa.array([T0 // 1_000_000], pa.int64()),
        pa.array(["2013-09-01T17:00:00.083Z"]),
        pa.array(["2013-09-01T17:00:00.083Z"]).dictionary_encode(),
    ],
    ids=lambda times: str(times.type)[:30],
)
def test_times_of_any_type(tmp_path: Path, times: Any) -> None:
    path = a_file(tmp_path, ts_event=times, price=[1640.25], size=pa.array([1], pa.uint32()))
    assert list(ParquetRecording(path, "ES")) == [trade()]


def test_any_names_by_mapping(tmp_path: Path) -> None:
    path = a_file(
        tmp_path,
        junk=[[1], [2]],
        when=[int(T0), int(T0)],
        what=["ES", "NQ"],
        px=[1.5, None],
        number=[2.0, None],
        aggressor=["BUY", None],
        best=[None, 3.0],
        worst=[None, 4.0],
    )
    names = {
        "time": "when", "symbol": "what", "price": "px", "size": "number", "side": "aggressor",
        "bid": "best", "ask": "worst",
    }  # fmt: skip
    one, two = ParquetRecording(path, None, names)
    assert isinstance(one, Trade)
    assert isinstance(two, Quote)
    assert (one.symbol, one.price, one.size, one.side) == ("ES", 1.5, 2.0, "B")
    assert (two.symbol, two.bid_price, two.ask_price) == ("NQ", 3.0, 4.0)


def test_bad_rows_are_told_and_left_out(tmp_path: Path) -> None:
    path = a_file(
        tmp_path, time=["x", None, "2013-09-01 17:00"], price=[1.0] * 3, size=[1.0, 2, -1]
    )
    told: list[tuple[int, str]] = []
    assert list(ParquetRecording(path, "ES", None, lambda *what: told.append(what))) == []
    assert [row for row, _ in told] == [1, 2, 3]
    assert "not an RFC 3339 time" in told[0][1]


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int64(), pa.decimal128(9, 2)])
def test_amounts_of_any_type(tmp_path: Path, kind: Any) -> None:
    path = a_file(
        tmp_path,
        time=pa.array([T0, T0, None, T0], pa.timestamp("ns")),
        price=pa.array([0, None, 3, 4], kind),
        size=pa.array([1, None, 1, 1], kind),
    )
    told: list[int] = []
    ticks = list(ParquetRecording(path, "ES", None, lambda row, error: told.append(row)))
    assert ticks == [trade(price=0.0, size=1.0), trade(price=4.0, size=1.0)]
    assert told == [3], "where there is no price there is no trade"


def test_an_amount_that_is_no_number(tmp_path: Path) -> None:
    told: list[tuple[int, str]] = []
    path = a_file(tmp_path, time=[int(T0)] * 2, price=[1.5, float("nan")], size=[1.0, 1.0])
    assert len(list(ParquetRecording(path, "ES", None, lambda *what: told.append(what)))) == 1
    assert told == [(2, "p must be a finite number, not nan")]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(InvalidRecording, match=r"a\.parquet: "):
        ParquetRecording(path, "ES")
    with pytest.raises(InvalidRecording, match="no time column among price, size"):
        ParquetRecording(a_file(tmp_path, price=[1.0], size=[1.0]), "ES")
    far = pa.array([datetime.datetime(3000, 1, 1)], pa.timestamp("s"))
    with pytest.raises(InvalidRecording, match="damaged after row 0"):
        list(ParquetRecording(a_file(tmp_path, time=far, price=[1.0], size=[1.0]), "ES"))
