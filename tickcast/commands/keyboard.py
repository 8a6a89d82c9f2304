"""Reads single keys from a terminal, without waiting for a whole line."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

_NAMES: Final = {
    "\x1b[A": "up", "\x1b[B": "down", "\x1b[C": "right", "\x1b[D": "left",
    "\x1bOA": "up", "\x1bOB": "down", "\x1bOC": "right", "\x1bOD": "left",
    "\x1b[5~": "page up", "\x1b[6~": "page down",
    "\x1b[H": "home", "\x1b[F": "end", "\x1bOH": "home", "\x1bOF": "end",
    "\x1b[1~": "home", "\x1b[4~": "end",
    "\x1b": "escape", "\r": "enter", "\n": "enter", "\x7f": "backspace", "\b": "backspace",
}  # fmt: skip
# An escape sequence (ECMA-48, 5.4, and SS3), or any other character.
_KEY: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*(?:[@-~]|$)|O(?:.|$))?|.", re.DOTALL)


@contextmanager
def keys_pressed(on_key: Callable[[str], None]) -> Iterator[None]:
    """Call `on_key` with each key that is pressed; some have names such as `left` and `enter`.

    This has no effect if standard input is not a terminal, or if another process group currently
    has the terminal. At the end the terminal's settings are restored. Ctrl-C works as usual.
    """
    if not sys.stdin.isatty() or not _is_in_foreground():
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
        for key in split(text):
            on_key(key)

    def go_on() -> None:
        # The shell has changed the settings of the terminal while we were stopped.
        if _is_in_foreground():
            tty.setcbreak(terminal)

    found = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        loop.add_signal_handler(signal.SIGCONT, go_on)
        loop.add_reader(terminal, read)
        yield
    finally:
        loop.remove_signal_handler(signal.SIGCONT)
        loop.remove_reader(terminal)
        with suppress(termios.error):  # The terminal may be gone, as after SIGHUP.
            # Not TCSADRAIN: if output is stopped with Ctrl-S, it would wait.
            termios.tcsetattr(terminal, termios.TCSANOW, found)
        os.close(terminal)


def split(text: str) -> Iterator[str]:
    """Split input from a terminal into keys. Unknown escape sequences are ignored."""
    for sequence in _KEY.findall(text):
        if sequence in _NAMES:
            yield _NAMES[sequence]
        elif not sequence.startswith("\x1b"):
            yield sequence


def _is_in_foreground() -> bool:
    # In the background, changing the terminal or reading from it would stop the process.
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return False
