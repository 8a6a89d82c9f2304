"""Exporting tapes as tables, and importing them again."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from producers.recordings.csv import CsvRecording
from producers.recordings.parquet import ParquetRecording
from tests.builders import T0, bar, quote, trade, trades
from tests.tickcast.tapes.builders import a_tape
from tickcast.tapes import Tape
from tickcast.tapes.export import export
from tickcast.wire.errors import InvalidSettings, RecordingFailed
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

parquet = pytest.importorskip("pyarrow.parquet")

ROWS = 1_000


def a_mixed_tape(tmp_path: Path) -> Tape:
    ticks: list[Tick] = [
        trade(id="a,1", venue="V", side="B", seq=1, time=Time(T0 + 1)),
        trade("NQ", id=7, seq=4),
        quote(seq=3, conflated=2),
        bar(seq=1),
        bar(seq=1, timeframe="5s"),
        trade(price=1 / 3, seq=2, time=Time(-1)),
    ]
    return a_tape(tmp_path, ticks)


def test_parquet_has_one_schema_for_each_channel(tmp_path: Path) -> None:
    tape = a_mixed_tape(tmp_path)
    written = export(tape, tmp_path, "parquet")
    assert [(path.name, rows) for path, rows in written] == [
        ("a-trades.parquet", 3),
        ("a-quotes.parquet", 1),
        ("a-bars.parquet", 1),
        ("a-bars_5s.parquet", 1),
    ]
    table = parquet.read_table(written[0][0])
    assert {field.name: str(field.type) for field in table.schema} == {
        "time": "timestamp[ns, tz=UTC]", "symbol": "string", "price": "double", "size": "double",
        "side": "string", "id": "string", "venue": "string", "seq": "int64", "conflated": "int64",
        "received": "timestamp[ns, tz=UTC]",
    }  # fmt: skip
    columns = {name: table.column(name).cast("int64").to_pylist() for name in ("time", "received")}
    assert columns["time"] == [T0 + 1, T0, -1]
    assert columns["received"] == [T0 + 6, T0 + 5, 4]
    assert table.column("id").to_pylist() == ["a,1", "7", None]
    assert table.column("price").to_pylist()[2] == 1 / 3
    metadata = parquet.ParquetFile(written[0][0]).metadata
    assert metadata.row_group(0).column(2).compression == "ZSTD"
    (quotes,) = parquet.read_table(written[1][0]).to_pylist()
    assert (quotes["bid_price"], quotes["ask_size"], quotes["conflated"]) == (99.5, 2, 2)
    (bars,) = parquet.read_table(written[2][0]).to_pylist()
    assert (bars["high"], bars["trade_count"]) == (4, 3)


def test_csv_keeps_every_digit(tmp_path: Path) -> None:
    tape = a_mixed_tape(tmp_path)
    trades_only = Coverage([Subscription("trades", "*")])
    ((path, rows),) = export(tape, tmp_path, "csv", trades_only)
    with path.open(newline="") as file:
        table = list(csv.reader(file))
    assert rows == 3
    assert table[0][:4] == ["time", "symbol", "price", "size"]
    assert table[1] == [
        "2013-09-01T17:00:00.083000001Z", "ES", "1640.25", "1.0", "B", "a,1", "V", "1", "0",
        "2013-09-01T17:00:00.083000006Z",
    ]  # fmt: skip
    assert table[3][:3] == ["1969-12-31T23:59:59.999999999Z", "ES", repr(1 / 3)]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_exported_files_can_be_imported(tmp_path: Path, form: str) -> None:
    ticks: list[Tick] = [
        trade(id="x", venue="V", side="B", time=Time(T0 + 1)),
        trade("NQ", price=1 / 3, time=Time(-1)),
        quote("NQ", bid_venue="V", ask_venue="V"),
    ]
    tape = a_tape(tmp_path, ticks)
    kind = CsvRecording if form == "csv" else ParquetRecording
    back: list[Tick] = []
    for path, _ in export(tape, tmp_path, form):
        names = {"venue": "bid_venue"} if "quotes" in path.name else {}
        back += kind(path, None, names)
    assert back == ticks


def test_more_rows_than_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tickcast.tapes.export.ROWS", ROWS)
    tape = a_tape(tmp_path, trades(ROWS + 1))
    ((path, rows),) = export(tape, tmp_path, "parquet")
    assert rows == ROWS + 1
    assert parquet.ParquetFile(path).metadata.num_row_groups == 2
    assert list(ParquetRecording(path, None)) == [
        trade(price=float(each.price), time=each.time) for each in trades(ROWS + 1)
    ]


def test_existing_files_stay_and_unfinished_ones_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tape = a_mixed_tape(tmp_path)
    (tmp_path / "a-bars.csv").write_text("")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RecordingFailed, match=r"a-bars\.csv: File exists"):
        export(tape, tmp_path, "csv")
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(RecordingFailed, match="No such file"):
        export(tape, tmp_path / "x", "csv")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InvalidSettings, match="pip install"):
        export(tape, tmp_path, "parquet")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_standard_tools_read_tapes(tmp_path: Path) -> None:
    duckdb, polars = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    tape = a_tape(tmp_path, *([each] for each in trades(50, first_seq=1)))
    assert len(tape.manifest.frames) == 50
    query = f"SELECT count(*), sum(p), max(seq) FROM read_json('{tape.path}', {{}}) WHERE T = 't'"
    (row,) = duckdb.sql(query.format("format = 'newline_delimited'")).fetchall()
    table = polars.read_ndjson(tape.path).filter(polars.col("T") == "t")
    total = sum(each.price for each in trades(50))
    assert row == (table.height, table["p"].sum(), table["seq"].max()) == (50, total, 50)
