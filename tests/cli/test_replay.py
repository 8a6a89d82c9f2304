"""`tickcast replay` and `replayctl`, as processes and in a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from producers.commands import replay_screen
from producers.commands.replay import describe
from producers.commands.replay_screen import command_for
from tests.cli.conftest import Cli, Finished, Shell
from tests.cli.forking import forks
from tests.cli.terminals import terminal
from tests.talk import talking
from tickcast.broker import replays
from tickcast.broker.client import make_client
from tickcast.broker.embedded import store_url
from tickcast.broker.replays import (
    PauseCommand,
    ResumeCommand,
    SeekCommand,
    SpeedCommand,
    StepCommand,
)
from tickcast.commands.terminal import split_keys
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import ReplayFailed
from tickcast.wire.playback import MAX_SPEED, ReplayMode, ReplayState
from tickcast.wire.times import Time


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A recording with a trade every ten seconds, for a thousand seconds."""
    path = tmp_path / "a.csv"
    rows = "".join(f"{1_378_054_800 + 10 * n},ES,{n},1\n" for n in range(101))
    path.write_text("time,symbol,price,size\n" + rows)
    return path


@asynccontextmanager
async def replaying(cli: Cli, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a replay that can be controlled, and end it afterwards."""
    process = await cli.start("replay", *words)
    try:
        async with asyncio.timeout(20):
            while not await status(cli):
                assert process.returncode is None
                await asyncio.sleep(0.01)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def steer(cli: Cli, *words: str) -> Finished:
    return await cli.run("replayctl", *words)


async def status(cli: Cli) -> str:
    """Return what `replayctl status` prints, without a process; an empty text without a replay."""
    settings = Settings(runtime_dir=cli.environment["TICKCAST_RUNTIME_DIR"])
    async with make_client(store_url(settings)) as client:
        try:
            return describe(await replays.steer(client, "live", {"do": "status"}))
        except ReplayFailed:
            return ""


async def test_it_is_steered_from_another_process(cli: Cli, recording: Path) -> None:
    async with cli.serving() as (address, _):
        none = await steer(cli, "status")
        assert (none.code, none.err) == (1, "tickcast: no replay plays into the feed live\n")
        async with replaying(cli, str(recording)):
            assert (await steer(cli, "pause")).out.startswith("paused at 2013-09-01T17:00:")
            for words, said in (
                ("seek 2013-09-01T17:05:00Z", "paused at 2013-09-01T17:05:00Z, 1×, of "),
                ("step 2", "paused at 2013-09-01T17:05:10Z, "),
                ("seek -30s", "paused at 2013-09-01T17:04:40Z, "),
                ("speed max", "paused at 2013-09-01T17:04:40Z, max, "),
                ("speed 0.5", "paused at 2013-09-01T17:04:40Z, 0.5×, "),
                ("resume", "playing at 2013-09-01T17:04:40"),
            ):
                done = await steer(cli, *words.split())
                assert done.out.startswith(said), done
            state = json.loads((await steer(cli, "status", "--json")).out)
            assert (state["state"], state["speed"]) == ("playing", 0.5)
            second = await cli.run("replay", str(recording))
            assert second.code == 1
            assert second.err.startswith("tickcast: another replay plays into the feed live")
            async with talking(f"{address.replace('http', 'ws')}/stream") as talk:
                await talk.ask(action="configure", replay=True)
                assert (await talk.hear())["speed"] == 0.5


async def test_an_interrupt_ends_the_command_cleanly(cli: Cli, recording: Path) -> None:
    async with cli.serving(), replaying(cli, str(recording)) as process:
        process.send_signal(signal.SIGINT)
        out, err = await asyncio.wait_for(process.communicate(), 10)
        assert (process.returncode, out, err.strip()) == (130, b"", b"")
        assert (await steer(cli, "status")).code == 1


async def test_hashes_and_parts(cli: Cli, recording: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.csv"
    other.write_text("time,symbol,price,size\n1378054805,NQ,1,1\n1378054815,NQ,2,1\n")
    async with cli.serving():
        words = ["replay", str(recording), str(other), "--speed", "max", "--hash"]
        first, second = await cli.run(*words), await cli.run(*words)
        assert first.code == 0
        assert first.out == second.out
        assert [line.split()[1] for line in first.out.splitlines()] == ["trades/ES", "trades/NQ"]
        assert first.err.startswith("replayed 103 ticks in ")
        done = await cli.run(*words, "--symbols", "N*", "--from", "+10s", "--to", "-1m")
        assert done.err.startswith("replayed 1 tick in ")


async def test_the_default_feed_of_others_is_not_overwritten(cli: Cli, recording: Path) -> None:
    words = ["replay", str(recording), "--speed", "max"]
    async with cli.serving():
        # A replay can be repeated no matter when it was killed.
        async with replaying(cli, str(recording)) as process:
            process.kill()
            await process.wait()
        await asyncio.sleep(replays.EXPIRY_S)  # Until then its state is "playing".
        assert (await cli.run(*words)).code == 0
        await cli.run("publish", stdin='{"T":"t","S":"BTC-USD","p":1,"s":1}\n')
        refused = await cli.run(*words)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "--feed NAME" in refused.err
        assert "--overwrite" in refused.err
        for option in ("--feed=past", "--feed=live", "--overwrite"):
            done = await cli.run(*words, option)
            assert (done.code, done.err[:18]) == (0, "replayed 101 ticks"), done
        assert (await cli.run(*words)).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("replay FILE --from soon", "neither a time nor an offset such as +10m"),
        ("replay FILE --from 2020-01-01T00:00:00Z", "no ticks in this range: the recording goes"),
        ("replay FILE --from +10m --to +5m", "no ticks in this range"),
        ("replay FILE --symbols A,,B", "'' is not a symbol"),
        ("replay FILE --retime later", "'later' is not 'now'"),
        ("replay FILE --retime now --hash", "--hash needs the times of the recording"),
        ("replay FILE --speed 0.001", "a speed is a number from 0.01 to 10000, or max"),
        ("replay", "Missing argument"),
        ("replayctl seek", "seek needs a value"),
        ("replayctl seek soon", "neither a time nor an offset"),
        ("replayctl speed fast", "a speed is a number"),
        ("replayctl step 0", "a step is 1 to 10000 ticks"),
        ("replayctl pause 3", "pause does not take a value"),
        ("replayctl dance", "'dance' is not one of"),
    ],
)
def test_misuse_is_one_line(shell: Shell, recording: Path, words: str, said: str) -> None:
    done = shell.run(*words.replace("FILE", str(recording)).split())
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


# --------------------------------------------------------------------------------- a terminal


@asynccontextmanager
async def replay_in_terminal(
    cli: Cli, ours: int, theirs: int, *words: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {**cli.environment, "TERM": "xterm"}
    process = await forks().start(
        ["replay", *words], environment, theirs, theirs, theirs, session=True
    )
    shown = bytearray()
    asyncio.get_running_loop().add_reader(ours, lambda: shown.extend(os.read(ours, 65_536)))
    try:
        async with asyncio.timeout(20):
            while not await status(cli):
                assert process.returncode is None, shown
                await asyncio.sleep(0.01)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(ours)


async def until_said(cli: Cli, words: str) -> None:
    async with asyncio.timeout(20):
        while not (await status(cli)).startswith(words):
            await asyncio.sleep(0.01)


async def test_keys_control_it_and_the_terminal_is_restored(cli: Cli, recording: Path) -> None:
    with terminal() as (ours, theirs):
        found = termios.tcgetattr(theirs)
        async with (
            cli.serving(),
            replay_in_terminal(cli, ours, theirs, str(recording)) as process,
        ):
            assert not termios.tcgetattr(theirs)[3] & termios.ICANON
            os.write(ours, b" ")
            await until_said(cli, "paused at 2013-09-01T17:")
            await steer(cli, "seek", "2013-09-01T17:05:00Z")
            for keys, said in (
                (b"\x1b[C\x1b[C", "paused at 2013-09-01T17:05:20Z, 1×,"),
                (b"+", "paused at 2013-09-01T17:05:20Z, 2×,"),
                (b"--", "paused at 2013-09-01T17:05:20Z, 0.5×,"),
                (b"\x1b[D", "paused at 2013-09-01T17:05:15Z"),
                (b"s", "paused at 2013-09-01T17:05:20Z"),
                (b" ", "playing at "),
            ):
                os.write(ours, keys)
                await until_said(cli, said)
            os.write(ours, b"q")
            assert await asyncio.wait_for(process.wait(), 10) == 0
            assert os.get_blocking(theirs)
            assert termios.tcgetattr(theirs) == found


@pytest.mark.parametrize("how", ["ctrl-c", "sigterm"])
async def test_the_terminal_is_restored_however_it_ends(
    cli: Cli, recording: Path, how: str
) -> None:
    with terminal() as (ours, theirs):
        found = termios.tcgetattr(theirs)
        async with (
            cli.serving(),
            replay_in_terminal(cli, ours, theirs, str(recording)) as process,
        ):
            if how == "ctrl-c":
                os.write(ours, b"\x03")
            else:
                process.terminate()
            assert await asyncio.wait_for(process.wait(), 10) == 130
            assert termios.tcgetattr(theirs) == found


async def test_without_a_terminal_lines_show_the_position(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(replay_screen, "_FIRST_LINE_AFTER_S", 0.01)
    monkeypatch.setattr(replay_screen, "_LINE_EVERY_MAX_S", 0.02)
    state = ReplayState(
        ReplayMode.PLAYING, Time.parse("2013-09-01T17:00:50.1234Z"), 2.0, Time(0), Time(2**62)
    )

    class Playing:
        count = 0

        @property
        def state(self) -> ReplayState:
            return state

    playing = Playing()
    shown = asyncio.create_task(replay_screen.show_replay(playing))  # type: ignore[arg-type]
    said = ""
    try:
        async with asyncio.timeout(10):
            while said.count("\n") < 4:
                await asyncio.sleep(0.005)
                said += capsys.readouterr().err
                playing.count = min(3_000, 1_000 * said.count("\n"))
    finally:
        await cancel_and_wait([shown])
    lines = said.splitlines()
    assert lines[0].startswith(
        "tickcast: playing at 2013-09-01T17:00:50.123Z, 30% of it, 2×, 0 ticks, "
    )
    assert [line.split(", ")[3] for line in lines] == [
        f"{n:,} ticks" for n in range(0, 4_000, 1_000)
    ]


def test_keys_are_distinguished() -> None:
    assert list(split_keys(" s\x1b[C\x1b[D+q")) == [" ", "s", "right", "left", "+", "q"]
    assert list(split_keys("\x1b[Aj\x1b\n\x7f")) == ["up", "j", "escape", "enter", "backspace"]
    assert list(split_keys("\x1b[6~\x1bOA")) == ["page down", "up"]
    # Keys without a name here, and truncated sequences.
    assert list(split_keys("\x1b[15~q\x1b[1;5Cq\x1bOPq\x1b[")) == ["q", "q", "q"]


def test_commands_for_keys() -> None:
    state = ReplayState(ReplayMode.PLAYING, Time(50 * 10**9), 2.0, Time(0), Time(100 * 10**9))
    paused, fastest = state._replace(mode=ReplayMode.PAUSED), state._replace(speed=MAX_SPEED)
    assert isinstance(command_for(" ", state), PauseCommand)
    assert isinstance(command_for(" ", paused), ResumeCommand)
    assert command_for("right", state) == SeekCommand(id="key", position=70 * 10**9)
    assert command_for("left", fastest) == SeekCommand(id="key", position=45 * 10**9)
    assert command_for("left", state._replace(position=Time(1))) == SeekCommand(
        id="key", position=0
    )
    assert command_for("+", state) == SpeedCommand(id="key", speed=5)
    assert command_for("-", fastest) == SpeedCommand(id="key", speed=1000)
    assert command_for("+", fastest) == SpeedCommand(id="key", speed="max")
    assert command_for("-", state._replace(speed=0.1)) == SpeedCommand(id="key", speed=0.1)
    assert command_for("s", state) == StepCommand(id="key")
    assert command_for("x", state) is None
