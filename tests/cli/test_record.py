"""`tickcast record`, killed and started again."""

from __future__ import annotations

import asyncio
import resource
import signal
from itertools import islice
from pathlib import Path

import pytest

from feed.tapes import Library, Tape
from feed.tapes.ledger import Ledger
from feed.tapes.lines import encode_tick
from producers.recordings import CsvRecording
from tests.cli.conftest import Cli
from tests.conftest import ES_TRADES
from tests.faults.source import needs_recording

_COUNT = 200_000


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["http://x", "--trades", "A"], 2, "'http://x' does not begin with ws:// or wss://"),
        (["ws://x/stream"], 2, "nothing to record: name --trades, "),
        (["ws://x/stream", "--trades", "A B"], 2, "'A B' is no symbol"),
        (["ws://x/stream", "--channel", "news=A"], 2, "--channel: 'news' is none of trades,"),
        (["ws://x/stream", "--rotate", "0GB"], 2, "Invalid value for '--rotate': '0GB' is neither"),
        (["ws://x/stream", "--rotate", "x"], 2, "Invalid value for '--rotate': 'x' is no time"),
        (["ws://127.0.0.1:1/stream", "--trades", "A"], 1, "ws://127.0.0.1:1/stream: "),
    ],
)
async def test_errors_are_one_line(
    cli: Cli, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    done = await cli.run("record", *words, "--out", str(tmp_path / "tapes"))
    assert done.code == code, done
    assert done.err.startswith(f"tickcast: {message}"), done
    assert done.err.count("\n") == 1, done


async def test_a_folder_that_cannot_be_made_is_an_error(cli: Cli) -> None:
    done = await cli.run("record", "ws://x/stream", "--trades", "A", "--out", "/dev/null/tapes")
    assert (done.code, done.err) == (1, "tickcast: /dev/null/tapes: Not a directory\n")


async def test_it_ends_by_limit_duration_and_interrupt(cli: Cli, tmp_path: Path) -> None:
    async with cli.serving("demo") as (address, _):
        url = address.replace("http", "ws") + "/stream"
        words = ("record", url, "--trades", "*", "--quotes", "*", "--out", str(tmp_path))
        done = await cli.run(*words, "--limit", "20")
        assert done.code == 0
        assert done.err.startswith("tickcast: recorded 20 ticks, ")
        assert done.err.endswith(" bytes in 1 tape, 0 gaps\n")
        assert done.out == ""
        done = await cli.run(*words, "--duration", "300ms", "--encoding", "msgpack")
        assert done.code == 0
        recorder = await cli.start(*words)
        library = Library(tmp_path)
        async with asyncio.timeout(20):
            while len(library.list()) < 3:
                await asyncio.sleep(0.02)
        recorder.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(recorder.communicate(), 10)
        assert recorder.returncode == 130
        assert b"recorded " in err
    tapes = [library.open(id_) for id_ in library.list()]
    assert all(tape.manifest.complete for tape in tapes)
    assert tapes[0].manifest.ticks == 20


@needs_recording
@pytest.mark.timeout(180)
@pytest.mark.parametrize("history_ticks", [_COUNT, 10_000])
async def test_killed_and_started_again_it_misses_nothing_or_names_it(
    cli: Cli, tmp_path: Path, history_ticks: int
) -> None:
    cli.environment["TICKCAST_HISTORY_TICKS"] = str(history_ticks)
    async with cli.serving() as (address, _):
        url = address.replace("http", "ws") + "/stream"
        words = ("record", url, "--trades", "ES", "--out", str(tmp_path), "--flush", "200ms")
        first = await cli.start(*words)
        library = Library(tmp_path)
        await _until_recorded(library, tape=0, seq=0)
        replay = await cli.start(
            "replay", str(ES_TRADES), "--symbol", "ES", "--speed", "max", "--limit", str(_COUNT)
        )
        await _until_recorded(library, tape=0, seq=40_000)
        first.kill()
        await first.communicate()
        second = await cli.start(*words)
        _, err = await asyncio.wait_for(replay.communicate(), 100)
        assert replay.returncode == 0, err
        await _until_recorded(library, tape=1, seq=_COUNT)
        second.send_signal(signal.SIGTERM)
        await asyncio.wait_for(second.communicate(), 20)
    one, two = (library.open(id_) for id_ in library.list())
    assert not one.manifest.complete
    assert two.manifest.complete
    assert one.manifest.gaps == []
    got = [tick.seq for tape in (one, two) for tick in tape.read()]
    assert got == sorted(set(got), key=lambda seq: seq or 0)
    lost = {
        number
        for gap in two.manifest.gaps
        if gap.first_seq and gap.last_seq
        for number in range(gap.first_seq, gap.last_seq + 1)
    }
    assert lost.isdisjoint(got)
    assert set(got) | lost == set(range(1, _COUNT + 1))
    if history_ticks == _COUNT:
        assert lost == set()
        assert _content(one, two) == _content_of_the_recording()


@needs_recording
@pytest.mark.timeout(120)
async def test_a_recorder_that_was_too_slow_misses_nothing(cli: Cli, tmp_path: Path) -> None:
    """It is disconnected, and comes back for what others would have skipped."""
    count = 100_000
    cli.environment["TICKCAST_HISTORY_TICKS"] = str(count)
    async with cli.serving() as (address, _):
        url = address.replace("http", "ws") + "/stream"
        recorder = await cli.start("record", url, "--trades", "ES", "--out", str(tmp_path))
        library = Library(tmp_path)
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


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of others are Linux's own")
@pytest.mark.parametrize("what", ["too big", "deleted"])
async def test_a_file_that_takes_no_more_ends_it(cli: Cli, tmp_path: Path, what: str) -> None:
    async with cli.serving("demo") as (address, _):
        url = address.replace("http", "ws") + "/stream"
        words = ("record", url, "--trades", "*", "--out", str(tmp_path), "--flush", "20ms")
        recorder = await cli.start(*words)
        library = Library(tmp_path)
        await _until_recorded(library, tape=0, seq=0)
        path = library.path_of(library.list()[0])
        if what == "deleted":
            path.unlink()
        else:
            limit = path.stat().st_size + 1500
            resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (limit, limit))
        _, err = await asyncio.wait_for(recorder.communicate(), 20)
    reason = {"deleted": "has been deleted", "too big": "File too large"}[what]
    assert recorder.returncode == 1
    assert err.decode() == f"tickcast: {path}: {reason}\n"
    if what == "too big":
        tape = Tape.open(path)
        assert not tape.manifest.complete
        assert tape.torn_bytes == 0
        assert tape.manifest.ticks


async def _until_recorded(library: Library, tape: int, seq: int) -> None:
    """Until a flush of that tape holds a tick of this number, or its stream has a place."""
    async with asyncio.timeout(100):
        while True:
            ids = library.list()
            if len(ids) > tape and library.path_of(ids[tape]).stat().st_size:
                manifest = library.open(ids[tape]).manifest
                if any((each.seq or 0) >= seq for each in manifest.streams):
                    return
            await asyncio.sleep(0.1)


def _content(*tapes: Tape) -> str:
    ledger = Ledger()
    for tape in tapes:
        for tick in tape.read():
            ledger.take_tick(tick, encode_tick(tick, None)[1])
    return ledger.manifest([], 0, complete=True).content


def _content_of_the_recording() -> str:
    ledger = Ledger()
    for tick in islice(CsvRecording(ES_TRADES, "ES"), _COUNT):
        ledger.take_tick(tick, encode_tick(tick, None)[1])
    return ledger.manifest([], 0, complete=True).content
