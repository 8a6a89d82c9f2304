from __future__ import annotations

import gzip
import sys
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producers.recordings import csv as recordings
from producers.recordings.columns import parse_columns
from producers.recordings.csv import CsvRecording
from producers.recordings.timestamps import parse_time
from tests.conftest import ES_TRADES
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import Quote, Trade
from tickcast.wire.times import Time

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ES = b"DateTime,Price,Volume\n2013-09-01 17:00:00.083,1640.25,8\n2013-09-01 17:00:00.101,1640.5,1\n"
EXPECTED = [
    Trade(symbol="ES", price=1640.25, size=8, time=Time.parse("2013-09-01T17:00:00.083Z")),
    Trade(symbol="ES", price=1640.5, size=1, time=Time.parse("2013-09-01T17:00:00.101Z")),
]


T = "137805480"
"""All digits but the last of a time in seconds since 1970."""


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
def test_compression_is_recognised_by_the_content(tmp_path: Path, pack: object) -> None:
    path = write(tmp_path / "file", pack(ES))  # type: ignore[operator]
    assert list(CsvRecording(path, "ES")) == EXPECTED


def test_a_recording_can_be_read_again(tmp_path: Path) -> None:
    recording = CsvRecording(write(tmp_path / "a.csv", ES), "ES")
    assert list(recording) == list(recording) == EXPECTED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "ts_event;symbol;price;qty;side;trade_id;exchange\n"
            "1378054800083000001;A;1.5;2;Sell;77;X\n",
            Trade(symbol="A", price=1.5, size=2, side="S", id="77", venue="X",
                  time=Time(1378054800083000001)),
        ),
        (
            "Timestamp\tTicker\tBid Price\tBid Size\tAsk Price\tAsk Size\n"
            "1378054800.000000001\tA\t1\t2\t3\t4\n",
            Quote(symbol="A", bid_price=1, bid_size=2, ask_price=3, ask_size=4,
                  time=Time(1378054800000000001)),
        ),
        (
            '\ufeff"Date","Time","Last","Amount","Sym"\n2013-09-01,17:00:00.5,1,2,"A"\n',
            Trade(symbol="A", price=1, size=2, time=Time.parse("2013-09-01T17:00:00.5Z")),
        ),
    ],
)  # fmt: skip
def test_columns_are_known_by_their_usual_names(
    tmp_path: Path, text: str, expected: object
) -> None:
    assert list(CsvRecording(write(tmp_path / "a.csv", text), None)) == [expected]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "when,px_last,n\n1378054800,1,2\n")
    with pytest.raises(InvalidRecording, match="no time column among when, px_last, n"):
        CsvRecording(path, "A")
    columns = parse_columns("time=when,price=px_last,size=n")
    (tick,) = CsvRecording(path, "A", columns)
    assert tick == Trade(symbol="A", price=1, size=2, time=Time(1378054800 * 10**9))


def test_trades_and_quotes_in_one_file(tmp_path: Path) -> None:
    text = f"time,price,size,bid,ask\n{T}1,5,1,,\n{T}2,,,4,6\n{T}3,5,1,4,6\n"
    kinds = [type(tick).__name__ for tick in CsvRecording(write(tmp_path / "a.csv", text), "A")]
    assert kinds == ["Trade", "Quote", "Trade", "Quote"]


def test_bad_rows_are_reported_and_skipped(tmp_path: Path) -> None:
    rows = ("1,5,1", "x", "3,five,1", "4,5", "", "5,nan,1", "6,5,-1", "7,5,1")
    text = "\n".join(("time,price,size", *(row and T + row for row in rows)))
    bad: list[tuple[int, str]] = []
    recording = CsvRecording(
        write(tmp_path / "a.csv", text),
        "A",
        on_bad_row=lambda line, error: bad.append((line, error)),
    )
    assert [tick.time for tick in recording] == [int(f"{T}{n}") * 10**9 for n in (1, 7)]
    assert [line for line, _ in bad] == [3, 4, 5, 7, 8]
    assert "is not a time such as" in bad[0][1]
    assert "price 'five' is not a number" in bad[1][1]
    assert "columns" in bad[2][1]
    assert "finite" in bad[3][1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"a,b\n", "no time column"),
        (b"time,b\n", "neither price and size nor bid and ask"),
        (b"time,price,size\n", "name the symbol"),
        (b"\xff\xff\x00", "not UTF-8"),
        (gzip.compress(ES, mtime=0)[:10] + b"\xff" * 20, "decompressing"),
        (b"x" * 140_000, "field larger than"),
        (b"\x1f\x8b\x00\x00", "Unknown compression method|ended before"),
        (b"\x28\xb5\x2f\xfd\x00", "ended before"),
    ],
)
def test_files_that_are_not_recordings(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "a.csv", content)
    with pytest.raises(InvalidRecording, match=message) as caught:
        CsvRecording(path, None)
    assert str(path) in str(caught.value)


def test_damage_in_the_middle_is_reported_with_its_place(tmp_path: Path) -> None:
    packed = gzip.compress(ES * 1000, compresslevel=0)
    path = write(tmp_path / "a.csv.gz", packed[: len(packed) // 2])
    ticks = iter(CsvRecording(path, "ES"))
    assert next(ticks) == EXPECTED[0]
    with pytest.raises(InvalidRecording, match="damaged after line"):
        list(ticks)


def test_damage_that_only_the_decompression_notices(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(ES * 10_000, compresslevel=0))
    place = 10  # The start of the first block; its length follows its first byte.
    while place < len(packed) // 2:
        place += 5 + int.from_bytes(packed[place + 1 : place + 3], "little")
    packed[place] = 0xFF
    ticks = iter(CsvRecording(write(tmp_path / "a.csv.gz", bytes(packed)), "ES"))
    assert next(ticks) == EXPECTED[0]
    with pytest.raises(InvalidRecording, match=r"damaged after line .*decompressing"):
        list(ticks)


def test_a_missing_file() -> None:
    with pytest.raises(InvalidRecording, match="No such file"):
        CsvRecording(Path("/nonexistent"), "A")


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1378054800", 1378054800 * 10**9),
        ("1378054800.083", 1378054800083 * 10**6),
        ("1378054800.123456789", 1378054800123456789),
        ("1378054800083", 1378054800083 * 10**6),
        ("1378054800083.5", 13780548000835 * 10**5),
        ("1378054800083123", 1378054800083123 * 10**3),
        ("1378054800083123456", 1378054800083123456),
        ("1378054800083123456.0", 1378054800083123456),
        ("2013-09-01 17:00:00", 1378054800 * 10**9),
        ("2013-09-01T17:00:00.123456789Z", 1378054800123456789),
        ("2013-09-01T17:00:00.123456789+01:00", 1378051200123456789),
    ],
)
def test_times_keep_all_their_digits(text: str, ns: int) -> None:
    assert parse_time(text) == ns


@pytest.mark.parametrize("text", ["", "soon", "1378054800083123456.5", "-5", "1e9x", "9" * 30])
def test_invalid_times(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


@pytest.mark.parametrize("text", ["", "time", "time=", "when=x", "time=a,,"])
def test_column_lists_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="WHAT=NAME"):
        parse_columns(text)


def written(time: Time) -> str:
    """Return a time as the recording writes it."""
    moment = datetime.fromtimestamp(time / 1e9, UTC).replace(tzinfo=None)
    return moment.isoformat(sep=" ", timespec="milliseconds")


@pytest.mark.skipif(
    not ES_TRADES.exists(), reason="the recorded trades are not beside this checkout"
)
def test_real_trades_are_read_exactly() -> None:
    with gzip.open(ES_TRADES, "rt") as lines:
        next(lines)
        rows = [line.rstrip("\n").split(",") for line in islice(lines, 100_000)]
    recording = islice(CsvRecording(ES_TRADES, "ES"), len(rows))
    for n, (tick, (time, price, volume)) in enumerate(zip(recording, rows, strict=True)):
        assert isinstance(tick, Trade)
        assert (tick.price, tick.size) == (float(price), float(volume))
        if n % 10 == 0:  # Writing times takes longer than reading them.
            assert written(tick.time) == time


ROWS = st.lists(
    st.sampled_from(
        ["1,5,1,,", "2,,,4,6", "2,5,1,4,6", "3,,,,", "x,5,1,,", "4,five,1,,", "5,1", "",
         "6,-1,-1,,", '7,"5","1",,', '"8\n",5,1,,', "9,5,1,nan,6", "1.5,5,1, ,", "7,5,1,,,,spare",
         "7,5,1,4,", "7,5,1,,6", "7,,,4,", "7,5,1,,,,", "7,1_5,1,,", "7,5,,,", "7,5,1,4,x"]
    ).map(lambda row: f'"{T}{row[1:]}' if row[:1] == '"' else row and T + row),
    max_size=20,
)  # fmt: skip


@given(rows=ROWS, size=st.integers(2, 7))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_rows_in_blocks_are_read_as_they_would_be_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[str], size: int
) -> None:
    path = write(tmp_path / "a.csv", "\n".join(["time,price,size,bid,ask", *rows]))
    found: list[list[object]] = []
    for block in (1, size):
        happened: list[object] = []
        recording = CsvRecording(path, "A", on_bad_row=lambda *bad, to=happened: to.append(bad))
        with monkeypatch.context() as patch:
            patch.setattr(recordings, "_BLOCK_ROWS", block)
            happened.extend(recording)
        found.append(happened)
    assert found[0] == found[1], "the same ticks and complaints, in the same order"


def test_rows_before_damage_are_read(tmp_path: Path) -> None:
    packed = gzip.compress(ES * 10, compresslevel=0)
    ticks = iter(CsvRecording(write(tmp_path / "a.csv.gz", packed[:-20]), "ES"))
    assert next(ticks) == EXPECTED[0]
    found: list[object] = []
    with pytest.raises(InvalidRecording, match=r"damaged after line \d+"):
        found.extend(ticks)
    assert len(found) > 10
