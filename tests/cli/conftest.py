"""Fixtures that run the command in a separate process, or in this one.

Tests that only check a command line, such as tables of misuse, use `shell`, which is faster.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.cli.forking import forks
from tickcast.commands import main


class Finished(NamedTuple):
    code: int
    out: str
    err: str


class Cli:
    """Run `tickcast` with a private embedded store."""

    def __init__(self, runtime_dir: Path) -> None:
        self.environment = {
            **{name: value for name, value in os.environ.items() if "TICKCAST" not in name},
            "TICKCAST_RUNTIME_DIR": str(runtime_dir),
        }
        self.processes: list[asyncio.subprocess.Process] = []

    async def start(
        self, *words: str, stdin: int = subprocess.DEVNULL
    ) -> asyncio.subprocess.Process:
        process = await forks().start(words, self.environment, stdin=stdin)
        self.processes.append(process)
        return process

    async def run(self, *words: str, stdin: str | None = None, timeout_s: float = 40) -> Finished:
        process = await self.start(
            *words, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE
        )
        data = stdin.encode() if stdin is not None else None
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(data)
        assert process.returncode is not None
        return Finished(process.returncode, out.decode(), err.decode())

    @asynccontextmanager
    async def serving(self, *words: str) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
        """Run `serve` or `demo` on a free port; yield its address and its process."""
        process = await self.start(*(words or ("serve",)), "--port", "0")
        try:
            yield await address_from(process), process
        finally:
            if process.returncode is None:
                process.terminate()
            await asyncio.wait_for(process.communicate(), 10)


async def address_from(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        async for line in process.stdout:
            if match := re.fullmatch(rb"listening on (https?://127\.0\.0\.1:\d+)\n", line):
                return match[1].decode()
    assert process.stderr is not None
    raise AssertionError((await process.stderr.read()).decode())


@pytest_asyncio.fixture
async def cli(runtime_dir: Path) -> AsyncIterator[Cli]:
    cli = Cli(runtime_dir)
    yield cli
    await forks().end_all()


class Shell:
    """Run the command in this process and capture its output. Logging is left unchanged."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def run(self, *words: object) -> Finished:
        self._monkeypatch.setattr("sys.argv", ["tickcast", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Finished(ended.value.code, out, err)


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], runtime_dir: Path
) -> Iterator[Shell]:
    for name in [name for name in os.environ if "TICKCAST" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TICKCAST_RUNTIME_DIR", str(runtime_dir))
    # The configuration would outlast this test.
    monkeypatch.setattr("tickcast.logs.set_up", lambda *options: None)
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        yield Shell(monkeypatch, capfd)
