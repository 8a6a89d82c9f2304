"""Parse single cells of a table: symbols, sides and ids. Detect empty cells."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import TEXT_MAX, is_symbol

_SIDES: Final[Mapping[str, Literal["B", "S"]]] = {
    "b": "B", "buy": "B", "buyer": "B", "bid": "B",
    "s": "S", "sell": "S", "seller": "S", "ask": "S", "a": "S",
}  # fmt: skip
_TRUE: Final = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_MISSING: Final = frozenset(
    ("", "nan", "NaN", "null", "NULL", "none", "None", "na", "NA", "n/a", "N/A")
)
_OCC: Final = re.compile(r"([A-Z0-9.]{1,6}) +(\d{6}[CP]\d{8})", re.ASCII)
_KNOWN_MAX: Final = 10_000


class Known(dict[str, Any]):
    """A cache of parsed values for texts that recur."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        super().__init__()
        self._read = read

    def __missing__(self, text: str) -> Any:
        value = self._read(text)
        if len(self) >= _KNOWN_MAX:
            self.clear()
        self[text] = value
        return value


def read_symbol(text: str, renamed: Mapping[str, str]) -> str:
    """Return the symbol that a text stands for. Raises InvalidTick if it isn't a symbol."""
    text = text.strip()
    text = renamed.get(text, text)
    if is_symbol(text):
        return text
    if (option := _OCC.fullmatch(text)) is not None:
        return option[1] + option[2]
    if not text:
        raise InvalidTick("the symbol is missing")
    hint = (
        f"; rename it with --symbol '{text}=NAME'" if text.isprintable() and len(text) < 64 else ""
    )
    raise InvalidTick(
        f"symbol {text[:40]!a} is not 1 to 32 characters of A-Z a-z 0-9 . _ / : -{hint}"
    )


class Instruments:
    """Symbols for instruments that a file identifies by number only.

    With `symbol` alone, the first instrument gets that symbol. Otherwise `named` maps each
    instrument to its symbol.
    """

    def __init__(self, symbol: str | None, named: Mapping[str, str]) -> None:
        self._symbol = symbol
        self._named = dict(named)

    def symbol_of(self, text: str) -> str:
        """Return the symbol of an instrument. Raises InvalidTick if it has none."""
        text = text.strip()
        if self._symbol is not None and not self._named:
            self._named[text] = self._symbol
        if text not in self._named:
            raise InvalidTick(
                f"instrument {text[:40]!a} has no symbol; name it with --symbol {text[:40]}=NAME"
            )
        return self._named[text]


def side_of_maker(text: str) -> Literal["B", "S"] | None:
    """Return the taker's side, given whether the buyer was the maker."""
    is_buyer = _TRUE.get(text.strip().lower())
    if is_buyer is None:
        if text.strip():
            raise ValueError(f"whether the buyer was the maker is not said by {text[:20]!a}")
        return None
    return "S" if is_buyer else "B"


def side_of_sign(text: object) -> Literal["B", "S"]:
    """Return the taker's side, given a size that is negative for a sale."""
    return "S" if str(text).strip().startswith("-") else "B"


def read_texts(cells: list[str], name: str) -> list[str | None]:
    """Return optional texts such as ids, with None for empty cells."""
    texts = [cell.strip() or None for cell in cells]
    if max(map(len, cells), default=0) > TEXT_MAX or not "".join(cells).isprintable():
        for text in texts:
            if text is not None and (len(text) > TEXT_MAX or not text.isprintable()):
                raise ValueError(
                    f"{name} {text[:40]!a} is not up to {TEXT_MAX} printable characters"
                )
    return texts


def are_given(cells: list[Any]) -> list[bool]:
    """Return which cells hold a value.

    In a block of several cells, unusual forms of a missing value, such as blanks, count as values.
    They fail to parse as numbers, and then the rows are read again one by one.
    """
    if len(cells) > 1:
        return [cell not in _MISSING for cell in cells]
    return [
        cell.strip().lower() not in _MISSING if isinstance(cell, str) else cell == cell  # noqa: PLR0124
        for cell in cells
    ]


def side_of(text: str) -> Literal["B", "S"] | None:
    """Return the taker's side, or None if it is unknown."""
    return _SIDES.get(text.strip().lower())


def needs_name(symbol: str) -> bool:
    """Return whether a symbol must be renamed before a feed can carry it."""
    return not is_symbol(symbol) and _OCC.fullmatch(symbol) is None
