"""`tickcast watch` as a real terminal shows it. Needs tmux, and is skipped without it."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.tickcast.client.scripted_server import Peer, scripted_server

SYMBOLS = [f"SYM-{number:02}" for number in range(60)]
SPARKS = "▁▂▃▄▅▆▇█"
GLYPHS = set("│┃╽╿╷╵╻╹")
CANDLES = 25

pytestmark = pytest.mark.skipif(
    shutil.which("tmux") is None, reason="tmux is not installed: apt-get install tmux"
)


class Pane:
    """A shell in a private tmux session."""

    def __init__(self, socket: Path, environment: dict[str, str]) -> None:
        self._socket = socket
        self._environment = {**environment, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"}

    def tmux(self, *words: str) -> str:
        return subprocess.run(
            ["tmux", "-u", "-f", "/dev/null", "-S", str(self._socket), *words],
            env=self._environment, check=True, capture_output=True, text=True, timeout=20,
        ).stdout  # fmt: skip

    async def open(self, columns: int, lines: int, command: str) -> None:
        """Run a command in a shell, on a terminal of this size."""
        size = ("-x", str(columns), "-y", str(lines))
        self.tmux("new-session", "-d", *size, "env PS1='ready> ' sh")
        await self.wait_for(lambda lines: lines[0] == "ready>")
        self.press(command, "Enter")

    def resize(self, columns: int, lines: int) -> None:
        self.tmux("resize-window", "-x", str(columns), "-y", str(lines))

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def lines(self, *, styled: bool = False) -> list[str]:
        """Return all lines of the screen."""
        return self.tmux("capture-pane", "-p", *(["-e"] if styled else [])).split("\n")[:-1]

    def state(self) -> str:
        """Return whether the alternate screen is on, the cursor is visible, and long lines wrap."""
        return self.tmux(
            "display-message", "-p", "#{alternate_on} #{cursor_flag} #{wrap_flag}"
        ).strip()

    async def wait_for(self, condition: Callable[[list[str]], bool]) -> list[str]:
        """Wait until the screen meets a condition and is fully drawn; return it."""
        before: list[str] = []
        try:
            async with asyncio.timeout(20):
                while not condition(lines := self.lines()) or lines != before:
                    before = lines
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError("\n".join(self.lines())) from None
        return lines


@pytest.fixture
def pane(cli: Cli, runtime_dir: Path) -> Iterator[Pane]:
    pane = Pane(runtime_dir.parent / "tmux", cli.environment)
    yield pane
    subprocess.run(
        ["tmux", "-S", str(runtime_dir.parent / "tmux"), "kill-server"],
        check=False, capture_output=True, timeout=20,
    )  # fmt: skip


async def market(peer: Peer) -> None:
    """Send two trades and a quote of each symbol, all prices differing in length; then nothing."""
    await peer.confirm(await peer.receive(), positions=[])
    when = "2026-01-05T14:30:00Z"
    for number, symbol in enumerate(SYMBOLS):
        price = 1.25 * 10 ** (number % 5)
        traded = {"T": "t", "S": symbol, "s": 1000.0, "t": when}
        await peer.send(
            {**traded, "p": price, "seq": 1},
            {**traded, "p": price * (1.1 - 0.2 * (number % 2)), "seq": 2},
            {"T": "q", "S": symbol, "bp": price, "bs": 1, "ap": price + 0.25, "as": 1, "t": when,
             "seq": 1},
        )  # fmt: skip
    await peer.receive()


async def history(peer: Peer) -> None:
    """Send a trade in each of some seconds; then nothing."""
    await peer.confirm(request := await peer.receive(), positions=[])
    (symbol,) = request["trades"]
    for n in range(CANDLES * 5):
        await peer.send(
            {"T": "t", "S": symbol, "p": 100.0 + n % 9, "s": 1.0 + n % 4, "seq": n + 1,
             "t": f"2026-01-05T14:{30 + n // 60}:{n % 60:02}Z"}
        )  # fmt: skip
    await peer.receive()


def command(url: str) -> str:
    words = [sys.executable, "-m", "tickcast", "watch", "*", "--url", url]
    return shlex.join(words)


def is_settled(lines: list[str]) -> bool:
    """Check that all symbols are known and have a sparkline."""
    return "60 symbols · " in lines[1] and all(
        line.startswith("SYM-") and line[-1] in SPARKS for line in lines[3:-1]
    )


@pytest.mark.parametrize(("columns", "height"), [(80, 24), (200, 50), (100, 30)])
async def test_table(pane: Pane, columns: int, height: int) -> None:
    async with scripted_server(market) as double:
        await pane.open(columns, height, command(double.url))
        lines = await pane.wait_for(is_settled)
        assert len(lines) == height
        assert lines[0].startswith("tickcast ws://127.0.0.1:")
        assert lines[0].endswith("json  ● live")
        assert len(lines[0]) == columns
        rows = lines[3:-1]
        assert [row.split()[0] for row in rows] == SYMBOLS[: height - 4]
        assert lines[-1].startswith("? help  q quit  ")
        # Numbers are aligned right in their column; the mark of the last move follows the price.
        for name in lines[2].split()[2:-1]:
            end = lines[2].index(name) + len(name)
            assert all(row[end - 1].strip() and row[end : end + 2] == "  " for row in rows), name
        assert {row[lines[2].index("last") + 3] for row in rows} == {"▲", "▼"}
        assert ("spread" in lines[2]) == (columns > 80)
        assert ("age" in lines[2]) == (columns > 80)
        assert all(row[-1] in SPARKS for row in rows)
        styled = pane.lines(styled=True)
        reverse = re.compile("\x1b\\[(0;)?7m")
        assert reverse.search(styled[3])
        assert not any(reverse.search(line) for line in styled[4:])
        assert re.search("\x1b\\[(0;)?32m", styled[5])
        assert re.search("\x1b\\[(0;)?31m", styled[4])


@pytest.mark.parametrize(("columns", "height"), [(80, 24), (200, 50)])
async def test_candles(pane: Pane, columns: int, height: int) -> None:
    async with scripted_server(market, history) as double:
        await pane.open(columns, height, command(double.url))
        await pane.wait_for(is_settled)
        pane.press("j", "Enter")
        lines = await pane.wait_for(lambda lines: "C 107.00 V 11" in lines[2])
        assert lines[1].startswith("SYM-01  ")
        assert len(lines) == height
        # Candles are drawn next to each other at the right, each with its volume below it.
        drawn = [line for line in lines[3:-2] if GLYPHS & set(line)]
        starts = min(len(line) - len(line.lstrip()) for line in drawn)
        volumes = next(line for line in reversed(lines[:-2]) if "█" in line)
        bars = re.fullmatch(rf" *([{SPARKS}]+) *[0-9]*", volumes)
        assert bars is not None
        assert (bars.start(1), len(bars[1])) == (starts, CANDLES)
        assert any("◂" in line for line in lines)
        assert lines[-2].endswith(" UTC")
        assert re.search("╵14:3[0-2]:[0-9]{2}", lines[-2])
        assert "Esc table" in lines[-1]


async def test_resizing_and_quitting(pane: Pane) -> None:
    async with scripted_server(market) as double:
        await pane.open(80, 24, command(double.url))
        await pane.wait_for(is_settled)
        assert pane.state() == "1 0 0"
        for columns, height in ((200, 50), (40, 10), (20, 5), (80, 24)):
            pane.resize(columns, height)

            def fits(lines: list[str], columns: int = columns, height: int = height) -> bool:
                rows = [line for line in lines if line.startswith("SYM-")]
                return len(lines[0]) == columns and len(rows) == height - 4

            await pane.wait_for(fits)
        pane.press("q")
        lines = await pane.wait_for(lambda lines: any(line == "ready>" for line in lines))
        assert pane.state() == "0 1 1"
        assert not any(line.startswith("SYM-") for line in lines)
        pane.press("echo back", "Enter")
        await pane.wait_for(lambda lines: "back" in lines)
