"""Read prices and sizes as recordings write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from typing import Any, Final, Literal

FIXED_POINT: Final = 1_000_000_000
"""Databento's prices, where they are whole numbers, count units of 1 / `FIXED_POINT`."""
_NO_PRICE: Final = float(2**63 - 1)
"""The value that marks an unknown price there."""
_IMPLAUSIBLE: Final = 1e11
"""A whole number of this size or more can't be a plain price, so it must have a fixed point."""


class NumberReader:
    """Reads prices and sizes.

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

    def read(self, cells: Sequence[Any], name: str) -> list[float]:
        """Convert cells, which are texts or floats, to numbers.

        Raises:
            ValueError: a cell isn't a finite number. The message has its name and value.
        """
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
            raise ValueError(self._find_bad(cells, name)) from None
        try:
            numbers = list(map(float, cells))
        except ValueError:
            raise ValueError(self._find_bad(cells, name)) from None
        if not isfinite(sum(numbers)):
            for cell, number in zip(cells, numbers, strict=True):
                if not isfinite(number):
                    raise ValueError(f"{name} {_shown(cell)} is not a finite number")
        return numbers

    def prices(self, cells: Sequence[Any], name: str, *, fixed_point: bool = False) -> list[float]:
        """Convert cells to prices like `read`, and scale them.

        Args:
            fixed_point: whether whole numbers count billionths. Floats aren't scaled.
        """
        numbers = self.read(cells, name)
        if self.scale is not None:
            divisor = round(1 / self.scale)
            if divisor > 1 and abs(divisor * self.scale - 1) < 1e-12:
                return [number / divisor for number in numbers]  # Exact, unlike the factor.
            return [number * self.scale for number in numbers]
        if fixed_point:
            return [
                _fixed(number, name) if isinstance(cell, str) and _is_whole(cell) else number
                for cell, number in zip(cells, numbers, strict=True)
            ]
        if numbers and (max(numbers) >= _IMPLAUSIBLE or min(numbers) <= -_IMPLAUSIBLE):
            for cell, number in zip(cells, numbers, strict=True):
                if abs(number) >= _IMPLAUSIBLE and _is_whole(cell):
                    raise ValueError(
                        f"{name} {_shown(cell)} looks like a number with a fixed point;"
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
            raise ValueError(f"{name} {_shown(cell)} is not a number with a decimal comma")
        return text.replace(",", ".") if self._decimal == "," else text

    def _find_bad(self, cells: Sequence[Any], name: str) -> str:
        """Describe the error of the first cell that isn't a number."""
        for cell in cells:
            text = str(cell)
            if not text.strip():
                return f"the {name} is missing"
            try:
                if "_" not in text and text.isascii():
                    float(text)
                    continue
            except ValueError:
                pass
            comma = "; use --decimal , or --decimal . to say what the comma is" * (
                self._decimal is None
                and re.fullmatch(r"[+-]?[\d., ']*,[\d., ']*", text) is not None
            )
            return f"{name} {_shown(cell)} is not a number{comma}"
        return f"the {name} is missing"


def _is_whole(cell: Any) -> bool:
    return not isinstance(cell, str) or not set(cell) & set(".eE")


def _fixed(number: float, name: str) -> float:
    if number == _NO_PRICE:
        raise ValueError(f"the {name} is missing")
    return number / FIXED_POINT


def _shown(cell: Any) -> str:
    return f"{str(cell)[:40]!a}" if isinstance(cell, str) else f"{cell}"
