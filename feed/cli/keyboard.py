"""Single keys of a terminal, without waiting for a line."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

_SEQUENCES: Final = {
    "\x1b[C": "right", "\x1b[D": "left", "\x1bOC": "right", "\x1bOD": "left",
}  # fmt: skip


@contextmanager
def keys_pressed(on_key: Callable[[str], None]) -> Iterator[None]:
    """Call with each key that is pressed; `left` and `right` are the arrows.

    Where standard input is no terminal, or one that belongs to somebody else just now, nothing
    happens. The terminal is left as it was found. Ctrl-C works as ever.
    """
    if not sys.stdin.isatty() or not _is_in_foreground():
        yield
        return
    terminal = sys.stdin.fileno()
    loop = asyncio.get_running_loop()

    def read() -> None:
        text = os.read(terminal, 64).decode("utf-8", "replace")
        if not text:
            loop.remove_reader(terminal)  # It is gone.
        for key in split(text):
            on_key(key)

    found = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        loop.add_reader(terminal, read)
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, found)


def split(text: str) -> Iterator[str]:
    """The keys in what a terminal sends; other keys with escape sequences are left out."""
    while text:
        for sequence, key in _SEQUENCES.items():
            if text.startswith(sequence):
                yield key
                text = text[len(sequence) :]
                break
        else:
            if text[0] == "\x1b":
                return
            yield text[0]
            text = text[1:]


def _is_in_foreground() -> bool:
    # Else setting the terminal, or reading from it, would stop the process.
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return False
