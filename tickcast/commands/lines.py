"""Terminal lines: styled segments of text, and their ANSI escape sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

Segment = tuple[str, str]
"""Text and the name of its style."""
Line = list[Segment]

# Only the sixteen basic colours, which every terminal adapts to its background.
STYLES: Final = {
    "": "", "dim": "2", "bold": "1", "head": "1", "selected": "7", "key": "36",
    "up": "32", "up dim": "2;32", "up flash": "1;32",
    "down": "31", "down dim": "2;31", "down flash": "1;31",
    "good": "32", "bad": "1;31", "paused": "1;33",
}  # fmt: skip
_PLAIN: Final = {"1", "2", "7"}


def plain(line: Line) -> str:
    """Return the text of a line without styles."""
    return "".join(text for text, _ in line)


def width_of(line: Line) -> int:
    """Return the width of a line in characters."""
    return sum(len(text) for text, _ in line)


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
    room = width - width_of(right)
    left = clip(left, max(0, room - 1))
    return [*left, (" " * (room - width_of(left)), ""), *right]


def to_ansi(line: Line, width: int, *, colour: bool = True) -> str:
    """Format a line for a terminal of this width, erasing any old text after it.

    Unprintable characters are removed, so that names from a server can't control the terminal.
    """
    parts = []
    for text, style in line:
        shown = text if text.isprintable() else "".join(filter(str.isprintable, text))
        code = STYLES[style]
        if not colour:
            code = ";".join(each for each in code.split(";") if each in _PLAIN)
        parts.append(f"\x1b[{code}m{shown}\x1b[m" if code and shown else shown)
    if width_of(line) < width:  # In a full line, the cursor is still on the last character.
        parts.append("\x1b[K")
    return "".join(parts)


def column_ends(widths: Iterable[int], gap: int = 2) -> list[int]:
    """Return the end of each column in characters, without the gap after it."""
    ends: list[int] = []
    for width in widths:
        ends.append((ends[-1] + gap if ends else 0) + width)
    return ends


def count_fitting(widths: Sequence[int], width: int) -> int:
    """Return how many columns fit, at least one."""
    return max(1, sum(end <= width for end in column_ends(widths)))
