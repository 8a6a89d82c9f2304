"""Full-screen output on a terminal."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from tickcast.commands.lines import Line, to_ansi

# Use the alternate screen, hide the cursor, don't wrap long lines, and clear the screen.
_ENTER: Final = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE: Final = b"\x1b[m\x1b[?7h\x1b[?25h\x1b[?1049l"
# Terminals that support synchronized output draw everything between these two at once.
_BEGIN: Final = b"\x1b[?2026h"
_END: Final = b"\x1b[?2026l"
_LEAVING_S: Final = 1.0


class Screen:
    """Draws only the lines that have changed, and never waits for the terminal."""

    def __init__(self, terminal: int, *, colour: bool) -> None:
        self._terminal = terminal
        self._colour = colour
        self._size = (0, 0)
        self._shown: list[str] = []
        self._unsent = bytearray()

    @property
    def size(self) -> tuple[int, int]:
        """Return the current number of columns and lines."""
        with suppress(OSError):
            columns, lines = os.get_terminal_size(self._terminal)
            if columns and lines:
                return columns, lines
        return 80, 24

    @property
    def is_ready(self) -> bool:
        """Whether the terminal has accepted all output; if not, it is slow or stopped."""
        return not self._unsent

    def draw(self, lines: Sequence[Line], size: tuple[int, int]) -> None:
        """Draw lines on a terminal whose size was just read."""
        data = bytearray(_BEGIN)
        if size != self._size:
            self._size, self._shown = size, []
            data += b"\x1b[2J"
        texts = [to_ansi(line, size[0], colour=self._colour) for line in lines]
        for number, text in enumerate(texts):
            if number >= len(self._shown) or text != self._shown[number]:
                data += f"\x1b[{number + 1};1H{text}".encode()
        self._shown = texts
        if len(data) > len(_BEGIN):
            self.write(bytes(data + _END))

    def write(self, data: bytes) -> None:
        """Send data, and keep what the terminal does not accept yet."""
        self._unsent += data
        self._flush()
        if self._unsent:
            asyncio.get_running_loop().add_writer(self._terminal, self._flush)

    def _flush(self) -> None:
        with suppress(BlockingIOError):
            try:
                del self._unsent[: os.write(self._terminal, self._unsent)]
            except OSError as error:
                if isinstance(error, BlockingIOError):
                    raise
                self._unsent.clear()  # The terminal is gone.
        if not self._unsent:
            asyncio.get_running_loop().remove_writer(self._terminal)

    def enter(self) -> None:
        """Switch the terminal to full-screen output."""
        self._size = (0, 0)
        self.write(_ENTER)

    def suspend(self) -> None:
        """Restore the terminal and stop the process, like Ctrl-Z; continue with a full redraw."""
        self.leave()
        self._unsent.clear()
        os.kill(os.getpid(), signal.SIGSTOP)
        while not self._is_in_foreground():
            os.kill(os.getpid(), signal.SIGSTOP)
        self.enter()

    def _is_in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._terminal) == os.getpgrp()
        except OSError:
            return True  # It is not our controlling terminal, or it is gone.

    def leave(self) -> None:
        """Restore the terminal, unless it accepts no output."""
        asyncio.get_running_loop().remove_writer(self._terminal)
        self._unsent += _LEAVE
        with suppress(OSError):
            while self._unsent and select.select([], [self._terminal], [], _LEAVING_S)[1]:
                del self._unsent[: os.write(self._terminal, self._unsent)]


@contextmanager
def whole_screen() -> Iterator[Screen]:
    """Use the terminal of standard output for full-screen output, and restore it at the end."""
    # Reopened because it is made non-blocking, which would affect the shell.
    terminal = os.open(os.ttyname(sys.stdout.fileno()), os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    screen = Screen(terminal, colour=not os.environ.get("NO_COLOR"))
    loop = asyncio.get_running_loop()
    try:
        screen.enter()
        loop.add_signal_handler(signal.SIGTSTP, screen.suspend)
        yield screen
    finally:
        loop.remove_signal_handler(signal.SIGTSTP)
        screen.leave()
        os.close(terminal)
