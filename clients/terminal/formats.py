"""Compact formats for numbers, and sparklines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SPARKS: Final = "▁▂▃▄▅▆▇█"
DECIMALS_MAX: Final = 8
_HUGE: Final = 1e9


def count_decimals(price: float) -> int:
    """Count the decimals of a price, from two to eight."""
    if abs(price) >= _HUGE:
        return 2
    return max(2, len(f"{price:.{DECIMALS_MAX}f}".rstrip("0").partition(".")[2]))


def format_price(price: float, decimals: int | None = None) -> str:
    """Format a price with a number of decimals, by default as many as it has."""
    if abs(price) >= _HUGE:
        return f"{price:.6g}"
    return f"{price:,.{count_decimals(price) if decimals is None else decimals}f}"


def format_amount(amount: float) -> str:
    """Format a quantity compactly: 950, 12.34k, 4.56M."""
    if amount >= 1e12:
        return f"{amount:.3g}"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= limit * (10 if unit == "k" else 1):
            return f"{amount / limit:.2f}{unit}"
    return f"{amount:,.0f}" if amount == int(amount) else f"{amount:,.2f}"


def format_age(seconds: float) -> str:
    """Format an age: 0.3s, 12s, 3m, 2h."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    if seconds < 120:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 7200 else f"{seconds / 3600:.0f}h"


def sparkline(values: Sequence[float]) -> str:
    """Draw values as a sparkline, one character each."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high == low:
        return SPARKS[3] * len(values)
    scale = (len(SPARKS) - 1) / (high - low)
    return "".join(SPARKS[round((value - low) * scale)] for value in values)
