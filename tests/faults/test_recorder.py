"""A recorder that is killed, or too slow, while the recorded trades are replayed at full speed."""

from __future__ import annotations

import asyncio
import signal
from itertools import islice
from pathlib import Path

import pytest

from producers.recordings.csv import CsvRecording
from tests.cli.conftest import Cli
from tests.conftest import ES_TRADES
from tests.faults.conftest import Scale
from tests.faults.source import needs_recording
from tickcast.tapes import Tape, TapeLibrary
from tickcast.tapes.format import encode_tick
from tickcast.tapes.stats import TapeStats

pytestmark = [pytest.mark.faults, needs_recording]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kept", [1, 20], ids=["all is kept", "a twentieth is kept"])
async def test_killed_and_started_again_it_misses_nothing_or_names_it(
    cli: Cli, scale: Scale, tmp_path: Path, kept: int
) -> None:
    count = scale.pick(20_000, 200_000)
    cli.environment["TICKCAST_HISTORY_TICKS"] = str(count // kept)
    async with cli.serving() as (address, _):
        url = address.replace("http", "ws") + "/stream"
        words = ("record", url, "--trades", "ES", "--out", str(tmp_path), "--flush", "200ms")
        first = await cli.start(*words)
        library = TapeLibrary(tmp_path)
        await _until_recorded(library, tape=0, seq=0)
        replay = await cli.start(
            "replay", str(ES_TRADES), "--symbol", "ES", "--speed", "max", "--limit", str(count)
        )
        await _until_recorded(library, tape=0, seq=count // 5)
        first.kill()
        await first.communicate()
        second = await cli.start(*words)
        _, err = await asyncio.wait_for(replay.communicate(), 100)
        assert replay.returncode == 0, err
        await _until_recorded(library, tape=1, seq=count)
        second.send_signal(signal.SIGTERM)
        await asyncio.wait_for(second.communicate(), 20)
    one, two = (library.open(id_) for id_ in library.list())
    assert not one.manifest.complete
    assert two.manifest.complete
    got = [tick.seq for tape in (one, two) for tick in tape.read()]
    assert got == sorted(set(got), key=lambda seq: seq or 0)
    lost = {
        number
        for gap in one.manifest.gaps + two.manifest.gaps
        if gap.first_seq and gap.last_seq
        for number in range(gap.first_seq, gap.last_seq + 1)
    }
    assert lost.isdisjoint(got)
    assert set(got) | lost == set(range(1, count + 1))
    if kept == 1:
        assert lost == set()
        assert _content(one, two) == _content_of_the_recording(count)


@pytest.mark.timeout(120)
async def test_too_slow_it_misses_nothing(cli: Cli, scale: Scale, tmp_path: Path) -> None:
    """It is disconnected, and resumes to get the ticks that other clients would have skipped."""
    count = scale.pick(20_000, 200_000)
    cli.environment["TICKCAST_HISTORY_TICKS"] = str(count)
    async with cli.serving() as (address, _):
        url = address.replace("http", "ws") + "/stream"
        recorder = await cli.start("record", url, "--trades", "ES", "--out", str(tmp_path))
        library = TapeLibrary(tmp_path)
        await _until_recorded(library, tape=0, seq=0)
        recorder.send_signal(signal.SIGSTOP)
        words = ("--symbol", "ES", "--speed", "max", "--limit", str(count))
        done = await cli.run("replay", str(ES_TRADES), *words, timeout_s=60)
        assert done.code == 0, done
        recorder.send_signal(signal.SIGCONT)
        await _until_recorded(library, tape=0, seq=count)
        recorder.send_signal(signal.SIGINT)
        await asyncio.wait_for(recorder.communicate(), 20)
    tape = library.open(library.list()[0])
    assert tape.manifest.gaps == []
    assert tape.manifest.ticks == count


async def _until_recorded(library: TapeLibrary, tape: int, seq: int) -> None:
    """Wait until a manifest of that tape has a stream that has reached this number."""
    async with asyncio.timeout(100):
        while True:
            ids = library.list()
            if len(ids) > tape and library.path_of(ids[tape]).stat().st_size:
                manifest = library.open(ids[tape]).manifest
                if any((each.seq or 0) >= seq for each in manifest.streams):
                    return
            await asyncio.sleep(0.1)


def _content(*tapes: Tape) -> str:
    stats = TapeStats()
    for tape in tapes:
        for tick in tape.read():
            stats.count_tick(tick, encode_tick(tick, None)[1])
    return stats.manifest([], 0, complete=True).content


def _content_of_the_recording(count: int) -> str:
    stats = TapeStats()
    for tick in islice(CsvRecording(ES_TRADES, "ES"), count):
        stats.count_tick(tick, encode_tick(tick, None)[1])
    return stats.manifest([], 0, complete=True).content
