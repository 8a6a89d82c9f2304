from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producers.recordings.parquet import ParquetRecording
from producers.recordings.rows import TableFormat
from producers.recordings.timestamps import TimeReader
from tests.builders import T0, trade
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import Quote, Trade

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


def test_bad_rows_are_reported_and_skipped(tmp_path: Path) -> None:
    path = a_file(
        tmp_path, time=["x", None, "2013-09-01 17:00"], price=[1.0] * 3, size=[1.0, 2, -1]
    )
    reported: list[tuple[int, str]] = []
    assert list(ParquetRecording(path, "ES", None, lambda *what: reported.append(what))) == []
    assert [row for row, _ in reported] == [1, 2, 3]
    assert "is not a time such as" in reported[0][1]


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.int64(), pa.decimal128(9, 2)])
def test_amounts_of_any_type(tmp_path: Path, kind: Any) -> None:
    path = a_file(
        tmp_path,
        time=pa.array([T0, T0, None, T0], pa.timestamp("ns")),
        price=pa.array([0, None, 3, 4], kind),
        size=pa.array([1, None, 1, 1], kind),
    )
    reported: list[int] = []
    ticks = list(ParquetRecording(path, "ES", None, lambda row, error: reported.append(row)))
    assert ticks == [trade(price=0.0, size=1.0), trade(price=4.0, size=1.0)]
    assert reported == [2, 3]


def test_an_amount_that_is_not_a_number(tmp_path: Path) -> None:
    reported: list[tuple[int, str]] = []
    path = a_file(tmp_path, time=[int(T0)] * 2, price=[1.5, float("nan")], size=[1.0, 1.0])
    assert len(list(ParquetRecording(path, "ES", None, lambda *what: reported.append(what)))) == 1
    assert reported == [(2, "price nan is not a finite number")]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(InvalidRecording, match=r"a\.parquet: "):
        ParquetRecording(path, "ES")
    with pytest.raises(InvalidRecording, match="no time column among price, size"):
        ParquetRecording(a_file(tmp_path, price=[1.0], size=[1.0]), "ES")
    nested = a_file(tmp_path, time=[int(T0)], price=[[1.0]], size=[1.0])
    with pytest.raises(InvalidRecording, match=r"column 'price' holds list<.*>, not single values"):
        ParquetRecording(nested, "ES")


# ------------------------------------------------------------------------------ types of columns


def read(path: Path, symbol: str | None = "ES", **columns: str) -> tuple[list[Any], list[Any]]:
    """Return the ticks of a file, and the bad rows."""
    reported: list[tuple[int, str]] = []
    recording = ParquetRecording(path, symbol, columns, lambda *what: reported.append(what))
    return list(recording), reported


@pytest.mark.parametrize("unit", ["s", "ms", "us"])
def test_a_time_out_of_range_is_a_bad_row(tmp_path: Path, unit: str) -> None:
    far = [datetime.datetime(2024, 1, 2), datetime.datetime(9999, 12, 31), None]
    path = a_file(tmp_path, time=pa.array(far, pa.timestamp(unit)), price=[1.0] * 3, size=[1.0] * 3)
    ticks, reported = read(path)
    assert [tick.time.rfc3339() for tick in ticks] == ["2024-01-02T00:00:00Z"]
    assert [row for row, _ in reported] == [2, 3]
    assert "time" in reported[0][1]
    # The values go beyond the years that Python supports.
    beyond = pa.array([2**62, 1_704_205_800_000], pa.int64()).cast(pa.timestamp("ms"))
    ticks, reported = read(a_file(tmp_path, time=beyond, price=[1.0] * 2, size=[1.0] * 2))
    assert (len(ticks), [row for row, _ in reported]) == (1, [1])


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary(8), pa.dictionary(pa.int8(), pa.binary())]
)
def test_bytes_are_the_text_that_they_spell(tmp_path: Path, kind: Any) -> None:
    size = kind.byte_width if pa.types.is_fixed_size_binary(kind) else 0

    def column(*values: bytes | None) -> Any:
        # ClickHouse pads a FixedString with zeros.
        padded = [None if value is None else value.ljust(size, b"\0") for value in values]
        if pa.types.is_dictionary(kind):
            return pa.array(padded, pa.binary()).dictionary_encode()
        return pa.array(padded, kind)

    path = a_file(
        tmp_path,
        time=pa.array([T0] * 3, pa.timestamp("ns")),
        symbol=column(b"AAPL", b"BRK.B", b"\xff"),
        side=column(b"buy", None, None),
        venue=column(b"N", b"P", None),
        id=column(b"a1", "é".encode(), None),
        price=column(b"187.15", b"1e-7", b"1"),
        size=[100.0] * 3,
    )
    (one, two), reported = read(path, None)
    assert (one.symbol, one.venue, one.id, one.side, one.price) == ("AAPL", "N", "a1", "B", 187.15)
    assert (two.symbol, two.venue, two.id, two.side, two.price) == ("BRK.B", "P", "é", None, 1e-7)
    assert [row for row, _ in reported] == [3]
    assert "symbol" in reported[0][1]


@pytest.mark.parametrize(
    ("clock", "fraction"),
    [
        (pa.array([34_200_123_456_789], pa.time64("ns")), ".123456789"),
        (pa.array([34_200_123_456], pa.time64("us")), ".123456"),
        (pa.array([34_200_123], pa.time32("ms")), ".123"),
        (pa.array([34_200], pa.time32("s")), ""),
        (pa.array([34_200_123_456_789], pa.duration("ns")), ".123456789"),
        (pa.array(["09:30:00.123456789"]), ".123456789"),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
@pytest.mark.parametrize(
    "date",
    [
        pa.array([datetime.date(2024, 1, 2)], pa.date32()),
        pa.array([datetime.date(2024, 1, 2)], pa.date64()),
        pa.array([datetime.datetime(2024, 1, 2)], pa.timestamp("us")),
        pa.array(["2024-01-02"]),
    ],
    ids=lambda value: str(value.type),
)
def test_a_date_and_a_time_of_day(tmp_path: Path, date: Any, clock: Any, fraction: str) -> None:
    path = a_file(tmp_path, date=date, time=clock, price=[1.0], size=[1.0])
    ((tick,), reported) = read(path)
    assert (tick.time.rfc3339(), reported) == (f"2024-01-02T09:30:00{fraction}Z", [])


def test_a_time_of_day_is_found_by_its_type(tmp_path: Path) -> None:
    date = pa.array([datetime.date(2024, 1, 2)], pa.date32())
    clock = pa.array([34_200_123_456_789], pa.time64("ns"))
    ((tick,), _) = read(a_file(tmp_path, date=date, tod=clock, price=[1.0], size=[1.0]))
    assert tick.time.rfc3339() == "2024-01-02T09:30:00.123456789Z"
    ((tick,), _) = read(a_file(tmp_path, date=date, price=[1.0], size=[1.0]))
    assert tick.time.rfc3339() == "2024-01-02T00:00:00Z"
    path = a_file(tmp_path, date=date, a=clock, b=clock, price=[1.0], size=[1.0])
    with pytest.raises(InvalidRecording, match=r"date holds only dates, .* in another: a, b;"):
        read(path)
    ((tick,), _) = read(path, time="date", clock="b")
    assert tick.time.rfc3339() == "2024-01-02T09:30:00.123456789Z"
    ((tick,), _) = read(path, time="date", clock="-")
    assert tick.time.rfc3339() == "2024-01-02T00:00:00Z"
    zone = TableFormat(TimeReader(None, "America/New_York"))
    path = a_file(tmp_path, date=date, price=[1.0], size=[1.0])
    (tick,) = ParquetRecording(path, "ES", table_format=zone)
    assert tick.time.rfc3339() == "2024-01-02T05:00:00Z"


def test_timestamps_next_to_a_date_are_not_overlooked(tmp_path: Path) -> None:
    """The column may be the time or when a row was loaded: only the user knows."""
    date = pa.array([datetime.date(2013, 9, 1)], pa.date32())
    stamp = pa.array([T0], pa.timestamp("ns"))
    path = a_file(tmp_path, date=date, when=stamp, price=[1640.25], size=[1.0])
    with pytest.raises(InvalidRecording, match=r"holds only dates, .* in another: when;"):
        read(path)
    assert read(path, time="when") == ([trade()], [])
    ((tick,), _) = read(path, time="date")
    assert tick.time.rfc3339() == "2013-09-01T00:00:00Z"
    path = a_file(tmp_path, date=date, timestamp=stamp, price=[1640.25], size=[1.0])
    assert read(path) == ([trade()], [])


@pytest.mark.parametrize("name", ["__index_level_0__", "__index_level_1__", "index"])
def test_an_index_without_a_name_is_the_time(tmp_path: Path, name: str) -> None:
    stamp = pa.array([T0], pa.timestamp("ns", "UTC"))
    path = a_file(tmp_path, price=[1640.25], size=[1], expiry=stamp, **{name: stamp})
    assert read(path) == ([trade()], [])
    path = a_file(tmp_path, price=[1640.25], size=[1], date=stamp.cast(pa.date32(), safe=False),
                  **{name: stamp})  # fmt: skip
    assert read(path) == ([trade()], [])
    path = a_file(tmp_path, price=[1640.25], size=[1], expiry=stamp)
    with pytest.raises(InvalidRecording, match=r"no time column among price, size, expiry; name"):
        read(path)
    assert read(path, time="expiry") == ([trade()], [])


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.decimal128(38, 9)])
def test_epochs_with_a_fraction(tmp_path: Path, kind: Any) -> None:
    # Each value is exact in its type.
    seconds = 1_704_205_824 if kind == pa.float32() else 1_704_205_800.5
    times = pa.array([seconds, None], pa.float64()).cast(kind)
    ticks, reported = read(a_file(tmp_path, time=times, price=[1.0] * 2, size=[1.0] * 2))
    assert [tick.time / 1e9 for tick in ticks] == [seconds]
    assert [row for row, _ in reported] == [2]


def test_nanoseconds_as_floats(tmp_path: Path) -> None:
    ((tick,), _) = read(a_file(tmp_path, time=[float(T0)], price=[1.0], size=[1.0]))
    assert tick.time == int(float(T0))


def test_fields_of_structs_are_columns(tmp_path: Path) -> None:
    stamp = pa.array([T0, T0], pa.timestamp("ns"))
    trades = [{"price": 1640.25, "size": 1}, None]
    path = a_file(tmp_path, timestamp=stamp, trade=trades, other=[{"deep": {"x": "NYSE"}}] * 2)
    assert read(path, venue="other.deep.x")[0] == [trade(venue="NYSE")]
    sides = [{"price": 99.5, "size": 3.0}], [{"price": 100.5, "size": 2.0}]
    ((tick,), _) = read(a_file(tmp_path, ts=stamp[:1], bid=sides[0], ask=sides[1]))
    assert (tick.bid_price, tick.bid_size, tick.ask_price, tick.ask_size) == (99.5, 3, 100.5, 2)


def test_numbers_in_place_of_text(tmp_path: Path) -> None:
    # Pandas converts integers to floats if one is missing.
    times = pa.array([T0] * 2, pa.timestamp("ns"))
    path = a_file(tmp_path, time=times, id=[7.0, None], price=[1640.25] * 2, size=[1] * 2)
    assert read(path)[0] == [trade(id="7"), trade()]


def test_short_floats_are_the_decimals_that_they_stand_for(tmp_path: Path) -> None:
    times = pa.array([T0, None], pa.timestamp("ns"))
    prices = pa.array([187.15, None], pa.float32())
    ((tick,), _) = read(a_file(tmp_path, time=times, price=prices, size=[1, 1]))
    assert tick.price == 187.15


def test_a_timestamp_next_to_a_date_is_not_a_time_of_day(tmp_path: Path) -> None:
    date = pa.array([datetime.date(2013, 9, 1)], pa.date32())
    stamp = pa.array([T0], pa.timestamp("ns"))
    path = a_file(tmp_path, date=date, time=stamp, price=[1640.25], size=[1])
    assert read(path) == ([trade()], [])


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32(), pa.decimal128(19, 9)])
def test_prices_of_databento_are_in_their_unit_unless_they_are_whole(
    tmp_path: Path, kind: Any
) -> None:
    stamp = pa.array([T0], pa.timestamp("ns", "UTC"))
    head = {"ts_event": stamp, "rtype": [0], "publisher_id": [1], "action": ["T"], "size": [1]}
    path = a_file(tmp_path, **head, price=pa.array([4770.0], pa.float64()).cast(kind))
    assert read(path)[0] == [trade(price=4770.0)]
    path = a_file(tmp_path, **head, price=[4_770_500_000_000])
    assert read(path)[0] == [trade(price=4770.5)]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(unit=st.sampled_from(["ms", "us", "ns"]), value=st.integers(-(2**63) + 1, 2**63 - 1))
def test_a_timestamp_is_exact_or_its_row_is_bad(tmp_path: Path, unit: str, value: int) -> None:
    stamps = pa.array([value], pa.int64()).cast(pa.timestamp(unit))
    ticks, reported = read(a_file(tmp_path, time=stamps, price=[1.0], size=[1.0]))
    ns = value * {"ms": 10**6, "us": 1000, "ns": 1}[unit]
    if -(2**63) <= ns < 2**63:
        assert ([tick.time for tick in ticks], reported) == ([ns], [])
    else:
        assert (ticks, [row for row, _ in reported]) == ([], [1])
