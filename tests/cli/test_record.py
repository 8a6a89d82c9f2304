"""`tickcast record` as a process. tests/faults/test_recorder.py kills it."""

from __future__ import annotations

import asyncio
import resource
import signal
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Shell
from tickcast.tapes import Tape, TapeLibrary


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["http://x", "--trades", "A"], 2, "'http://x' does not begin with ws:// or wss://"),
        (["ws://x/stream"], 2, "nothing to record: name --trades, "),
        (["ws://x/stream", "--trades", "A B"], 2, "'A B' is not a valid symbol"),
        (["ws://x/stream", "--channel", "news=A"], 2, "--channel: 'news' is none of trades,"),
        (["ws://x/stream", "--rotate", "0GB"], 2, "Invalid value for '--rotate': '0GB' is neither"),
        (["ws://x/stream", "--rotate", "x"], 2, "Invalid value for '--rotate': 'x' is not a"),
        (["ws://127.0.0.1:1/stream", "--trades", "A"], 1, "ws://127.0.0.1:1/stream: "),
    ],
)
def test_errors_take_one_line(
    shell: Shell, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    done = shell.run("record", *words, "--out", tmp_path / "tapes")
    assert done.code == code, done
    assert done.err.startswith(f"tickcast: {message}"), done
    assert done.err.count("\n") == 1, done
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_created_is_an_error(shell: Shell) -> None:
    done = shell.run("record", "ws://x/stream", "--trades", "A", "--out", "/dev/null/tapes")
    assert (done.code, done.err) == (1, "tickcast: /dev/null/tapes: Not a directory\n")


async def test_recording_ends_by_limit_duration_and_interrupt(cli: Cli, tmp_path: Path) -> None:
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
        library = TapeLibrary(tmp_path)
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


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux's prlimit")
@pytest.mark.parametrize("what", ["too big", "deleted"])
async def test_unwritable_file_ends_the_recording(cli: Cli, tmp_path: Path, what: str) -> None:
    async with cli.serving("demo") as (address, _):
        url = address.replace("http", "ws") + "/stream"
        words = ("record", url, "--trades", "*", "--out", str(tmp_path), "--flush", "20ms")
        recorder = await cli.start(*words)
        library = TapeLibrary(tmp_path)
        await _until_recorded(library)
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


async def _until_recorded(library: TapeLibrary) -> None:
    async with asyncio.timeout(20):
        while not (ids := library.list()) or not library.path_of(ids[0]).stat().st_size:
            await asyncio.sleep(0.02)
