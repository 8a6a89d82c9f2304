"""Answers of Alpaca's HTTP services with trades, quotes or bars, as objects like those of a stream.

Source: Alpaca's documentation, "Market Data API": historical and latest trades, quotes and bars of
stocks, crypto and options. Messages of Alpaca's streams have the form of ticks already.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import is_symbol

# The keys of answers, and `T` of the ticks below them.
_TYPES: Final = {
    "trades": "t", "quotes": "q", "bars": "b", "trade": "t", "quote": "q", "bar": "b",
}  # fmt: skip
# Fields by which ticks are recognized if no key names their type.
_FIELD_TYPES: Final = {"p": "t", "bp": "q", "o": "b"}

Objects = list[tuple[str, dict[str, Any]]]


def objects_of(content: Any) -> Objects | None:
    """Return the ticks in an answer as objects with `T` and `S`, or None for anything else.

    Each comes with its place in the answer, for messages. The forms are:

    - `{"trades": [{…}, …], "symbol": "AAPL", "next_page_token": …}`
    - `{"trades": {"AAPL": [{…}, …], …}, "next_page_token": …}`
    - `{"trade": {…}, "symbol": "AAPL"}` and `{"trades": {"AAPL": {…}}}`, with the latest ticks
    - `{"AAPL": [{…}, …], …}`, as `alpaca-py` returns it with `raw_data=True`

    Raises:
        InvalidTick: it looks like an answer, but part of it is of another form.
    """
    if not isinstance(content, dict) or not content or "T" in content:
        return None
    keys = [key for key in _TYPES if key in content]
    if not keys:
        if not all(isinstance(value, list | dict) for value in content.values()):
            return None
        return list(_by_symbol(content, None, "ticks"))
    found: Objects = []
    for key in keys:
        value, symbol = content[key], content.get("symbol")
        if isinstance(value, dict) and key.endswith("s"):
            found += _by_symbol(value, _TYPES[key], key)
        elif value is not None:
            found += _of_symbol(symbol, value, _TYPES[key], key)
    return found


def _by_symbol(values: dict[str, Any], tag: str | None, key: str) -> Iterator[tuple[str, Any]]:
    for symbol, value in values.items():
        if value is not None:
            yield from _of_symbol(symbol, value, tag, key)


def _of_symbol(
    symbol: object, value: Any, tag: str | None, key: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    if not (isinstance(symbol, str) and is_symbol(symbol)):
        raise InvalidTick(f"{key}: {str(symbol)[:40]!a} is not a symbol")
    for number, fields in enumerate(value if isinstance(value, list) else [value], 1):
        place = f"{key} of {symbol}, number {number}"
        if not isinstance(fields, dict):
            raise InvalidTick(f"{place}: not a JSON object")
        kind = tag or next((_FIELD_TYPES[each] for each in _FIELD_TYPES if each in fields), None)
        if kind is None:
            raise InvalidTick(f"{place}: neither a trade, a quote nor a bar")
        yield place, {**fields, "T": kind, "S": symbol}
