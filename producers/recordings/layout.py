"""Convert rows of a table to ticks, for CSV and Parquet alike.

A row that isn't a tick is reported with its number, never skipped silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, repeat
from operator import and_, or_
from typing import Any, Final, NamedTuple

from producers.recordings.cells import (
    Instruments,
    Known,
    are_given,
    needs_name,
    read_symbol,
    read_texts,
    side_of,
    side_of_maker,
    side_of_sign,
)
from producers.recordings.columns import find_columns, list_names, plain_name
from producers.recordings.numbers import NumberReader
from producers.recordings.timestamps import TimeReader
from tickcast.wire.errors import InvalidRecording, InvalidTick
from tickcast.wire.ticks import Tick, is_symbol, new_quote, new_trade
from tickcast.wire.times import Time

_BOOK: Final = frozenset(
    "issnapshot snapshot isbid updatetype firstupdateid level lvl booklevel depth".split()
)
"""Columns that identify rows of an order book, if no column says what kind of row each is."""
_KINDS: Final = ("action", "eventtype", "recordtype", "msgtype", "messagetype")
"""Columns that say what kind of row each is."""
_TRADES: Final = frozenset(
    ("t", "trade", "trade nb", "aggtrade", "match", "fill", "buy", "sell", "b", "s")
)
"""Values of such columns for trades. In Databento's files, `F` is the other side of a trade."""
BadRow = Callable[[int, str], None]
"""A callback for the number and the error of each row that isn't a tick."""


def ignore_bad_row(number: int, error: str) -> None:
    """A `BadRow` that does nothing."""


@dataclass(frozen=True)
class RowFormat:
    """Facts about a recording that its rows don't show.

    Attributes:
        times: reads the times.
        numbers: reads prices and sizes.
        symbols: new names for symbols of the file.
    """

    times: TimeReader = field(default_factory=TimeReader)
    numbers: NumberReader = field(default_factory=NumberReader)
    symbols: Mapping[str, str] = field(default_factory=dict)


class Block(NamedTuple):
    """Consecutive rows, and the row or line number of each for messages."""

    rows: list[Sequence[Any]]
    numbers: list[int]


class Layout:
    """The position of each value in a row, and the conversion of rows to ticks.

    Args:
        header: the names of the columns.
        columns: which column holds what, by name or by number from 1, or `-` if no column does.
        symbol: the symbol of rows that have none.
        form: how times, numbers and symbols are written.

    Attributes:
        notes: remarks about the ticks, to show to users.

    Raises:
        InvalidRecording: the columns don't suffice for trades or quotes.
    """

    def __init__(
        self,
        header: Sequence[str],
        columns: Mapping[str, str],
        symbol: str | None,
        form: RowFormat | None = None,
    ) -> None:
        form = form or RowFormat()
        self._symbol = symbol
        self._read_time = form.times.read
        self._numbers = form.numbers
        self._width = len(header)
        self.notes: list[str] = []
        plain = [plain_name(name) for name in header]
        places = self._places = find_columns(header, plain, columns)
        if "time" not in places:
            raise InvalidRecording(
                f"no time column among {list_names(header)}; name it with --columns time=NAME"
            )
        databento = {"rtype", "publisherid"} <= set(plain)
        self._fixed_point = databento and form.numbers.scale is None
        self._has_trades = {"price", "size"} <= places.keys()
        self._has_quotes = {"bid", "ask"} <= places.keys()
        kinds = [plain.index(each) for each in _KINDS if each in plain]
        named = {"price", "size"} <= columns.keys()
        self._action = kinds[0] if kinds and (databento or not named) else None
        if databento and self._action is None:
            # The price in `bbo` is that of the last trade. The one in `statistics` isn't a trade's.
            self._has_trades = False
            if self._has_quotes and "tsrecv" in plain and "time" not in columns:
                # `ts_event` is the time of the last trade.
                places["time"] = plain.index("tsrecv")
        self._check_kind(header, plain, columns)
        if symbol is not None and not is_symbol(symbol):
            raise InvalidRecording(f"{symbol[:40]!a} is no symbol")
        names = {"": symbol or "", **form.symbols}
        self._symbols = Known(lambda text: read_symbol(text, names))
        self._by_instrument = "symbol" not in places and "instrumentid" in plain
        if self._by_instrument and (symbol or form.symbols):
            places["symbol"] = plain.index("instrumentid")
            self._symbols = Known(Instruments(symbol, form.symbols).symbol_of)
        if symbol is None and "symbol" not in places:
            raise InvalidRecording("no symbol column; name the symbol with --symbol NAME")
        self._clock = places.get("clock")
        self._id, self._venue, self._side = map(places.get, ("id", "venue", "side"))
        self._buyer_maker = places.get("buyer_maker")
        self._price, self._size = places.get("price", -1), places.get("size", -1)
        self._size_name = header[self._size] if self._has_trades else ""
        self._bid, self._ask = places.get("bid", -1), places.get("ask", -1)
        self._bid_size, self._ask_size = map(places.get, ("bid_size", "ask_size"))
        self._venues = Known(lambda text: text.strip() or None)
        self._sides = Known(side_of)
        if self._side is not None and self._side == places.get("size"):
            self._sides = Known(side_of_sign)
        if self._buyer_maker is not None and self._side is None:
            self._side, self._sides = self._buyer_maker, Known(side_of_maker)

    def _check_kind(
        self, header: Sequence[str], plain: Sequence[str], columns: Mapping[str, str]
    ) -> None:
        """Raise InvalidRecording if the rows are neither trades nor quotes."""
        if not (self._has_trades or self._has_quotes):
            raise InvalidRecording(
                f"neither price and size nor bid and ask among {list_names(header)};"
                " name them with --columns price=NAME,size=NAME"
            )
        book = _BOOK & set(plain)
        if {"orderid", "type"} <= set(plain) and "tradeid" not in plain:
            book |= {"orderid"}
        named = {"price", "size"} <= columns.keys()
        if self._has_trades and book and self._action is None and not named:
            name = next(header[plain.index(each)] for each in plain if each in book)
            if not self._has_quotes:
                raise InvalidRecording(
                    f"no trades: rows of an order book, as the column {name} says; where they are"
                    " trades, use --columns price=NAME,size=NAME"
                )
            self._has_trades = False
        if self._has_quotes:
            self._check_sizes(header, plain, columns)

    def _check_sizes(
        self, header: Sequence[str], plain: Sequence[str], columns: Mapping[str, str]
    ) -> None:
        """Note that quotes have no sizes. Refuse if another column may contain them."""
        missing = [each for each in ("bid_size", "ask_size") if each not in self._places]
        places = set(self._places.values())
        others = [
            name
            for index, name in enumerate(header)
            if index not in places and plain[index].startswith(("bid", "ask", "offer"))
        ]
        refused = [each for each in missing if each not in columns]
        if refused and (others or len(missing) == 1):
            among = f" (is it one of {list_names(others)}?)" if others else ""
            raise InvalidRecording(
                f"no column with {refused[0].replace('_', ' ')}s{among}; name it with --columns"
                f" {refused[0]}=NAME, or {refused[0]}=- where there is none"
            )
        if missing:
            self.notes.append("quotes have no sizes here: they are published with size 0")

    # -- reading

    @property
    def timing(self) -> set[int]:
        """The columns that hold the time: one, or two if the time of day is in another column."""
        return {self._places[name] for name in ("time", "clock") if name in self._places}

    @property
    def amounts(self) -> set[int]:
        """The columns that hold prices and sizes."""
        names = ("price", "size", "bid", "bid_size", "ask", "ask_size")
        return {self._places[name] for name in names if name in self._places}

    @property
    def used(self) -> set[int]:
        """The columns that are read."""
        action = set() if self._action is None else {self._action}
        return action | set(self._places.values())

    def times_of(self, rows: Sequence[Sequence[Any]]) -> list[Time]:
        """Return the times of the rows that have one."""
        try:
            return self._times(rows)
        except (ValueError, IndexError):
            return [] if len(rows) == 1 else [each for row in rows for each in self.times_of([row])]

    def time_error(self, row: Sequence[Any]) -> str | None:
        """Describe the error in the time of a row; None if there is none."""
        try:
            self._times([row])
        except IndexError:
            return f"has only {len(row)} columns"
        except ValueError as error:
            return str(error)
        return None

    def unnamed(self, row: Sequence[Any]) -> str | None:
        """Return the text of a row's symbol if no feed can have such a symbol, else None."""
        place = self._places.get("symbol")
        if place is None or place >= len(row):
            return None
        name = str(row[place]).strip()
        return name if name and (self._by_instrument or needs_name(name)) else None

    def _times(self, rows: Sequence[Sequence[Any]]) -> list[Time]:
        at, clock, read = self._places["time"], self._clock, self._read_time
        if clock is not None:
            return [read(f"{row[at]} {row[clock]}") for row in rows]
        return [row[at] if isinstance(row[at], Time) else read(row[at]) for row in rows]

    def read(self, block: Block, on_bad_row: BadRow) -> Iterable[Tick]:
        """Return the ticks of some rows, in order.

        Args:
            block: cells are texts. A time may also be a `Time`, and an amount a float.
            on_bad_row: called, in the order of rows, with the number and the error of each row
                that isn't a tick, or that should hold a trade and a quote but holds only one.
        """
        try:
            return self._read(block.rows)
        except (ValueError, IndexError, InvalidTick):
            return self._read_singly(block, on_bad_row)

    def _read_singly(self, block: Block, on_bad_row: BadRow) -> Iterator[Tick]:
        for row, number in zip(block.rows, block.numbers, strict=True):
            try:
                yield from self._read([row])
            except IndexError:
                on_bad_row(number, f"has only {len(row)} columns")
            except (ValueError, InvalidTick) as error:
                on_bad_row(number, str(error))
                if self._has_trades and self._has_quotes:
                    yield from self._read_half(row)

    def _read_half(self, row: Sequence[Any]) -> Sequence[Tick]:
        """Return the valid half of a row that should hold a trade and a quote."""
        for quotes in (False, True):
            try:
                return self._read([row], trades=not quotes, quotes=quotes)
            except (ValueError, IndexError, InvalidTick):
                continue
        return []

    def _read(
        self, rows: Sequence[Sequence[Any]], *, trades: bool = True, quotes: bool = True
    ) -> Sequence[Tick]:
        """Return the ticks of valid rows. Raises ValueError, IndexError or InvalidTick."""
        if max(map(len, rows), default=0) > self._width:
            self._check_width(rows)
        if self._has_trades and self._has_quotes:
            return self._read_both(rows, trades, quotes)
        if self._has_trades:
            if self._action is not None:
                self._check_actions(rows, self._action)
            return self._trades(rows, self._times(rows), self._names(rows))
        return self._quotes(rows, self._times(rows), self._names(rows))

    def _check_width(self, rows: Sequence[Sequence[Any]]) -> None:
        """Raise ValueError if a row has more values than there are columns."""
        for row in rows:
            if any(row[self._width :]):
                raise ValueError(
                    f"has {len(row)} columns, and the header {self._width}: is there a delimiter"
                    " inside a number?"
                )

    def _check_actions(self, rows: Sequence[Sequence[Any]], at: int) -> None:
        """Raise ValueError if a row isn't a trade but, for example, a change of an order book."""
        for row in rows:
            if row[at].strip().lower() not in _TRADES:
                raise ValueError(
                    f"not a trade: {row[at][:20]!a}, as in an order book or among quotes"
                )

    def _read_both(
        self, rows: Sequence[Sequence[Any]], trades: bool, quotes: bool
    ) -> Sequence[Tick]:
        traded, quoted = self._kinds_of(rows)
        if not trades:
            traded = [False] * len(rows)
        if not quotes:
            quoted = [False] * len(rows)
        times, symbols = self._times(rows), self._names(rows)
        found = self._trades(*(_select(each, traded) for each in (rows, times, symbols)))
        others = self._quotes(*(_select(each, quoted) for each in (rows, times, symbols)))
        if len(found) == len(others) == len(rows):
            return [tick for pair in zip(found, others, strict=True) for tick in pair]
        next_trade, next_quote = iter(found).__next__, iter(others).__next__
        ticks: list[Tick] = []
        for is_trade, is_quote in zip(traded, quoted, strict=True):
            if not (is_trade or is_quote):
                raise ValueError("neither a price nor a bid and an ask")
            if is_trade:
                ticks.append(next_trade())
            if is_quote:
                ticks.append(next_quote())
        return ticks

    def _kinds_of(self, rows: Sequence[Sequence[Any]]) -> tuple[list[bool], list[bool]]:
        """Return which rows are trades, and which have at least one side of a quote."""
        traded = are_given([row[self._price] for row in rows])
        bids = are_given([row[self._bid] for row in rows])
        asks = are_given([row[self._ask] for row in rows])
        if (at := self._action) is not None:
            actions = [row[at].strip().lower() in _TRADES for row in rows]
            traded = list(map(and_, traded, actions))
        return traded, list(map(or_, bids, asks))

    def _names(self, rows: Sequence[Sequence[Any]]) -> Sequence[str]:
        at, suffix, known = self._places.get("symbol"), self._places.get("suffix"), self._symbols
        if at is None:
            return [self._symbol or ""] * len(rows)
        if suffix is not None:
            return [known[f"{row[at].strip()}.{row[suffix].strip()}".rstrip(".")] for row in rows]
        return [known[row[at]] for row in rows]

    def _trades(
        self, rows: Sequence[Sequence[Any]], times: Sequence[Time], symbols: Sequence[str]
    ) -> list[Tick]:
        prices = self._prices([row[self._price] for row in rows], "price")
        signed = self._side is not None and self._side == self._size
        sizes = self._sizes([row[self._size] for row in rows], "size", signed)
        ids: Iterable[str | None] = repeat(None)
        if (at := self._id) is not None:
            ids = read_texts([row[at] for row in rows], "id")
        known, place = self._venues, self._venue
        venues = repeat(None) if place is None else [known[row[place]] for row in rows]
        sides: Iterable[Any] = repeat(None)
        if (side := self._side) is not None:
            sides = [self._sides[row[side]] for row in rows]
        ticks: list[Tick] = [
            new_trade(
                symbol=symbol, id=name, venue=venue, price=price, size=size, side=side, time=time
            )
            for time, symbol, price, size, name, venue, side in zip(
                times, symbols, prices, sizes, ids, venues, sides, strict=False
            )
        ]
        return ticks

    def _quotes(
        self, rows: Sequence[Sequence[Any]], times: Sequence[Time], symbols: Sequence[str]
    ) -> list[Tick]:
        bids = self._prices([row[self._bid] for row in rows], "bid")
        asks = self._prices([row[self._ask] for row in rows], "ask")
        bid_sizes, ask_sizes = (
            repeat(0.0) if at is None else self._sizes([row[at] for row in rows], name, False)
            for at, name in ((self._bid_size, "bid size"), (self._ask_size, "ask size"))
        )
        known, place = self._venues, self._venue
        venues = repeat(None) if place is None else [known[row[place]] for row in rows]
        ticks: list[Tick] = [
            new_quote(
                symbol=symbol, bid_venue=venue, bid_price=bid, bid_size=bid_size,
                ask_venue=venue, ask_price=ask, ask_size=ask_size, time=time,
            )
            for time, symbol, bid, bid_size, ask, ask_size, venue in zip(
                times, symbols, bids, bid_sizes, asks, ask_sizes, venues, strict=False
            )
        ]  # fmt: skip
        return ticks

    def _prices(self, cells: list[Any], name: str) -> list[float]:
        return self._numbers.prices(cells, name, fixed_point=self._fixed_point)

    def _sizes(self, cells: list[Any], name: str, signed: bool) -> list[float]:
        sizes = self._numbers.read(cells, name)
        if signed:
            return [abs(size) for size in sizes]
        if sizes and min(sizes) < 0:
            raise ValueError(
                f"{name} {min(sizes)} is negative; where that means a sale, use --columns"
                f" side={self._size_name}"
            )
        return sizes


def _select(values: Sequence[Any], wanted: list[bool]) -> Sequence[Any]:
    return values if all(wanted) else list(compress(values, wanted))
