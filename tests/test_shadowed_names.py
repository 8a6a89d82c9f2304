"""Programs and commands work next to other modules called `clients`, `feed` and `producers`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import RunningServer
from tests.programs import run_program

COMMAND = Path(sys.executable).with_name("tickcast")
BOT = """
import asyncio
import sys
import clients, feed, producers
from tickcast import Trade, connect

assert clients.OWNER == feed.OWNER == producers.OWNER == "bot"

async def main(url):
    async with connect(url) as stream:
        await stream.subscribe(trades=["ACME"])
        for _ in range(3):
            tick = await anext(stream)
            assert isinstance(tick, Trade)
            print(tick.symbol)

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with modules of those names, and a foreign `clients` first on the path."""
    for name in ("clients", "feed", "producers"):
        (tmp_path / f"{name}.py").write_text('OWNER = "bot"\n')
    foreign = tmp_path / "foreign"
    (foreign / "clients").mkdir(parents=True)
    (foreign / "clients" / "__init__.py").write_text('OWNER = "somebody else"\n')
    path = [str(foreign), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    return tmp_path


async def test_a_bot_uses_its_own_modules(
    server: RunningServer, market: None, directory: Path
) -> None:
    (directory / "bot.py").write_text(BOT)
    command = [sys.executable, "-u", "bot.py", server.stream]
    assert await run_program(command, directory, ends=True) == ["ACME"] * 3


@pytest.mark.parametrize(
    "command", [[str(COMMAND)], [sys.executable, "-m", "tickcast"]], ids=["script", "module"]
)
async def test_commands_use_their_own_packages(
    server: RunningServer, market: None, directory: Path, command: list[str]
) -> None:
    watch = [*command, "watch", "ACME", "--url", server.stream]
    assert len(await run_program(watch, directory)) >= 3
    for name in ("serve", "publish"):
        shown = await run_program([*command, name, "--help"], directory, ends=True)
        assert shown[0].startswith("Usage: tickcast")


async def test_the_load_tester_finds_its_workers(
    server: RunningServer, market: None, directory: Path
) -> None:
    options = ("--connections", "2", "--duration", "0.2s", "--warmup", "0.1s", "--processes", "1")
    command = [str(COMMAND), "load", server.stream, *options]
    assert await run_program(command, directory, ends=True)
