"""The format: whatever is written can be read again, whatever happens to the end of the file."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import T0, bar, quote, trade, trades
from tests.tickcast.tapes.builders import TICKS, a_tape, in_a_folder, write
from tickcast.tapes import Tape, TapeLibrary, TapeWriter
from tickcast.tapes.format import FRAME_BYTES_MAX, EpochMark, GapMark, compress
from tickcast.tapes.manifest import encode_manifest, manifest_path, number_of, recording_id
from tickcast.wire.errors import InvalidTape, RecordingFailed, TapeNotFound
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import Tick, channel_of
from tickcast.wire.times import Time

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def test_a_tape_returns_the_ticks_that_were_written(tmp_path: Path) -> None:
    given_: list[Tick] = [
        *trades(3, first_seq=7),
        quote(seq=1),
        bar(seq=1),
        bar(timeframe="5s", seq=4),
    ]
    tape = a_tape(tmp_path, given_[:2], given_[2:])
    assert list(tape.read()) == given_
    assert (tape.id, tape.manifest.complete, tape.manifest.ticks) == ("a", True, 6)
    assert (tape.first, tape.last) == (T0, T0 + 2)
    assert (tape.manifest.feed, tape.manifest.source) == ("live", "ws://somewhere")
    channels = [(each.channel, each.ticks) for each in tape.manifest.streams]
    assert channels == [("bars", 1), ("bars:5s", 1), ("quotes", 1), ("trades", 3)]
    (es,) = (each for each in tape.manifest.streams if each.channel == "trades")
    assert (es.first_seq, es.last_seq, es.seq) == (7, 9, 9)
    records = [record for record in tape.records() if record.rx is not None]
    assert [record.rx for record in records] == [tick.time + 5 for tick in given_]


def test_lines_are_json_as_on_the_wire(tmp_path: Path) -> None:
    tape = a_tape(tmp_path, [trade(seq=1)])
    head, line = zstd.decompress(tape.path.read_bytes()).splitlines()
    assert json.loads(head) == {"T": "tape", "v": 1, "feed": "live", "source": "ws://somewhere"}
    assert line == (
        b'{"T":"t","S":"ES","p":1640.25,"s":1.0,"t":"2013-09-01T17:00:00.083Z","seq":1,'
        b'"rx":1378054800083000005}'
    )


def test_a_tape_without_its_manifest_is_the_same(tmp_path: Path) -> None:
    tape = a_tape(tmp_path, trades(3, first_seq=1), [], [quote(), quote("NQ")])
    manifest_path(tape.path).unlink()
    again = Tape.open(tape.path)
    assert not again.manifest.complete
    again.manifest.complete = True
    assert again.manifest == tape.manifest
    assert again.torn_bytes == 0


def test_the_content_hash_follows_the_documentation(tmp_path: Path) -> None:
    """Compute it as docs/recording.md describes, from the lines alone."""
    ticks: list[Tick] = [
        *trades(3, first_seq=7),
        quote(seq=1, conflated=3),
        trade("NQ", id='a,"seq":1}'),
    ]
    tape = a_tape(tmp_path, ticks)
    streams: dict[tuple[str, str], list[str]] = {}
    for line in zstd.decompress(tape.path.read_bytes()).decode().splitlines():
        fields = json.loads(line)
        channel = {"t": "trades", "q": "quotes"}.get(fields["T"])
        if channel is not None:
            end = max(line.rfind(',"seq":'), -1)
            end = line.rfind(',"rx":') if end < 0 else end
            streams.setdefault((channel, fields["S"]), []).append(line[:end] + "}\n")
    whole = "".join(
        f"{hashlib.sha256(''.join(lines).encode()).hexdigest()} {channel} {symbol}\n"
        for (channel, symbol), lines in sorted(streams.items())
    )
    assert hashlib.sha256(whole.encode()).hexdigest() == tape.manifest.content


def test_the_content_hash_depends_only_on_ticks(tmp_path: Path) -> None:
    es, nq = trades(3, first_seq=7), trades(2, "NQ")
    one = a_tape(tmp_path, es, nq).manifest.content
    path = tmp_path / "b.jsonl.zst"
    writer = TapeWriter(path, "other")
    writer.append_position("trades", "YM", "0665-a", 3)
    for tick in (nq[0], *trades(3), nq[1]):
        writer.append_tick(tick)
    writer.close()
    assert Tape.open(path).manifest.content == one
    assert a_tape(tmp_path, es[::-1], nq).manifest.content != one


@in_a_folder
@given(flushes=st.lists(TICKS, max_size=5), cut=st.floats(0, 1))
def test_a_file_truncated_anywhere_keeps_every_finished_flush(
    tmp_path: Path, flushes: list[list[Tick]], cut: float
) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.unlink(missing_ok=True)
    writer = TapeWriter(path, "live")
    writer.flush()
    ends = [(writer.stored_bytes, 0)]
    for ticks in flushes:
        for tick in ticks:
            writer.append_tick(tick)
        writer.flush()
        ends.append((writer.stored_bytes, ends[-1][1] + len(ticks)))
    writer.abandon()
    size = ends[0][0] + round(cut * (ends[-1][0] - ends[0][0]))
    os.truncate(path, size)
    whole = [count for end, count in ends if end <= size][-1]
    tape = Tape.open(path)
    assert list(tape.read()) == [tick for ticks in flushes for tick in ticks][:whole]
    assert tape.torn_bytes == size - max(end for end, _ in ends if end <= size)
    assert path.stat().st_size == size


@in_a_folder
@given(flushes=st.lists(TICKS, max_size=6), offset=st.integers(-1100, 1100))
def test_reading_from_a_time_skips_only_earlier_ticks(
    tmp_path: Path, flushes: list[list[Tick]], offset: int
) -> None:
    path = tmp_path / "a.jsonl.zst"
    write(path, flushes)
    start = Time(T0 + offset)
    begun: set[str] = set()
    wanted = []
    for tick in (tick for ticks in flushes for tick in ticks):
        if tick.time >= start or tick.symbol in begun:
            begun.add(tick.symbol)
            wanted.append(tick)
    tape = Tape.open(path)
    assert list(tape.read(start)) == wanted
    es = Coverage([Subscription("trades", "E*")])
    assert list(tape.read(start, es)) == [tick for tick in wanted if tick.symbol == "ES"]


def test_reading_from_a_time_skips_earlier_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    write(path, [[trade(time=Time(T0 + n))] for n in range(100)])
    tape = Tape.open(path)
    data = bytearray(path.read_bytes())
    data[:100] = bytes(100)
    path.write_bytes(data)
    assert [tick.time for tick in tape.read(Time(T0 + 98))] == [T0 + 98, T0 + 99]
    assert list(tape.read(Time(T0 + 100))) == []
    with pytest.raises(InvalidTape, match="the frame at byte 0 is damaged or missing"):
        list(tape.read())


def test_gaps_are_written_where_numbers_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.zst"
    writer = TapeWriter(path, "live")
    writer.append_position("trades", "ES", "0665-a", 4)
    for seq in (5, 6, 9):
        writer.append_tick(trade(seq=seq), rx=1)
    writer.append_tick(trade(seq=12, conflated=2), rx=2)
    writer.append_tick(trade(seq=3), rx=3)
    writer.close()
    manifest = Tape.open(path).manifest
    assert [(gap.first_seq, gap.last_seq, gap.reason) for gap in manifest.gaps] == [
        (7, 8, "missing")
    ]
    assert writer.stats.faults == ["trades/ES: 3 follows 12"]
    manifest_path(path).unlink()
    assert Tape.open(path).manifest.gaps == manifest.gaps
    marks = [item for item, _ in Tape.open(path).records() if isinstance(item, EpochMark | GapMark)]
    assert marks[0] == EpochMark(channel="trades", symbol="ES", epoch="0665-a", seq=4)
    (es,) = manifest.streams
    assert (es.epoch, es.seq) == ("0665-a", 3)


def bomb(size: int) -> bytes:
    return compress(b'{"T":"tape","v":1,"feed":"live"}\n' + b" " * size + b"\n")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "nothing was flushed"),
        (b"\n" * 1000, "not a tape"),
        (bomb(FRAME_BYTES_MAX), "not a tape"),
        (compress(b'{"T":"tape","v":2,"feed":"live"}\n'), "version 2 of the format"),
        (compress(b'{"T":"tape","v":1,"feed":"UP"}\n'), "invalid feed or source"),
        (compress(b'{"T":"t","S":"A","p":1,"s":1,"t":0}\n'), "does not begin with the head"),
        (compress(b'{"T":"tape","v":1,"feed":"live"}\n{"T":"x"}\n'), "Invalid value 'x'"),
        (compress(b'{"T":"tape","v":1,"feed":"live"}\n\n'), "malformed|truncated"),
    ],
)
def test_a_file_that_is_not_a_tape_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(content)
    with pytest.raises(InvalidTape, match=words):
        Tape.open(path)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (b"{}", "not a manifest"),
        (b"[" * 100_000, "not a manifest"),
        (b'"version": 1', "not a manifest"),
    ],
)
def test_invalid_manifests_are_rejected(tmp_path: Path, manifest: bytes, words: str) -> None:
    tape = a_tape(tmp_path, trades(3))
    manifest_path(tape.path).write_bytes(manifest)
    with pytest.raises(InvalidTape, match=words):
        Tape.open(tape.path)


def test_a_manifest_of_another_file_is_refused(tmp_path: Path) -> None:
    tape = a_tape(tmp_path, trades(3), trades(3))
    manifest = tape.manifest
    manifest.frames = manifest.frames[::-1]
    manifest_path(tape.path).write_bytes(encode_manifest(manifest))
    with pytest.raises(InvalidTape, match="its frames are not in order"):
        Tape.open(tape.path)
    a_tape(tmp_path, trades(3))
    os.truncate(tape.path, 100)
    with pytest.raises(InvalidTape, match=r"has 100 bytes, but \d+ in its manifest"):
        Tape.open(tape.path)


def test_a_full_disk_keeps_flushed_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.zst"
    writer = TapeWriter(path, "live")
    writer.append_tick(trade())
    writer.flush()
    real = os.write

    def full(number: int, data: memoryview) -> int:
        if len(data) < 60:
            raise OSError(28, "No space left on device")
        return real(number, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        writer.append_tick(trade("NQ", id="x" * 64))
        with pytest.raises(RecordingFailed, match=r"a\.jsonl\.zst: No space left on device"):
            writer.flush()
    writer.abandon()
    tape = Tape.open(path)
    assert [tick.symbol for tick in tape.read()] == ["ES"]
    assert tape.torn_bytes == 0


def test_a_deleted_file_is_noticed(tmp_path: Path) -> None:
    writer = TapeWriter(tmp_path / "a.jsonl.zst", "live")
    writer.flush()
    writer.path.unlink()
    writer.append_tick(trade())
    with pytest.raises(RecordingFailed, match="has been deleted"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_tapes_are_not_overwritten(tmp_path: Path) -> None:
    tape = a_tape(tmp_path, trades(1))
    with pytest.raises(RecordingFailed, match="File exists"):
        TapeWriter(tape.path, "live")


def test_large_flushes_become_several_frames(tmp_path: Path) -> None:
    tape = a_tape(tmp_path, trades(30_000))
    assert len(tape.manifest.frames) > 1
    assert sum(each.ticks for each in tape.manifest.frames) == 30_000
    assert len(list(tape.read())) == 30_000


def test_a_library_offers_only_files_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "tapes"
    folder.mkdir()
    tape = a_tape(tmp_path, trades(2))
    write(folder / "b.jsonl.zst", [trades(3)])
    (folder / "c.jsonl.zst").symlink_to(tape.path)
    (folder / "d.jsonl.zst").mkdir()
    (folder / "e.csv").write_text("")
    os.mkfifo(folder / "f.jsonl.zst")
    (folder / ".g.jsonl.zst").write_text("")
    library = TapeLibrary(folder)
    assert library.list() == ["b"]
    assert [channel_of(tick) for tick in library.open("b").read()] == ["trades"] * 3
    for name in ("", "..", "../a", "/a", "c", "d", "e", "f", ".g", "x" * 65, "b\n", "b\0"):
        with pytest.raises(TapeNotFound):
            library.open(name)
    with pytest.raises(TapeNotFound, match="No such file"):
        TapeLibrary(tmp_path / "none").list()
    with pytest.raises(InvalidTape, match="a symbolic link"):
        Tape.open(folder / "c.jsonl.zst")
    with pytest.raises(InvalidTape, match="not a regular file"):
        Tape.open(folder / "f.jsonl.zst")


def test_names_of_recordings_sort_in_order() -> None:
    name = recording_id("es-1-2", 7, Time(T0 + 1))
    assert name == "es-1-2-000007-20130901T170000Z"
    assert [number_of(name, feed) for feed in ("es-1-2", "es-1", "x")] == [7, None, None]
