"""A terminal without waiting: single keys, styled lines and full-screen output."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

# Text and the name of its style.
Segment = tuple[str, str]
Line = list[Segment]

# Only the sixteen basic colours, which every terminal adapts to its background.
STYLES: Final = {
    "": "", "dim": "2", "bold": "1", "head": "1", "selected": "7", "key": "36",
    "up": "32", "up dim": "2;32", "up flash": "1;32",
    "down": "31", "down dim": "2;31", "down flash": "1;31",
    "good": "32", "bad": "1;31", "paused": "1;33",
}  # fmt: skip
# The codes that remain with NO_COLOR.
_COLOURLESS: Final = {"1", "2", "7"}

_KEY_NAMES: Final = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1b[H": "home", "\x1b[F": "end", "\x1bOH": "home", "\x1bOF": "end",
    "\x1b[1~": "home", "\x1b[4~": "end",
    "\x1b": "escape", "\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace",
}  # fmt: skip
# An escape sequence (ECMA-48, 5.4, and SS3), or any other character.
_KEY: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*(?:[@-~]|$)|O(?:.|$))?|.", re.DOTALL)

# Use the alternate screen, hide the cursor, don't wrap long lines, and clear the screen.
_ENTER: Final = b"\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
_LEAVE: Final = b"\x1b[m\x1b[?7h\x1b[?25h\x1b[?1049l"
# Terminals that support synchronized output draw everything between these two at once.
_BEGIN_FRAME: Final = b"\x1b[?2026h"
_END_FRAME: Final = b"\x1b[?2026l"
_LEAVE_TIMEOUT_S: Final = 1.0


# Keys


@contextmanager
def keys_pressed(on_key: Callable[[str], None]) -> Iterator[None]:
    """Call `on_key` with each key that is pressed; some have names such as `left` and `enter`.

    This has no effect if standard input is not a terminal, or if another process group currently
    has the terminal. At the end the terminal's settings are restored. Ctrl-C works as usual.
    """
    if not sys.stdin.isatty() or not _is_in_foreground(sys.stdin.fileno()):
        yield
        return
    # Reopened because the loop makes it non-blocking, which would affect output and the shell.
    terminal = os.open(os.ttyname(sys.stdin.fileno()), os.O_RDONLY | os.O_NOCTTY)
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            text = os.read(terminal, 64).decode("utf-8", "replace")
        except OSError:
            text = ""
        if not text:
            loop.remove_reader(terminal)  # The terminal is gone.
        for key in split_keys(text):
            on_key(key)

    def on_continue() -> None:
        # The shell has changed the settings of the terminal while we were stopped.
        if _is_in_foreground(terminal):
            tty.setcbreak(terminal)

    settings = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        loop.add_signal_handler(signal.SIGCONT, on_continue)
        loop.add_reader(terminal, read)
        yield
    finally:
        loop.remove_signal_handler(signal.SIGCONT)
        loop.remove_reader(terminal)
        with suppress(termios.error):  # The terminal may be gone, as after SIGHUP.
            # Not TCSADRAIN: if output is stopped with Ctrl-S, it would wait.
            termios.tcsetattr(terminal, termios.TCSANOW, settings)
        os.close(terminal)


def split_keys(text: str) -> Iterator[str]:
    """Split input from a terminal into keys. Unknown escape sequences are ignored."""
    for sequence in _KEY.findall(text):
        if sequence in _KEY_NAMES:
            yield _KEY_NAMES[sequence]
        elif not sequence.startswith("\x1b"):
            yield sequence


def _is_in_foreground(terminal: int, *, if_unknown: bool = False) -> bool:
    # In the background, changing the terminal or reading from it would stop the process.
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return if_unknown  # It is not our controlling terminal, or it is gone.


# Lines


def plain(line: Line) -> str:
    """Return the text of a line without styles."""
    return "".join(text for text, _ in line)


def clip(line: Line, width: int) -> Line:
    """Truncate a line to a width."""
    clipped: Line = []
    for text, style in line:
        clipped.append((text[:width], style))
        width -= len(text)
        if width <= 0:
            break
    return clipped


def spread(left: Line, right: Line, width: int) -> Line:
    """Align two parts to the left and right; the left part is truncated if necessary."""
    right = clip(right, width)
    room = width - len(plain(right))
    left = clip(left, max(0, room - 1))
    return [*left, (" " * (room - len(plain(left))), ""), *right]


def to_ansi(line: Line, width: int, *, colour: bool = True) -> str:
    """Format a line for a terminal of this width, erasing any old text after it.

    Unprintable characters are removed, so that names from a server can't control the terminal.
    """
    parts = []
    for text, style in line:
        shown = text if text.isprintable() else "".join(filter(str.isprintable, text))
        code = STYLES[style]
        if not colour:
            code = ";".join(each for each in code.split(";") if each in _COLOURLESS)
        parts.append(f"\x1b[{code}m{shown}\x1b[m" if code and shown else shown)
    if len(plain(line)) < width:  # In a full line, the cursor is still on the last character.
        parts.append("\x1b[K")
    return "".join(parts)


# Full-screen output


class Screen:
    """Draws only the lines that have changed, and never waits for the terminal."""

    def __init__(self, terminal: int, *, colour: bool) -> None:
        self._terminal = terminal
        self._colour = colour
        # What the terminal shows, and the size for which it was drawn.
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
        data = bytearray()
        if size != self._size:
            self._size, self._shown = size, []
            data += b"\x1b[2J"
        texts = [to_ansi(line, size[0], colour=self._colour) for line in lines]
        for number, text in enumerate(texts):
            if number >= len(self._shown) or text != self._shown[number]:
                data += f"\x1b[{number + 1};1H{text}".encode()
        self._shown = texts
        if data:
            self._write(_BEGIN_FRAME + data + _END_FRAME)

    def _write(self, data: bytes) -> None:
        self._unsent += data
        self._flush()
        if self._unsent:
            asyncio.get_running_loop().add_writer(self._terminal, self._flush)

    def _flush(self) -> None:
        try:
            del self._unsent[: os.write(self._terminal, self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # The terminal is gone.
        if not self._unsent:
            asyncio.get_running_loop().remove_writer(self._terminal)

    def enter(self) -> None:
        """Switch the terminal to full-screen output."""
        self._size = (0, 0)
        self._write(_ENTER)

    def suspend(self) -> None:
        """Restore the terminal and stop the process, like Ctrl-Z; continue with a full redraw."""
        self.leave()
        self._unsent.clear()
        os.kill(os.getpid(), signal.SIGSTOP)
        # `bg` continues the process, but leaves the terminal to the shell.
        while not _is_in_foreground(self._terminal, if_unknown=True):
            os.kill(os.getpid(), signal.SIGSTOP)
        self.enter()

    def leave(self) -> None:
        """Restore the terminal, unless it accepts no output."""
        asyncio.get_running_loop().remove_writer(self._terminal)
        self._unsent += _LEAVE
        with suppress(OSError):
            while self._unsent and select.select([], [self._terminal], [], _LEAVE_TIMEOUT_S)[1]:
                del self._unsent[: os.write(self._terminal, self._unsent)]


@contextmanager
def full_screen() -> Iterator[Screen]:
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
