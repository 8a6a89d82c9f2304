"""Run programs on pseudo-terminals."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import struct
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from tests.cli.conftest import Cli
from tests.cli.forking import forks
from tests.conftest import until


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """Open a pseudo-terminal; yield the test's end and the program's end."""
    ours, theirs = pty.openpty()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


class Terminal:
    """A terminal that a program runs on.

    Attributes:
        raw: all output of the program.
    """

    def __init__(self, ours: int, theirs: int) -> None:
        self.process: asyncio.subprocess.Process
        self.raw = bytearray()
        self.ours, self.theirs = ours, theirs
        self.initial_modes = self.modes()

    def modes(self) -> object:
        """Return the mode flags, such as echo and line editing."""
        return termios.tcgetattr(self.theirs)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Discard the recorded output, then press keys."""
        self.raw.clear()
        os.write(self.ours, keys.encode())

    @property
    def text(self) -> str:
        """Return the output without control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw.decode("utf-8", "replace"))

    async def shows(self, *texts: str) -> None:
        """Wait until all of these texts were shown."""
        try:
            await until(lambda: all(text in self.text for text in texts), 20)
        except TimeoutError:
            raise AssertionError(f"{texts} not in {self.text}") from None

    async def wait(self) -> int:
        """Wait for the program to end; return its exit code."""
        return await asyncio.wait_for(self.process.wait(), 20)


@asynccontextmanager
async def on_terminal(
    cli: Cli, *words: str, prelude: str = "", **environment: str
) -> AsyncIterator[Terminal]:
    """Run `tickcast` on a terminal of 80 columns and 24 lines, and end it afterwards."""
    with terminal() as (ours, theirs):
        program = Terminal(ours, theirs)
        program.resize(80, 24)
        program.process = process = await forks().start(
            words,
            {**cli.environment, "TERM": "xterm", **environment},
            theirs,
            theirs,
            session=True,
            prelude=prelude,
        )
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, lambda: program.raw.extend(os.read(ours, 65_536)))
        try:
            yield program
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            loop.remove_reader(ours)
