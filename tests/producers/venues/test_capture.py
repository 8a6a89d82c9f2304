"""Frames that are captured, and read again as a recording."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from producers.recordings.captures import CaptureRecording, is_capture
from producers.venues import capture as module
from producers.venues.capture import CaptureDirectory, CaptureFile
from producers.venues.coinbase import Coinbase
from tests.conftest import until
from tests.producers.venues.simulator import Step, simulated
from tests.producers.venues.test_client import running
from tests.producers.venues.test_normalizer import match
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import Trade
from tickcast.wire.times import Time

URL = "wss://ws-feed.exchange.coinbase.com"
HEAD = f"{URL} <-> 1618677816.8434298\n".encode()


def at(seconds: int) -> Time:
    return Time((1_618_677_816 + seconds) * 10**9)


def ids_in(path: Path) -> tuple[list[object], list[tuple[int, str]]]:
    bad: list[tuple[int, str]] = []
    recording = CaptureRecording(path, lambda *row: bad.append(row))
    return [tick.id for tick in recording if isinstance(tick, Trade)], bad


async def test_a_capture_can_be_replayed(tmp_path: Path) -> None:
    scripts: list[list[bytes | Step]] = [
        [match(1), b"{", match(2), Step.CUT],
        [match(2, "last_match"), match(3)],
    ]
    capture = CaptureDirectory(tmp_path / "new" / "dir", Coinbase())
    async with simulated(*scripts) as venue, running(venue.url, capture=capture) as run:
        await until(lambda: run.ids == [1, 2, 3])
    first, second = sorted((tmp_path / "new" / "dir").iterdir())
    found, bad = ids_in(first)
    assert found == [1, 2]
    assert [line for line, _ in bad] == [4]
    assert ids_in(second) == ([2, 3], [])
    lines = gzip.decompress(first.read_bytes()).decode().splitlines()
    assert lines[0].startswith(f"{venue.url}#coinbase <-> ")
    assert lines[1].startswith(f"{venue.url}#coinbase <- ")
    assert '"subscribe"' in lines[1]
    assert len(lines) == 5


async def test_a_file_whose_writer_was_killed_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FLUSH_AFTER_S", 0.01)
    with CaptureDirectory(tmp_path, Coinbase()).open_file(URL) as file:
        assert file is not None
        (path,) = tmp_path.iterdir()
        before = path.stat().st_size
        for number in range(100):
            file.write_received(match(number), at(number))
        await until(lambda: path.stat().st_size > before)
        whole = path.read_bytes()
        file.write_received(match(100), at(100))
    path.write_bytes(whole)
    assert is_capture(path)
    assert ids_in(path) == (list(range(100)), [(102, "cut off")])
    path.write_bytes(whole[:-20])
    found, bad = ids_in(path)
    assert found == list(range(len(found)))
    assert [words for _, words in bad] == ["cut off"] or len(bad) == 2


async def test_the_buffer_is_bounded(tmp_path: Path) -> None:
    with CaptureDirectory(tmp_path, Coinbase()).open_file(URL) as file:
        assert file is not None
        for number in range(2_000):
            file.write_received(match(number) + b" " * 200, at(number))
            assert len(file._buffer) < 64 * 1024
    (path,) = tmp_path.iterdir()
    assert ids_in(path) == (list(range(2_000)), [])


async def test_frames_of_several_lines_take_one(tmp_path: Path) -> None:
    with CaptureDirectory(tmp_path, Coinbase()).open_file(URL) as file:
        assert file is not None
        file.write_received(match(1).replace(b",", b",\r\n"), at(1))
    (path,) = tmp_path.iterdir()
    assert ids_in(path) == ([1], [])


async def test_connections_of_one_second_have_separate_files(tmp_path: Path) -> None:
    capture = CaptureDirectory(tmp_path, Coinbase())
    with capture.open_file(URL) as one, capture.open_file(URL) as other:
        assert one is not None
        assert other is not None
    assert len(list(tmp_path.iterdir())) == 2


FULL = Path("/dev/full")


@pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
async def test_a_full_disk_ends_only_the_capture(
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = CaptureFile(FULL.open("wb", buffering=0), URL, Time(0))  # noqa: ASYNC230
    file.write_received(match(1), Time(1))
    file.close()
    assert caplog.text.count("the capture has ended: ") == 1


async def test_a_missing_directory_ends_only_the_capture(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    capture = CaptureDirectory(tmp_path / "gone", Coinbase())
    (tmp_path / "gone").rmdir()
    async with simulated([match(1)]) as venue, running(venue.url, capture=capture) as run:
        await until(lambda: run.ids == [1])
    assert "no capture: " in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no capture"),
        (b"time,price\n", "no capture: its first line is not `URL <-> TIME`"),
        (b"wss://example.org <-> 1\n", "no known venue at b'wss://example.org'; known are binance"),
        (b"\x1f\x8b" + b"x" * 30, "a.txt: "),
    ],
)
def test_other_files_are_not_captures(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert is_capture(path) == content.startswith(b"wss:")
    with pytest.raises(InvalidRecording, match=message):
        CaptureRecording(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert not is_capture(tmp_path / "a")
    with pytest.raises(InvalidRecording, match="No such file"):
        CaptureRecording(tmp_path / "a")


def test_invalid_lines_are_reported_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(
        HEAD
        + b"1618677818: "
        + match(1)
        + b"\n\nnonsense\n1618677819: {\n9999999999999999999: "
        + match(2)
        + b"\nwss://example.org <-> 4\n1618677820: {}\n"
        + HEAD
        + b"1618677821: "
        + match(3)
    )
    found, bad = ids_in(path)
    assert found == [1, 3]
    assert [line for line, _ in bad] == [4, 5, 6, 7, 8]


def test_a_market_without_a_symbol_is_reported_once_per_capture(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    frames = b"".join(b"161867782%d: %b\n" % (n, match(n, symbol="龙-USD")) for n in range(2, 6))
    path.write_bytes(HEAD + frames + b"1618677829: " + match(9))
    assert ids_in(path) == ([9], [(2, "'\\u9f99-USD' is not the name of a market")])
