from __future__ import annotations

import pytest

from tickcast.commands.lines import (
    STYLES,
    Line,
    clip,
    column_ends,
    count_fitting,
    plain,
    spread,
    to_ansi,
)

LINE: Line = [("AB", "bold"), ("  ", ""), ("+1%", "up flash")]


def test_styles_become_sequences() -> None:
    assert to_ansi(LINE, 80) == "\x1b[1mAB\x1b[m  \x1b[1;32m+1%\x1b[m\x1b[K"
    assert to_ansi(LINE, 80, colour=False) == "\x1b[1mAB\x1b[m  \x1b[1m+1%\x1b[m\x1b[K"
    assert all(set(code) <= set("0123456789;") for code in STYLES.values())


def test_a_full_line_keeps_its_last_character() -> None:
    assert to_ansi([("ABC", "")], 3) == "ABC"


def test_nothing_in_a_name_steers_the_terminal() -> None:
    assert to_ansi([("a\x1b[2J\r\nb\x9b1m\u202e", "")], 80) == "a[2Jb1m\x1b[K"


@pytest.mark.parametrize(
    ("width", "shown"), [(1, "A"), (3, "AB "), (7, "AB  +1%"), (80, "AB  +1%")]
)
def test_clipping(width: int, shown: str) -> None:
    assert plain(clip(LINE, width)) == shown


@pytest.mark.parametrize(
    ("width", "shown"), [(20, "AB  +1%        right"), (10, "AB   right"), (3, "rig")]
)
def test_the_left_part_gives_way(width: int, shown: str) -> None:
    assert plain(spread(LINE, [("right", "")], width)) == shown


def test_columns() -> None:
    assert column_ends([3, 5, 1]) == [3, 10, 13]
    assert [count_fitting([3, 5, 1], width) for width in (1, 3, 9, 10, 13)] == [1, 1, 1, 2, 3]
