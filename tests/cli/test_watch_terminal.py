"""`tickcast watch` on a terminal: what its keys do, and how it leaves the terminal."""

from __future__ import annotations

import asyncio
import os
import signal
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.cli.conftest import Cli
from tests.cli.terminals import Terminal, on_terminal
from tests.conftest import until
from tests.tickcast.client.scripted_server import Peer, ScriptedServer, scripted_server

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


async def market(peer: Peer) -> None:
    """Accept the action, send one trade of each of three symbols, and keep the connection open."""
    await peer.confirm(await peer.receive(), positions=[])
    for symbol in ("AAA", "BBB", "CCC"):
        await peer.send_ticks(1, symbol=symbol)
    await peer.receive()


@asynccontextmanager
async def watching(
    double: ScriptedServer, cli: Cli, *words: str, prelude: str = "", **environment: str
) -> AsyncIterator[Terminal]:
    async with on_terminal(
        cli,
        "watch",
        "*",
        "--channels",
        "trades",
        "--url",
        double.url,
        *words,
        prelude=prelude,
        **environment,
    ) as terminal:
        await terminal.shows("3 symbols", "● live")
        yield terminal


def assert_restored(terminal: Terminal) -> None:
    """Check that the terminal is as it was before: its screen, its cursor and its modes."""
    assert terminal.modes() == terminal.initial_modes
    sent = bytes(terminal.raw)
    assert sent.rfind(LEAVE) > sent.rfind(ENTER)
    assert sent.rfind(b"\x1b[?25h") > sent.rfind(b"\x1b[?25l")
    assert sent.rfind(b"\x1b[?7h") > sent.rfind(b"\x1b[?7l")
    assert os.get_blocking(terminal.theirs)


async def test_closed_terminal_ends_the_command(cli: Cli) -> None:
    async with scripted_server(market) as double, watching(double, cli) as terminal:
        asyncio.get_running_loop().remove_reader(terminal.ours)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, terminal.ours)  # The terminal hangs up.
        os.close(nothing)
        assert await terminal.wait() == 130


@pytest.mark.parametrize(
    ("ending", "code"), [("q", 0), ("ctrl-c", 130), ("sigterm", 130), ("close", 1)]
)
async def test_terminal_is_restored_however_it_ends(cli: Cli, ending: str, code: int) -> None:
    async with scripted_server(market) as double, watching(double, cli) as terminal:
        assert terminal.raw.startswith(ENTER)
        assert terminal.modes() != terminal.initial_modes
        match ending:
            case "q":
                terminal.press("q")
            case "ctrl-c":
                terminal.press("\x03")
            case "sigterm":
                terminal.process.terminate()
            case "close":
                await double.peers[0].close(4000)
        assert await terminal.wait() == code
        await until(lambda: terminal.raw.endswith(LEAVE))
        assert_restored(terminal)
        assert terminal.process.stderr is not None
        err = (await terminal.process.stderr.read()).decode()
        assert err.strip().count("tickcast: ") == (ending == "close"), err
        assert err.count("\n") <= 1


async def test_crash_restores_the_terminal(cli: Cli) -> None:
    # No known input breaks it, so the test has to.
    prelude = "import clients.terminal.view as v; v.View.press = None"
    async with (
        scripted_server(market) as double,
        watching(double, cli, prelude=prelude) as terminal,
    ):
        terminal.press("s")
        assert await terminal.wait() == 1
        await until(lambda: terminal.raw.endswith(LEAVE))
        assert_restored(terminal)


async def test_keys(cli: Cli) -> None:
    async with scripted_server(market) as double, watching(double, cli) as terminal:
        for keys, shown in (
            ("?", "pause the display"),
            (" ", "3 symbols"),
            ("s", "by ticks/s"),
            ("ssss", "by symbol"),
            ("/bb", "/bb"),
            ("\r", "with “bb”"),
            ("\x1b", "3 symbols"),
            ("a", "balanced, 3 streams, 0 reconnects"),
            ("a", "3 symbols"),
            ("p", "PAUSED"),
            ("p", "● live"),
        ):
            terminal.press(keys)
            await terminal.shows(shown)


async def test_resized_terminal_is_redrawn(cli: Cli) -> None:
    async with scripted_server(market) as double, watching(double, cli) as terminal:
        terminal.raw.clear()
        terminal.resize(200, 50)
        await terminal.shows("spread", "age")
        assert b"\x1b[2J" in terminal.raw
        terminal.raw.clear()
        terminal.resize(30, 6)
        await terminal.shows("AAA")
        assert "volume" not in terminal.text


async def test_candles_are_filled_over_a_separate_connection(cli: Cli) -> None:
    async def history(peer: Peer) -> None:
        request = await peer.receive()
        await peer.confirm(request, positions=[])
        await peer.send_ticks(1, 2, 3, symbol="BBB")
        await peer.receive()

    async with scripted_server(market, history) as double, watching(double, cli) as terminal:
        terminal.press("j\r")
        await terminal.shows("O 1.00 H 1.00 L 1.00 C 1.00 V 3")
        request = double.peers[1].received[0]
        assert request["trades"] == ["BBB"]
        assert request["start"] < 1767623400_000000000  # the time of the ticks
        terminal.press("\x1b")
        await terminal.shows("3 symbols")
        await asyncio.wait_for(double.peers[1].until_closed(), 10)


async def test_candles_without_history(cli: Cli) -> None:
    async def refuses(peer: Peer) -> None:
        while "start" in (request := await peer.receive()):
            await peer.reject(request, 400)
        await peer.confirm(request, positions=[])
        await peer.send_ticks(1, symbol="AAA")
        await peer.receive()

    async with scripted_server(market, refuses) as double, watching(double, cli) as terminal:
        terminal.press("\r")
        await terminal.shows("no history: the server refused", "V 1")


async def test_switching_the_encoding_loses_no_ticks(cli: Cli) -> None:
    async with cli.serving() as (address, _):
        await cli.start("synth", "--symbols", "3", "--rate", "100")
        url = address.replace("http", "ws") + "/stream"
        async with on_terminal(cli, "watch", "*", "--url", url, "--audit") as terminal:
            await terminal.shows("balanced, 6 streams, 0 reconnects", "json")
            terminal.press("e")
            await terminal.shows("balanced, 6 streams, 1 reconnect", "msgpack  ● live")
            terminal.press("q")
            assert await terminal.wait() == 0


async def test_suspend_and_resume(cli: Cli) -> None:
    async with scripted_server(market) as double, watching(double, cli) as terminal:
        terminal.press("\x1a")
        await until(lambda: LEAVE in terminal.raw)
        terminal.raw.clear()
        termios.tcsetattr(terminal.theirs, termios.TCSANOW, terminal.initial_modes)  # type: ignore[arg-type]
        terminal.process.send_signal(signal.SIGCONT)
        await terminal.shows("3 symbols")
        terminal.press("?")
        await terminal.shows("pause the display")


async def test_stopped_terminal_delays_nothing(cli: Cli) -> None:
    stopped = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.confirm(await peer.receive(), positions=[])
        for symbol in ("AAA", "BBB", "CCC"):
            await peer.send_ticks(1, symbol=symbol)
        await stopped.wait()
        await peer.send_ticks(*range(2, 1000), symbol="AAA")
        await peer.receive()

    async with (
        scripted_server(script) as double,
        watching(double, cli, "--limit", "1001") as terminal,
    ):
        terminal.press("\x13")  # Ctrl-S
        stopped.set()
        assert await terminal.wait() == 0
        terminal.press("\x11")
        assert terminal.modes() == terminal.initial_modes


async def test_no_color(cli: Cli) -> None:
    async with scripted_server(market) as double, watching(double, cli, NO_COLOR="1") as terminal:
        assert b"\x1b[7m" in terminal.raw
        assert b"\x1b[32m" not in terminal.raw


async def test_dumb_terminal_shows_lines(cli: Cli) -> None:
    async with (
        scripted_server(market) as double,
        on_terminal(
            cli, "watch", "*", "--url", double.url, "--limit", "1", TERM="dumb"
        ) as terminal,
    ):
        assert await terminal.wait() == 0
        await until(lambda: b"\n" in terminal.raw)
        assert terminal.raw.startswith(b'{"T":"t","S":"AAA"')
        assert b"\x1b" not in terminal.raw
