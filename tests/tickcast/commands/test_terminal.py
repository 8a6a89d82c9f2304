from __future__ import annotations

import pytest

from tickcast.commands.terminal import STYLES, Line, clip, plain, spread, to_ansi

LINE: Line = [("AB", "bold"), ("  ", ""), ("+1%", "up flash")]


def test_styles_become_escape_sequences() -> None:
    assert to_ansi(LINE, 80) == "\x1b[1mAB\x1b[m  \x1b[1;32m+1%\x1b[m\x1b[K"
    assert to_ansi(LINE, 80, colour=False) == "\x1b[1mAB\x1b[m  \x1b[1m+1%\x1b[m\x1b[K"
    assert all(set(code) <= set("0123456789;") for code in STYLES.values())


def test_full_line_keeps_its_last_character() -> None:
    assert to_ansi([("ABC", "")], 3) == "ABC"


def test_names_cannot_control_the_terminal() -> None:
    assert to_ansi([("a\x1b[2J\r\nb\x9b1m\u202e", "")], 80) == "a[2Jb1m\x1b[K"


@pytest.mark.parametrize(
    ("width", "shown"), [(1, "A"), (3, "AB "), (7, "AB  +1%"), (80, "AB  +1%")]
)
def test_clipping(width: int, shown: str) -> None:
    assert plain(clip(LINE, width)) == shown


@pytest.mark.parametrize(
    ("width", "shown"), [(20, "AB  +1%        right"), (10, "AB   right"), (3, "rig")]
)
def test_left_part_is_truncated_first(width: int, shown: str) -> None:
    assert plain(spread(LINE, [("right", "")], width)) == shown
