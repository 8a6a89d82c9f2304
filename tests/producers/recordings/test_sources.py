from __future__ import annotations

import gzip
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producers.recordings import csv as recordings
from producers.recordings.csv import CsvRecording
from producers.recordings.files import Recording
from producers.recordings.formats import open_recording
from producers.simulation.merging import MergedSource, parse_patterns
from tests.builders import T0, trades
from tests.conftest import ES_TRADES
from tests.producers.venues.recorded import BINANCE, COINBASE, needs_captures
from tests.tickcast.tapes.builders import write
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.playback import TickSource
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

BEGIN = 1_378_054_800
"""The times of these files count from here, in seconds since 1970."""


def csv(path: Path, *rows: tuple[float, str], pack: object = None) -> TickSource[Tick]:
    text = "time,symbol,price,size\n" + "".join(f"{BEGIN + t:.3f},{s},1,1\n" for t, s in rows)
    path.write_bytes(text.encode() if pack is None else pack(text.encode()))  # type: ignore[operator]
    return open_recording(path, None, {}, lambda line, error: pytest.fail(error))


def seen(source: TickSource[Tick], start: float | None = None) -> list[tuple[float, str]]:
    at = None if start is None else seconds(start)
    return [((tick.time - seconds(0)) / 1e9, tick.symbol) for tick in source.read(at)]


def seconds(value: float) -> Time:
    return Time(BEGIN * 10**9 + round(value * 1e9))


def from_start(ticks: list[Tick], start: Time) -> list[Tick]:
    """Return the ticks from the first one whose time is not before `start`, as documented."""
    place = next((n for n, tick in enumerate(ticks) if tick.time >= start), len(ticks))
    return ticks[place:]


def test_several_files_are_merged_in_a_stable_order(tmp_path: Path) -> None:
    one = csv(tmp_path / "1", (1, "A"), (2, "A"), (2, "B"), (5, "A"))
    two = csv(tmp_path / "2", (2, "C"), (3, "C"), (9, "C"))
    both = MergedSource([one, two])
    assert (both.first, both.last) == (seconds(1), seconds(9))
    expected = [(1, "A"), (2, "A"), (2, "B"), (2, "C"), (3, "C"), (5, "A"), (9, "C")]
    assert seen(both) == expected
    assert seen(both, 2.5) == expected[4:]
    assert [symbol for _, symbol in seen(MergedSource([two, one]))][:3] == ["A", "C", "A"]


def test_an_unordered_file_keeps_its_order(tmp_path: Path) -> None:
    one = csv(tmp_path / "1", (1, "A"), (4, "A"), (2, "A"), (6, "A"))
    two = csv(tmp_path / "2", (3, "B"), (5, "B"))
    expected = [(1, "A"), (3, "B"), (4, "A"), (2, "A"), (5, "B"), (6, "A")]
    assert seen(MergedSource([one, two])) == expected


def test_symbols_are_selected(tmp_path: Path) -> None:
    source = csv(tmp_path / "1", (1, "A"), (2, "BTC-USD"), (3, "BTC-EUR"), (4, "B"))
    chosen = MergedSource([source], parse_patterns("A, BTC-*"))
    assert [symbol for _, symbol in seen(chosen)] == ["A", "BTC-USD", "BTC-EUR"]
    assert (chosen.first, chosen.last) == (source.first, source.last)
    for text in ("", "A,,B", "a b", "*A"):
        with pytest.raises(ValueError, match="is not a symbol"):
            parse_patterns(text)


def test_nothing_is_read_beyond_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "1"
    path.write_text(f"time,symbol,price,size\n{BEGIN + 1},A,1,1\n{BEGIN + 2},A,1,1\nx,A,1,1\n")
    source = MergedSource(
        [CsvRecording(path, None, on_bad_row=lambda *row: pytest.fail(str(row)))], limit=2
    )
    assert len(list(source.read(None))) == 2


@pytest.mark.parametrize("pack", [None, gzip.compress])
@given(
    times=st.lists(st.integers(0, 50), min_size=1, max_size=60),
    start=st.integers(-1, 51),
    rows=st.integers(1, 7),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_reading_from_any_time_misses_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pack: object,
    times: list[int],
    start: int,
    rows: int,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(recordings, "BOOKMARK_ROWS", rows)
        patch.setattr(recordings, "_BOOKMARKS_MAX", 5)
        source = csv(tmp_path / "f", *((each, f"S{n}") for n, each in enumerate(times)), pack=pack)
        whole = list(source.read(None))
        assert (source.first, source.last) == (whole[0].time, max(tick.time for tick in whole))
        found = from_start(list(source.read(seconds(start))), seconds(start))
        assert found == from_start(whole, seconds(start))


@given(
    times=st.lists(st.integers(0, 50), min_size=1, max_size=60),
    start=st.integers(-1, 51),
    rows=st.integers(1, 7),
    exact=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_reading_from_any_time_in_parquet_misses_nothing(
    tmp_path: Path, times: list[int], start: int, rows: int, exact: bool
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    column = pyarrow.array(times, pyarrow.timestamp("s"))
    if not exact:
        column = pyarrow.array([Time(each * 10**9).rfc3339() for each in times])
    table = pyarrow.table(
        {"time": column, "symbol": [f"S{n}" for n in range(len(times))],
         "price": [1.5] * len(times), "size": [2] * len(times)}
    )  # fmt: skip
    parquet.write_table(table, tmp_path / "f", row_group_size=rows)
    source = open_recording(tmp_path / "f", None, {}, lambda line, error: pytest.fail(error))
    whole = list(source.read(None))
    assert [tick.time for tick in whole] == [each * 10**9 for each in times]
    assert (source.first, source.last) == (whole[0].time, max(tick.time for tick in whole))
    found = from_start(list(source.read(seconds(start))), seconds(start))
    assert found == from_start(whole, seconds(start))


class InMemory(Recording):
    """A recording that can't be read from the middle."""

    def __init__(self, path: Path, ticks: Sequence[Tick]) -> None:
        super().__init__(path)
        self._ticks = ticks

    def _read(self, start: Time | None) -> Iterator[Tick]:
        return iter(self._ticks)


def test_recordings_without_an_index_are_read_from_the_beginning(tmp_path: Path) -> None:
    ticks = trades(5)
    source = InMemory(tmp_path, ticks)
    assert (source.first, source.last) == (T0, T0 + 4)
    assert list(source.read(Time(T0 + 3))) == ticks
    single = InMemory(tmp_path, ticks[:1])
    assert (single.first, single.last) == (T0, T0)
    with pytest.raises(InvalidRecording, match="contains no ticks"):
        _ = InMemory(tmp_path, []).first


@needs_captures
@pytest.mark.parametrize(("path", "count"), [(COINBASE, 214), (BINANCE, 86)])
def test_captures_are_recognised_by_their_content(path: Path, count: int) -> None:
    source = open_recording(path, None, {}, lambda line, error: pytest.fail(error))
    ticks = list(source.read(None))
    assert len(ticks) == count
    assert (source.first, source.last) == (ticks[0].time, max(tick.time for tick in ticks))
    assert list(source.read(source.last)) == ticks


def test_bookmarks_avoid_most_of_the_reading(tmp_path: Path) -> None:
    source = csv(tmp_path / "f", *((each / 10, "A") for each in range(10_000)))
    assert source.last == seconds(999.9)
    assert len(list(source.read(seconds(999)))) < 3000


def test_lines_that_end_in_another_way_are_read_from_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(
        b"time,price,size\r" + b"1378054801,1,1\r1378054802,1,1\n1378054803,1,1\r\n" * 2000
    )
    recording = CsvRecording(path, "A")
    assert len(list(recording.read(seconds(3)))) == 6000


def test_bad_rows_are_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "f"
    rows = "1378054801,1,1\n1378054802,x,1\n1378054803,1,1\nx,1,1\n"
    path.write_text("time,price,size\n" + rows)
    reported: list[int] = []
    recording = open_recording(path, "A", {}, lambda line, error: reported.append(line))
    assert (recording.first, recording.last) == (seconds(1), seconds(3))
    for _ in range(3):
        assert len(list(recording.read(None))) == 2
    assert reported == [3, 5]


def test_a_file_without_times_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("time,price,size\nx,1,1\n")
    with pytest.raises(InvalidRecording, match="no row has a time"):
        CsvRecording(path, "A").scan(lambda position: None)


def test_damage_ends_the_scan_and_is_reported_on_reading(tmp_path: Path) -> None:
    path = tmp_path / "f.gz"
    rows = "".join(f"{BEGIN + n},{n % 977 * 1.37},1\n" for n in range(1, 20_000))
    path.write_bytes(gzip.compress(("time,price,size\n" + rows).encode())[:-4000])
    recording = CsvRecording(path, "A")
    last = recording.last
    assert last > seconds(10)
    played: list[Tick] = []
    with pytest.raises(InvalidRecording, match="damaged after line"):
        played.extend(recording.read(None))
    assert seconds(10) < played[-1].time <= last


def test_a_tape_is_recognised_by_its_content_and_loses_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    write(path, [trades(3, first_seq=7), trades(2, "NQ", first_seq=1)])
    path = path.rename(tmp_path / "whatever")
    tape = open_recording(path, None, {}, lambda line, error: pytest.fail(error))
    assert (tape.first, tape.last) == (T0, T0 + 2)
    assert list(tape.read(None)) == [*trades(3), *trades(2, "NQ")]
    assert [tick.symbol for tick in tape.read(Time(T0 + 1))] == ["ES", "ES", "NQ"]


def test_an_empty_tape_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl.zst", [])
    with pytest.raises(InvalidRecording, match="contains no ticks"):
        open_recording(tmp_path / "a.jsonl.zst", None, {}, lambda line, error: None)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"\x28\xb5\x2f\xfdnonsense", b"\x1f\x8b", b'{"x":1}\n', b"\xff\xfe"):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(InvalidRecording):
            open_recording(tmp_path / "f", "A", {}, lambda line, error: None)
    with pytest.raises(InvalidRecording, match="No such file"):
        open_recording(tmp_path / "none", "A", {}, lambda line, error: None)


@pytest.mark.skipif(not ES_TRADES.exists(), reason="no recording of ES trades beside the checkout")
def test_a_seek_in_half_a_million_rows_takes_less_than_a_second() -> None:
    recording = CsvRecording(ES_TRADES, "ES")
    recording.scan(lambda position: None)
    start = Time(recording.last - 60 * 10**9)
    began = time.process_time()
    tick = next(tick for tick in recording.read(start) if tick.time >= start)
    assert tick.time - start < 60 * 10**9
    assert time.process_time() - began < 1
