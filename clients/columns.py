"""Tables in a terminal that may be too narrow: what does not fit is left out from the right."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from rich.text import Text

_GAP: Final = 2


def column_ends(heads: Sequence[str], rows: Sequence[Sequence[Text]]) -> list[int]:
    """Where each column would end, in characters, with the space behind it."""
    columns = zip(heads, *([cell.plain for cell in row] for row in rows), strict=True)
    return list(accumulate(_GAP + max(map(len, column)) for column in columns))


def count_fitting(ends: Sequence[int], width: int) -> int:
    """How many columns fit; one is always shown."""
    return max(1, sum(end - _GAP <= width for end in ends))
