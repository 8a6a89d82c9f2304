"""Convert the rows of a table to ticks, for CSV and Parquet alike.

A row that isn't a tick is reported with its number, never skipped silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, repeat
from operator import and_, or_
from typing import Any, Final, NamedTuple

from producers.recordings.columns import find_columns, list_names, plain_name
from producers.recordings.files import BadRow
from producers.recordings.timestamps import TimeReader
from producers.recordings.values import (
    NumberReader,
    ValueCache,
    are_given,
    must_be_renamed,
    name_instruments,
    parse_buyer_maker,
    parse_side,
    parse_sign,
    parse_symbol,
    parse_texts,
)
from tickcast.wire.errors import InvalidRecording, InvalidTick
from tickcast.wire.ticks import Tick, is_symbol, new_quote, new_trade
from tickcast.wire.times import Time

Row = Sequence[Any]

# Columns that identify rows of an order book, if no column says what kind of row each is.
_BOOK_NAMES: Final = frozenset(
    "issnapshot snapshot isbid updatetype firstupdateid level lvl booklevel depth".split()
)
# Columns that say what kind of row each is, and their values for trades. In Databento's files, `F`
# is the other side of a trade.
_ACTION_NAMES: Final = ("action", "eventtype", "recordtype", "msgtype", "messagetype")
_TRADE_ACTIONS: Final = frozenset(
    ("t", "trade", "trade nb", "aggtrade", "match", "fill", "buy", "sell", "b", "s")
)
_ROW_ERRORS: Final = (ValueError, IndexError, InvalidTick)


@dataclass(frozen=True)
class TableFormat:
    """How the values of a table are written, if the table doesn't show it."""

    times: TimeReader = field(default_factory=TimeReader)
    numbers: NumberReader = field(default_factory=NumberReader)
    # New names for symbols of the file.
    symbols: Mapping[str, str] = field(default_factory=dict)


class Block(NamedTuple):
    """Consecutive rows, and the row or line number of each for messages."""

    rows: list[Row]
    numbers: list[int]


class RowConverter:
    """Converts rows to ticks.

    Args:
        columns: which column holds what, by name or by number from 1, or `-` if no column does.
        symbol: the symbol of rows that have none.

    Raises:
        InvalidRecording: the columns don't suffice for trades or quotes.
    """

    def __init__(
        self,
        header: Sequence[str],
        columns: Mapping[str, str],
        symbol: str | None,
        table_format: TableFormat | None = None,
    ) -> None:
        table_format = table_format or TableFormat()
        self._header = header
        self._plain = [plain_name(name) for name in header]
        # The index of the column of each value.
        self._columns = find_columns(header, columns)
        self._symbol = symbol
        self._numbers = table_format.numbers
        self._parse_time = table_format.times.parse
        # Remarks about the ticks, to show to users.
        self.notes: list[str] = []
        if "time" not in self._columns:
            raise InvalidRecording(
                f"no time column among {list_names(header)}; name it with --columns time=NAME"
            )
        self._has_trades = {"price", "size"} <= self._columns.keys()
        self._has_quotes = {"bid", "ask"} <= self._columns.keys()
        is_named = {"price", "size"} <= columns.keys()
        is_databento = {"rtype", "publisherid"} <= set(self._plain)
        self._fixed_point = is_databento and table_format.numbers.scale is None
        actions = [self._plain.index(each) for each in _ACTION_NAMES if each in self._plain]
        self._action = actions[0] if actions and (is_databento or not is_named) else None
        if is_databento and self._action is None:
            # The price in `bbo` is that of the last trade. The one in `statistics` isn't a trade's.
            self._has_trades = False
            if self._has_quotes and "tsrecv" in self._plain and "time" not in columns:
                # `ts_event` is the time of the last trade.
                self._columns["time"] = self._plain.index("tsrecv")
        if not (self._has_trades or self._has_quotes):
            raise InvalidRecording(
                f"neither price and size nor bid and ask among {list_names(header)};"
                " name them with --columns price=NAME,size=NAME"
            )
        if self._has_trades and self._action is None and not is_named:
            self._reject_book()
        if self._has_quotes:
            self._check_quote_sizes(columns)
        self._prepare_symbols(symbol, table_format.symbols)
        self._prepare_sides()
        self._venues = ValueCache(lambda text: text.strip() or None)

    def _reject_book(self) -> None:
        """If the rows are those of an order book, don't read trades from them."""
        book = _BOOK_NAMES & set(self._plain)
        if {"orderid", "type"} <= set(self._plain) and "tradeid" not in self._plain:
            book |= {"orderid"}
        if not book:
            return
        if not self._has_quotes:
            name = self._header[next(n for n, each in enumerate(self._plain) if each in book)]
            raise InvalidRecording(
                f"no trades: rows of an order book, as the column {name} shows; if they are"
                " trades, use --columns price=NAME,size=NAME"
            )
        self._has_trades = False

    def _check_quote_sizes(self, columns: Mapping[str, str]) -> None:
        """Note that quotes have no sizes. Refuse if another column may contain them."""
        missing = [each for each in ("bid_size", "ask_size") if each not in self._columns]
        used = set(self._columns.values())
        others = [
            name
            for index, name in enumerate(self._header)
            if index not in used and self._plain[index].startswith(("bid", "ask", "offer"))
        ]
        refused = [each for each in missing if each not in columns]
        if refused and (others or len(missing) == 1):
            among = f" (is it one of {list_names(others)}?)" if others else ""
            raise InvalidRecording(
                f"no column with {refused[0].replace('_', ' ')}s{among}; name it with --columns"
                f" {refused[0]}=NAME, or {refused[0]}=- if there is none"
            )
        if missing:
            self.notes.append("quotes have no sizes here: they are published with size 0")

    def _prepare_symbols(self, symbol: str | None, renamed: Mapping[str, str]) -> None:
        if symbol is not None and not is_symbol(symbol):
            raise InvalidRecording(f"{symbol[:40]!a} is not a symbol")
        names = {"": symbol or "", **renamed}
        self._symbols = ValueCache(lambda text: parse_symbol(text, names))
        self._by_instrument = "symbol" not in self._columns and "instrumentid" in self._plain
        if self._by_instrument and (symbol or renamed):
            self._columns["symbol"] = self._plain.index("instrumentid")
            self._symbols = ValueCache(name_instruments(symbol, renamed))
        if symbol is None and "symbol" not in self._columns:
            raise InvalidRecording("no symbol column; name the symbol with --symbol NAME")

    def _prepare_sides(self) -> None:
        side = self._columns.get("side")
        self._signed = side is not None and side == self._columns.get("size")
        self._sides = ValueCache(parse_sign if self._signed else parse_side)
        if side is None and "buyer_maker" in self._columns:
            self._columns["side"] = self._columns["buyer_maker"]
            self._sides = ValueCache(parse_buyer_maker)

    # -- which columns are read

    @property
    def time_columns(self) -> set[int]:
        """The columns that hold the time: one, or two if the time of day is in another column."""
        return {self._columns[name] for name in ("time", "clock") if name in self._columns}

    @property
    def number_columns(self) -> set[int]:
        """The columns that hold prices and sizes."""
        names = ("price", "size", "bid", "bid_size", "ask", "ask_size")
        return {self._columns[name] for name in names if name in self._columns}

    @property
    def used_columns(self) -> set[int]:
        """All columns that are read."""
        action = set() if self._action is None else {self._action}
        return action | set(self._columns.values())

    # -- single values

    def times(self, rows: Sequence[Row]) -> list[Time]:
        """Return the times of the rows that have one."""
        try:
            return self._times(rows)
        except (ValueError, IndexError):
            return [] if len(rows) == 1 else [each for row in rows for each in self.times([row])]

    def time_error(self, row: Row) -> str | None:
        """Describe the error in the time of a row; None if there is none."""
        try:
            self._times([row])
        except (ValueError, IndexError) as error:
            return _describe(error, row)
        return None

    def unusable_symbol(self, row: Row) -> str | None:
        """Return the text of a row's symbol if no feed can have such a symbol, else None."""
        index = self._columns.get("symbol")
        if index is None or index >= len(row):
            return None
        text = str(row[index]).strip()
        return text if text and (self._by_instrument or must_be_renamed(text)) else None

    def _times(self, rows: Sequence[Row]) -> list[Time]:
        index, clock, parse = self._columns["time"], self._columns.get("clock"), self._parse_time
        if clock is not None:
            return [parse(f"{row[index]} {row[clock]}") for row in rows]
        return [row[index] if isinstance(row[index], Time) else parse(row[index]) for row in rows]

    # -- ticks

    def convert(self, block: Block, on_bad_row: BadRow) -> Iterable[Tick]:
        """Return the ticks of some rows, in order.

        Args:
            block: cells are texts. A time may also be a `Time`, and a price or size a float.
            on_bad_row: called, in the order of rows, with the number and the error of each row
                that isn't a tick, or that should hold a trade and a quote but holds only one.
        """
        # Whole blocks are several times as fast as single rows, and most blocks are good.
        try:
            return self._convert(block.rows)
        except _ROW_ERRORS:
            return self._convert_singly(block, on_bad_row)

    def _convert_singly(self, block: Block, on_bad_row: BadRow) -> Iterator[Tick]:
        for row, number in zip(block.rows, block.numbers, strict=True):
            try:
                yield from self._convert([row])
            except _ROW_ERRORS as error:
                on_bad_row(number, _describe(error, row))
                if self._has_trades and self._has_quotes and not isinstance(error, IndexError):
                    yield from self._convert_half(row)

    def _convert_half(self, row: Row) -> Sequence[Tick]:
        """Return the valid half of a row that should hold a trade and a quote."""
        for half in ({"quotes": False}, {"trades": False}):
            try:
                return self._convert([row], **half)
            except _ROW_ERRORS:
                continue
        return []

    def _convert(
        self, rows: Sequence[Row], *, trades: bool = True, quotes: bool = True
    ) -> Sequence[Tick]:
        """Return the ticks of rows if all are valid. Raises one of `_ROW_ERRORS`."""
        if max(map(len, rows), default=0) > len(self._header):
            self._check_width(rows)
        if self._has_trades and self._has_quotes:
            return self._convert_both(rows, trades, quotes)
        if self._has_quotes:
            return self._quotes(rows, self._times(rows), self._row_symbols(rows))
        if self._action is not None:
            for row in rows:
                if not self._is_trade(row):
                    action = row[self._action][:20]
                    raise ValueError(
                        f"not a trade: {action!a}, as in an order book or among quotes"
                    )
        return self._trades(rows, self._times(rows), self._row_symbols(rows))

    def _check_width(self, rows: Sequence[Row]) -> None:
        """Raise ValueError if a row has more values than there are columns."""
        width = len(self._header)
        for row in rows:
            if any(row[width:]):
                raise ValueError(
                    f"has {len(row)} columns, and the header {width}: is there a delimiter"
                    " inside a number?"
                )

    def _is_trade(self, row: Row) -> bool:
        return self._action is None or row[self._action].strip().lower() in _TRADE_ACTIONS

    def _convert_both(self, rows: Sequence[Row], trades: bool, quotes: bool) -> Sequence[Tick]:
        none = [False] * len(rows)
        has_trade = self._given(rows, "price") if trades else none
        if self._action is not None:
            has_trade = list(map(and_, has_trade, map(self._is_trade, rows)))
        # One side is enough: the missing one is then an error.
        has_quote = none
        if quotes:
            has_quote = list(map(or_, self._given(rows, "bid"), self._given(rows, "ask")))
        values = (rows, self._times(rows), self._row_symbols(rows))
        found = self._trades(*(_select(each, has_trade) for each in values))
        others = self._quotes(*(_select(each, has_quote) for each in values))
        if len(found) == len(others) == len(rows):
            return [tick for pair in zip(found, others, strict=True) for tick in pair]
        next_trade, next_quote = iter(found).__next__, iter(others).__next__
        ticks: list[Tick] = []
        for is_trade, is_quote in zip(has_trade, has_quote, strict=True):
            if not (is_trade or is_quote):
                raise ValueError("neither a price nor a bid and an ask")
            if is_trade:
                ticks.append(next_trade())
            if is_quote:
                ticks.append(next_quote())
        return ticks

    def _trades(
        self, rows: Sequence[Row], times: Sequence[Time], symbols: Sequence[str]
    ) -> list[Tick]:
        ids: Iterable[str | None] = repeat(None)
        if "id" in self._columns:
            ids = parse_texts(self._cells(rows, "id"), "id")
        return [
            new_trade(
                symbol=symbol, id=id_, venue=venue, price=price, size=size, side=side, time=time
            )
            for time, symbol, price, size, id_, venue, side in zip(
                times,
                symbols,
                self._prices(rows, "price"),
                self._sizes(rows, "size", self._signed),
                ids,
                self._cached(rows, "venue", self._venues),
                self._cached(rows, "side", self._sides),
                strict=False,
            )
        ]

    def _quotes(
        self, rows: Sequence[Row], times: Sequence[Time], symbols: Sequence[str]
    ) -> list[Tick]:
        return [
            new_quote(
                symbol=symbol, bid_venue=venue, bid_price=bid, bid_size=bid_size,
                ask_venue=venue, ask_price=ask, ask_size=ask_size, time=time,
            )
            for time, symbol, bid, ask, bid_size, ask_size, venue in zip(
                times,
                symbols,
                self._prices(rows, "bid"),
                self._prices(rows, "ask"),
                self._sizes(rows, "bid_size"),
                self._sizes(rows, "ask_size"),
                self._cached(rows, "venue", self._venues),
                strict=False,
            )
        ]  # fmt: skip

    # -- columns of several rows

    def _cells(self, rows: Sequence[Row], name: str) -> list[Any]:
        index = self._columns[name]
        return [row[index] for row in rows]

    def _given(self, rows: Sequence[Row], name: str) -> list[bool]:
        return are_given(self._cells(rows, name))

    def _cached(self, rows: Sequence[Row], name: str, cache: ValueCache) -> Iterable[Any]:
        index = self._columns.get(name)
        return repeat(None) if index is None else [cache[row[index]] for row in rows]

    def _row_symbols(self, rows: Sequence[Row]) -> Sequence[str]:
        index, suffix = self._columns.get("symbol"), self._columns.get("suffix")
        cache = self._symbols
        if index is None:
            return [self._symbol or ""] * len(rows)
        if suffix is not None:
            return [
                cache[f"{row[index].strip()}.{row[suffix].strip()}".rstrip(".")] for row in rows
            ]
        return [cache[row[index]] for row in rows]

    def _prices(self, rows: Sequence[Row], name: str) -> list[float]:
        cells = self._cells(rows, name)
        return self._numbers.prices(cells, name, fixed_point=self._fixed_point)

    def _sizes(self, rows: Sequence[Row], name: str, signed: bool = False) -> Iterable[float]:
        if name not in self._columns:
            return repeat(0.0)
        label = name.replace("_", " ")
        sizes = self._numbers.sizes(self._cells(rows, name), label)
        if signed:
            return [abs(size) for size in sizes]
        if sizes and min(sizes) < 0:
            column = self._header[self._columns["size" if self._has_trades else name]]
            raise ValueError(
                f"{label} {min(sizes)} is negative; if that means a sale, use --columns"
                f" side={column}"
            )
        return sizes


def _describe(error: Exception, row: Row) -> str:
    return f"has only {len(row)} columns" if isinstance(error, IndexError) else str(error)


def _select(values: Sequence[Any], wanted: list[bool]) -> Sequence[Any]:
    return values if all(wanted) else list(compress(values, wanted))
