"""Make ticks of a table: a frame of polars or pandas, or a table of pyarrow.

Tables are read through the Arrow PyCapsule interface. Each column is checked as a whole, so that
the rows need no checks one by one. Only `publish_frame` imports this module: pyarrow is optional.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import repeat
from typing import Any, Final, Literal, NamedTuple, cast

import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import fields

from tickcast.wire.errors import InvalidSettings, InvalidTick
from tickcast.wire.ticks import (
    CHANNELS,
    SIDES,
    TEXT_MAX,
    Bar,
    Quote,
    Tick,
    Timeframe,
    Trade,
    is_symbol,
    new_bar,
    new_quote,
    new_trade,
)
from tickcast.wire.times import Time
from tickcast.wire.values import to_count, to_number

_KINDS: Final[Mapping[str, type[Any]]] = {"trades": Trade, "quotes": Quote}
# Ticks made at a time. Meanwhile, the event loop waits.
_CHUNK_ROWS: Final = 5_000
# Fields that the broker or the channel sets.
_NOT_COLUMNS: Final = frozenset(("seq", "snap", "conflated", "timeframe"))
_OPTIONAL: Final = frozenset(("id", "venue", "side", "bid_venue", "ask_venue"))


class _Column(NamedTuple):
    """A column of the table and the field that it is for."""

    # The field, such as `Trade.price`, for messages.
    field: str
    name: str
    # A `pyarrow.ChunkedArray`.
    values: Any

    def error(self, row: int, problem: str, more: int = 0) -> InvalidTick:
        """Return the error for a row, which is counted from 0."""
        others = f" (and {more:,} more)" if more else ""
        return InvalidTick(f"row {row:,}, column {self.name!a}: {self.field} {problem}{others}")

    def has_type(self, what: str) -> InvalidTick:
        """Return the error for a column of the wrong type."""
        return InvalidTick(
            f"column {self.name!a}: {self.field} must be {what}, not {self.values.type}"
        )


def read_frame(
    frame: Any, channel: str, columns: Mapping[str, str], symbol: str | None
) -> Iterator[list[Tick]]:
    """Check a table, and return its ticks in chunks. The arguments are those of `publish_frame`.

    Raises:
        InvalidTick: a column is missing or of the wrong type, or a row is invalid.
        InvalidSettings: an argument is invalid, or pyarrow is not installed.
    """
    if channel not in CHANNELS:
        raise InvalidSettings(f"channel {channel!a:.40} is not one of {', '.join(CHANNELS)}")
    kind = _KINDS.get(channel, Bar)
    names = [field.name for field in fields(kind) if field.name not in _NOT_COLUMNS]
    if unknown := sorted(columns.keys() - names):
        raise InvalidSettings(
            f"columns: {kind.__name__} has no field {unknown[0]!a:.40}; it has {', '.join(names)}"
        )
    if symbol is not None and not is_symbol(symbol):
        raise InvalidTick(f"symbol {symbol!a:.40} is not a symbol")
    table = _to_arrow(frame)
    checked = {}
    for field in names:
        if field == "symbol" and symbol is not None:
            continue
        column = _find(table, kind, field, columns)
        if column is not None:
            checked[field] = _check(field, column)
    return _ticks_of(table.num_rows, channel, checked, symbol)


def _to_arrow(frame: Any) -> Any:
    if not hasattr(frame, "__arrow_c_stream__"):
        raise InvalidSettings(
            f"frame: a {type(frame).__name__} is not a table of polars, pandas or pyarrow"
        )
    try:
        return pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        # For example a pandas column that holds numbers and text.
        raise InvalidTick(f"frame: {' '.join(map(str, error.args))[:200]}") from None


def _find(table: Any, kind: type[Any], field: str, columns: Mapping[str, str]) -> _Column | None:
    name = columns.get(field, field)
    found = table.schema.get_all_field_indices(name)
    if len(found) > 1:
        raise InvalidTick(f"the frame has {len(found)} columns {name!a}")
    if found:
        return _Column(f"{kind.__name__}.{field}", name, table.column(found[0]))
    if field in _OPTIONAL and field not in columns:
        return None
    raise InvalidTick(
        f"no column {name!a} for {kind.__name__}.{field};"
        f" the frame has {', '.join(table.column_names)[:200]}"
    )


# -- checks


def _check(field: str, column: _Column) -> Any:
    """Check a column; return its values with the type from which ticks are made."""
    if field not in _OPTIONAL and column.values.null_count:
        _raise_first(column, column.values.is_null(), "is missing")
    return _CHECKS[field](column)


def _check_symbols(column: _Column) -> Any:
    return _check_texts(column, is_symbol, "must be 1 to 32 characters of A-Z a-z 0-9 . _ / : -")


def _check_sides(column: _Column) -> Any:
    return _check_texts(column, SIDES.__contains__, f"must be one of {', '.join(SIDES)}")


def _check_names(column: _Column) -> Any:
    return _check_texts(column, _is_text, f"must be printable text of 1 to {TEXT_MAX} characters")


def _check_ids(column: _Column) -> Any:
    if pa.types.is_integer(column.values.type):
        return _convert(column, "int64", _to_int64)
    return _check_names(column)


def _is_text(text: str) -> bool:
    return 0 < len(text) <= TEXT_MAX and text.isprintable()


def _to_int64(field: str, value: Any) -> int:
    if not -(2**63) <= value < 2**63:
        raise InvalidTick(f"{field}: {value} does not fit 64 bits")
    return int(value)


def _check_prices(column: _Column) -> Any:
    values = _convert(column, "float64", to_number)
    if not pc.all(pc.is_finite(values), skip_nulls=False, min_count=0).as_py():
        _raise_first(column, pc.invert(pc.is_finite(values)), "must be a finite number")
    return values


def _check_amounts(column: _Column) -> Any:
    return _check_sign(column, _check_prices(column))


def _check_counts(column: _Column) -> Any:
    return _check_sign(column, _convert(column, "int64", to_count))


def _check_sign(column: _Column, values: Any) -> Any:
    negative = pc.less(values, 0)
    if pc.any(negative, min_count=0).as_py():
        _raise_first(column, negative, "must be at least 0")
    return values


def _convert(column: _Column, kind: str, convert: Callable[[str, Any], float]) -> Any:
    """Convert numbers to a type of Arrow. Arrow does it unless that might lose digits."""
    types, values = pa.types, column.values
    if types.is_integer(values.type) or types.is_floating(values.type):
        try:
            return values.cast(kind)
        except pa.ArrowInvalid:
            pass  # Some value has too many digits. Find out which.
    elif not types.is_decimal(values.type):
        raise column.has_type("a number")
    converted = []
    for row, value in enumerate(values.to_pylist()):
        try:
            converted.append(None if value is None else convert(column.field, value))
        except InvalidTick as error:
            raise InvalidTick(f"row {row:,}, column {column.name!a}: {error}") from None
    return pa.chunked_array([pa.array(converted, kind)])


def _check_texts(column: _Column, is_valid: Callable[[str], bool], rule: str) -> Any:
    """Check each different text once."""
    values = _to_texts(column.values)
    if values is None:
        raise column.has_type("text")
    if bad := [
        text for text in values.unique().to_pylist() if text is not None and not is_valid(text)
    ]:
        _raise_first(column, pc.is_in(values, pa.array(bad)), rule)
    return values


def _to_texts(values: Any) -> Any:
    """Convert a column of text or of categories with text to strings. None for other types."""
    types = pa.types
    is_encoded = types.is_dictionary(values.type)
    kind = values.type.value_type if is_encoded else values.type
    if not any(
        check(kind)
        for check in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    ):
        return None
    if is_encoded:
        # Arrow's cast does not know all dictionaries.
        chunks = [each.dictionary.cast("string").take(each.indices) for each in values.chunks]
        return pa.chunked_array(chunks, "string")
    return values.cast("string")


def _check_times(column: _Column) -> Any:
    """Convert times to nanoseconds since 1970, as integers."""
    values = column.values
    if pa.types.is_timestamp(values.type):
        if values.type.tz is None:
            raise InvalidTick(f"column {column.name!a}: {column.field} has no time zone")
        # In seconds first, since the cast to nanoseconds names no row.
        _check_range(column, values.cast("int64"), values.type.unit)
        return values.cast(pa.timestamp("ns", values.type.tz)).cast("int64")
    if pa.types.is_integer(values.type):
        return _convert(column, "int64", _to_int64)
    if (texts := _to_texts(values)) is not None:
        converted = []
        for row, text in enumerate(texts.to_pylist()):
            try:
                converted.append(int(Time.parse(text)))
            except ValueError as error:
                raise column.error(row, f"is {error}") from None
        return pa.chunked_array([pa.array(converted, "int64")])
    raise column.has_type("a time with a time zone, whole nanoseconds or RFC 3339 text")


def _check_range(column: _Column, counts: Any, unit: str) -> None:
    most = (2**63 - 1) // {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
    outside = pc.or_(pc.greater(counts, most), pc.less(counts, -most))
    if pc.any(outside, min_count=0).as_py():
        _raise_first(column, outside, "is not within the years 1677 to 2262")


def _raise_first(column: _Column, is_bad: Any, rule: str) -> None:
    """Raise the error for the first bad row, and count the others."""
    row, count = pc.index(is_bad, True).as_py(), pc.sum(is_bad).as_py()
    value = column.values[row].as_py()
    raise column.error(row, rule if value is None else f"{rule}, not {value!a:.60}", count - 1)


_CHECKS: Final[Mapping[str, Callable[[_Column], Any]]] = {
    "symbol": _check_symbols,
    "time": _check_times,
    "side": _check_sides,
    "id": _check_ids,
    "trade_count": _check_counts,
    **dict.fromkeys(("venue", "bid_venue", "ask_venue"), _check_names),
    **dict.fromkeys(("size", "bid_size", "ask_size", "volume"), _check_amounts),
    **dict.fromkeys(("price", "bid_price", "ask_price"), _check_prices),
    **dict.fromkeys(("open", "high", "low", "close", "vwap"), _check_prices),
}


# -- ticks


def _ticks_of(
    rows: int, channel: str, columns: Mapping[str, Any], symbol: str | None
) -> Iterator[list[Tick]]:
    for first in range(0, rows, _CHUNK_ROWS):
        count = min(_CHUNK_ROWS, rows - first)
        values: dict[str, Iterable[Any]] = {
            field: _to_list(column.slice(first, count)) for field, column in columns.items()
        }
        if symbol is not None:
            values["symbol"] = repeat(symbol, count)
        values["time"] = map(Time, values["time"])
        yield _build(channel, values)


def _build(channel: str, values: Mapping[str, Iterable[Any]]) -> list[Tick]:
    def rows(*names: str) -> Iterator[tuple[Any, ...]]:
        return zip(*[values.get(name, repeat(None)) for name in names], strict=False)

    # With names, because a call with `**` takes twice the time.
    if channel == "trades":
        return [
            new_trade(
                symbol=symbol, price=price, size=size, time=time, id=id_, venue=venue, side=side
            )
            for symbol, price, size, time, id_, venue, side in rows(
                "symbol", "price", "size", "time", "id", "venue", "side"
            )
        ]
    if channel == "quotes":
        names = ("symbol", "time", "bid_price", "bid_size", "ask_price", "ask_size",
                 "bid_venue", "ask_venue")  # fmt: skip
        return [
            new_quote(
                symbol=symbol, time=time, bid_price=bp, bid_size=bs, ask_price=ap, ask_size=as_,
                bid_venue=bx, ask_venue=ax,
            )
            for symbol, time, bp, bs, ap, as_, bx, ax in rows(*names)
        ]  # fmt: skip
    make = partial(new_bar, timeframe=cast("Timeframe", channel.partition(":")[2] or "1m"))
    return [make(**dict(zip(values, row, strict=True))) for row in rows(*values)]


def _to_list(column: Any) -> list[Any]:
    """Convert a part of a checked column to a list.

    `to_pylist` makes an object of pyarrow for each value. This takes a fifth of its time.
    """
    array = column.combine_chunks()
    kind = str(array.type)
    if kind == "string":
        encoded = array.dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        if encoded.indices.null_count:
            return [None if n is None else texts[n] for n in encoded.indices.to_pylist()]
        return [texts[n] for n in _numbers(encoded.indices, "i")]
    if array.null_count:
        return cast("list[Any]", array.to_pylist())
    return _numbers(array, "d" if kind == "double" else "q")


def _numbers(array: Any, code: Literal["d", "q", "i"]) -> list[Any]:
    data = memoryview(array.buffers()[1]).cast("B")
    size = 4 if code == "i" else 8
    start = array.offset * size
    return data[start : start + len(array) * size].cast(code).tolist()
