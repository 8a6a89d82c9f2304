"""Convert the cells of a table: prices, sizes, symbols, sides and other texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, Final, Literal

from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import TEXT_MAX, is_symbol

# Databento's prices, where they are whole numbers, count billionths, and this one is unknown.
_FIXED_POINT: Final = 1_000_000_000
_NO_PRICE: Final = float(2**63 - 1)
# A whole number of this size or more can't be a plain price, so it must have a fixed point.
_IMPLAUSIBLE: Final = 1e11

_SIDES: Final[Mapping[str, Literal["B", "S"]]] = {
    "b": "B", "buy": "B", "buyer": "B", "bid": "B",
    "s": "S", "sell": "S", "seller": "S", "ask": "S", "a": "S",
}  # fmt: skip
_BOOLEANS: Final = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_MISSING: Final = frozenset(
    ("", "nan", "NaN", "null", "NULL", "none", "None", "na", "NA", "n/a", "N/A")
)
# The name of an option, padded with blanks as the OCC writes it.
_OPTION: Final = re.compile(r"([A-Z0-9.]{1,6}) +(\d{6}[CP]\d{8})", re.ASCII)
_CACHED_MAX: Final = 10_000


class ValueCache(dict[str, Any]):
    """Caches the results of a function, for texts that recur. Faster than `lru_cache` in a loop."""

    def __init__(self, convert: Callable[[str], Any]) -> None:
        super().__init__()
        self._convert = convert

    def __missing__(self, text: str) -> Any:
        value = self._convert(text)
        if len(self) >= _CACHED_MAX:
            self.clear()
        self[text] = value
        return value


# -- numbers


class NumberReader:
    """Converts prices and sizes.

    Args:
        decimal: the decimal mark. It is required if the mark isn't a point, or if the other one
            of point and comma separates thousands.
        scale: the factor that prices are multiplied by, such as 1e-9 for a fixed point. Without
            it, prices must be plausible.
    """

    def __init__(
        self, decimal: Literal[".", ","] | None = None, scale: float | None = None
    ) -> None:
        self._decimal = decimal
        self.scale = scale
        mark = decimal or "."
        self._grouping = "," if mark == "." else "."
        self._grouped = re.compile(
            rf"[+-]?\d{{1,3}}(?:[{self._grouping}'\u2019 \u00a0\u202f]\d{{3}})+(?:[{mark}]\d*)?",
            re.ASCII,
        )

    def sizes(self, cells: Sequence[Any], name: str) -> list[float]:
        """Convert cells, which are texts or floats, to numbers. Raises ValueError."""
        if self._decimal is not None:
            cells = [self._plain(cell, name) for cell in cells]
        try:
            # `float` accepts 1_000 and digits of other scripts, which are mistakes here.
            joined = "".join(cells)
            if "_" in joined or not joined.isascii():
                raise ValueError
        except TypeError:
            pass  # Some cells are floats.
        except ValueError:
            raise ValueError(self._describe_bad(cells, name)) from None
        try:
            numbers = list(map(float, cells))
        except ValueError:
            raise ValueError(self._describe_bad(cells, name)) from None
        if not isfinite(sum(numbers)):
            for cell, number in zip(cells, numbers, strict=True):
                if not isfinite(number):
                    raise ValueError(f"{name} {_show(cell)} is not a finite number")
        return numbers

    def prices(self, cells: Sequence[Any], name: str, *, fixed_point: bool = False) -> list[float]:
        """Convert cells to prices like `sizes`, and scale them.

        Args:
            fixed_point: whether whole numbers count billionths. Floats aren't scaled.
        """
        numbers = self.sizes(cells, name)
        if self.scale is not None:
            divisor = round(1 / self.scale)
            if divisor > 1 and abs(divisor * self.scale - 1) < 1e-12:
                return [number / divisor for number in numbers]  # Exact, unlike the factor.
            return [number * self.scale for number in numbers]
        if fixed_point:
            return [
                _from_fixed_point(number, name) if isinstance(cell, str) and _is_whole(cell)
                else number
                for cell, number in zip(cells, numbers, strict=True)
            ]  # fmt: skip
        if numbers and (max(numbers) >= _IMPLAUSIBLE or min(numbers) <= -_IMPLAUSIBLE):
            for cell, number in zip(cells, numbers, strict=True):
                if abs(number) >= _IMPLAUSIBLE and _is_whole(cell):
                    raise ValueError(
                        f"{name} {_show(cell)} looks like a number with a fixed point;"
                        " use --price-scale 1e-9, or 1"
                    )
        return numbers

    def _plain(self, cell: Any, name: str) -> Any:
        """Return a number in the form that `float` accepts, or a text that it rejects."""
        if not isinstance(cell, str):
            return cell
        text = cell.strip()
        if self._grouped.fullmatch(text):
            text = re.sub(r"['\u2019\s]", "", text).replace(self._grouping, "")
        elif self._decimal == "," and "." in text:
            raise ValueError(f"{name} {_show(cell)} is not a number with a decimal comma")
        return text.replace(",", ".") if self._decimal == "," else text

    def _describe_bad(self, cells: Sequence[Any], name: str) -> str:
        """Describe the error of the first cell that isn't a number."""
        for cell in cells:
            text = str(cell)
            if not text.strip():
                break
            try:
                if "_" not in text and text.isascii():
                    float(text)
                    continue
            except ValueError:
                pass
            has_comma = re.fullmatch(r"[+-]?[\d., ']*,[\d., ']*", text) is not None
            hint = "; use --decimal , or --decimal . to say what the comma is"
            return f"{name} {_show(cell)} is not a number" + hint * (
                has_comma and self._decimal is None
            )
        return f"the {name} is missing"


def _is_whole(cell: Any) -> bool:
    return not isinstance(cell, str) or not set(cell) & set(".eE")


def _from_fixed_point(number: float, name: str) -> float:
    if number == _NO_PRICE:
        raise ValueError(f"the {name} is missing")
    return number / _FIXED_POINT


def _show(cell: Any) -> str:
    return f"{str(cell)[:40]!a}" if isinstance(cell, str) else f"{cell}"


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


# -- symbols


def parse_symbol(text: str, renamed: Mapping[str, str]) -> str:
    """Return the symbol that a text stands for. Raises InvalidTick if it isn't a symbol."""
    text = text.strip()
    text = renamed.get(text, text)
    if is_symbol(text):
        return text
    if (option := _OPTION.fullmatch(text)) is not None:
        return option[1] + option[2]
    if not text:
        raise InvalidTick("the symbol is missing")
    hint = (
        f"; rename it with --symbol '{text}=NAME'" if text.isprintable() and len(text) < 64 else ""
    )
    raise InvalidTick(
        f"symbol {text[:40]!a} is not 1 to 32 characters of A-Z a-z 0-9 . _ / : -{hint}"
    )


def must_be_renamed(symbol: str) -> bool:
    """Return whether a symbol must be renamed before a feed can carry it."""
    return not is_symbol(symbol) and _OPTION.fullmatch(symbol) is None


def name_instruments(symbol: str | None, named: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that converts the numbers of instruments to symbols.

    With `symbol` alone, the first instrument gets that symbol. Otherwise `named` maps each
    instrument to its symbol. The function raises InvalidTick for other instruments.
    """
    symbols = dict(named)

    def convert(text: str) -> str:
        text = text.strip()
        if symbol is not None and not symbols:
            symbols[text] = symbol
        if text not in symbols:
            raise InvalidTick(
                f"instrument {text[:40]!a} has no symbol; name it with --symbol {text[:40]}=NAME"
            )
        return symbols[text]

    return convert


# -- sides and other texts


def parse_side(text: str) -> Literal["B", "S"] | None:
    """Return the taker's side, or None if it is unknown."""
    return _SIDES.get(text.strip().lower())


def parse_buyer_maker(text: str) -> Literal["B", "S"] | None:
    """Return the taker's side, given whether the buyer was the maker."""
    is_buyer_maker = _BOOLEANS.get(text.strip().lower())
    if is_buyer_maker is None:
        if text.strip():
            raise ValueError(f"{text[:20]!a} does not tell whether the buyer was the maker")
        return None
    return "S" if is_buyer_maker else "B"


def parse_sign(text: object) -> Literal["B", "S"]:
    """Return the taker's side, given a size that is negative for a sale."""
    return "S" if str(text).strip().startswith("-") else "B"


def parse_texts(cells: list[str], name: str) -> list[str | None]:
    """Return optional texts such as ids, with None for empty cells."""
    texts = [cell.strip() or None for cell in cells]
    if max(map(len, cells), default=0) > TEXT_MAX or not "".join(cells).isprintable():
        for text in texts:
            if text is not None and (len(text) > TEXT_MAX or not text.isprintable()):
                raise ValueError(
                    f"{name} {text[:40]!a} is not up to {TEXT_MAX} printable characters"
                )
    return texts
