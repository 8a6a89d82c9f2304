"""Ticks from recorded CSV files, plain or compressed, whatever their columns are called."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, Protocol

from feed.errors import InvalidRecording, InvalidTick
from feed.ticks import Quote, Tick, Trade, validate
from feed.times import NS_PER_SECOND, Time
from producers.compressed import DAMAGE, opened, opened_bytes
from producers.marks import ROWS, CountedLines, Marks

_COLUMN_NAMES: Final[Mapping[str, frozenset[str]]] = {
    "time": frozenset(
        "time datetime timestamp ts t date tsevent eventtime tradetime transacttime".split()
    ),
    "price": frozenset("price p px last lastprice tradeprice".split()),
    "size": frozenset("size volume qty quantity amount vol lastsize tradesize".split()),
    "symbol": frozenset("symbol sym ticker instrument productid".split()),
    "side": frozenset("side takerside aggressor aggressorside tks".split()),
    "id": frozenset("id tradeid".split()),
    "venue": frozenset("venue exchange exch x".split()),
    "bid": frozenset("bid bidprice bidpx bp bestbid".split()),
    "bid_size": frozenset("bidsize bidqty bidsz bidvolume bs bestbidsize".split()),
    "ask": frozenset("ask askprice askpx ap offer offerprice bestask".split()),
    "ask_size": frozenset("asksize askqty asksz askvolume offersize bestasksize".split()),
}
_SIDES: Final[Mapping[str, Literal["B", "S"]]] = {
    "b": "B", "buy": "B", "buyer": "B", "bid": "B",
    "s": "S", "sell": "S", "seller": "S", "ask": "S", "a": "S",
}  # fmt: skip
_SECONDS_MAX: Final = 10**11
_BLOCK: Final = 250
"""Rows read at once: enough to spread what a block costs, and too few to be late for a tick."""


class Block(NamedTuple):
    """Rows that follow each other, and the number that people know each by."""

    rows: list[Sequence[Any]]
    numbers: list[int]


class CsvRecording:
    """A CSV file of trades, of quotes, or of both, read row by row.

    The first row names the columns. Rows keep the file's order.

    Args:
        path: plain, gzip or zstd; told by the content.
        symbol: the symbol of rows that name none.
        columns: which column holds what, where its name does not say so: `{"time": "when"}`.
        on_bad_row: called with the line number and the error of each row that is no tick; such rows
            are left out.

    Raises:
        InvalidRecording: the file can't be read, or lacks columns.
    """

    def __init__(
        self,
        path: Path,
        symbol: str | None,
        columns: Mapping[str, str] | None = None,
        on_bad_row: Callable[[int, str], None] = lambda line, error: None,
    ) -> None:
        self._path = path
        self._symbol = symbol
        self._columns = columns or {}
        self._on_bad_row = on_bad_row
        self._file: BinaryIO | None = None
        self._span: tuple[Time, Time] | None = None
        self._marks = Marks()
        try:
            self.size_bytes = path.stat().st_size
            with opened(path) as (lines, _):
                header = lines.readline()
                self._delimiter = _delimiter_of(header)
                self._layout = Layout(_read_header(header), self._columns, symbol)
        except OSError as error:
            raise InvalidRecording(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise InvalidRecording(f"{path}: neither text nor compressed text") from None
        except (InvalidRecording, ValueError, *DAMAGE) as error:
            raise InvalidRecording(f"{path}: {error}") from None

    @property
    def position_bytes(self) -> int:
        """How far into the file, as stored, the reading has come."""
        return self._file.tell() if self._file else 0

    # -- as a source, after a `scan`

    @property
    def first(self) -> Time:
        """The time of the first row that has one."""
        return self._scanned()[0]

    @property
    def last(self) -> Time:
        """The greatest time of a row."""
        return self._scanned()[1]

    def _scanned(self) -> tuple[Time, Time]:
        if self._span is None:
            self.scan()
        assert self._span is not None
        return self._span

    def scan(self, on_progress: Callable[[], None] = lambda: None) -> None:
        """Read the times of all rows, and note places from which to read on.

        Where the file is damaged, it ends for this; reading the rows tells.

        Args:
            on_progress: called now and then; `position_bytes` moves.

        Raises:
            InvalidRecording: no row has a time.
        """
        with opened_bytes(self._path) as (content, stored):
            self._file = stored
            lines = CountedLines(content)
            marks = Marks()
            span = self._scan(
                iter(lines), on_progress,
                lambda greatest, line: marks.pass_rows(greatest, lines.offset, line),
            )  # fmt: skip
        if span is None or not lines.countable:
            # What is read of it must be the same as what is played.
            marks = Marks()
            with opened(self._path) as (text, stored):
                self._file = stored
                span = self._scan(text, on_progress, lambda greatest, line: None, to_damage=True)
        self._file = None
        if span is None:
            raise InvalidRecording(f"{self._path}: no row has a time")
        self._span, self._marks = span, marks

    def _scan(
        self,
        lines: Iterator[str],
        on_progress: Callable[[], None],
        on_rows: Callable[[int, int], None],
        to_damage: bool = False,
    ) -> tuple[Time, Time] | None:
        """The first and the greatest time; None where there is none, or damage.

        Args:
            on_rows: called behind every `ROWS` rows with the greatest time so far and the number of
                lines.
            to_damage: take what lies before it.
        """
        first: Time | None = None
        greatest = Time(0)
        next(lines, "")
        rows = csv.reader(lines, delimiter=self._delimiter)
        try:
            for block in _blocks(rows, ROWS):
                if times := self._layout.times_of(block.rows):
                    if first is None:
                        first = greatest = times[0]
                    greatest = max(greatest, *times)
                    on_rows(greatest, rows.line_num + 1)
                on_progress()
        except (OSError, UnicodeDecodeError, *DAMAGE):
            if not to_damage:
                return None
        return None if first is None else (first, greatest)

    def read(self, start: Time | None = None) -> Iterator[Tick]:
        """The ticks in the file's order, from some place before those of `start` on.

        Raises:
            InvalidRecording: the file turns out to be damaged.
        """
        mark = None if start is None else self._marks.before(start)
        with opened(self._path, mark.offset if mark else 0) as (lines, stored):
            self._file = stored
            if mark is None:
                lines.readline()
            rows = csv.reader(lines, delimiter=self._delimiter)
            before = mark.line if mark else 1
            try:
                for block in _blocks(rows, _BLOCK, before):
                    yield from self._layout.read(block, self._on_bad_row)
            except (OSError, UnicodeDecodeError, *DAMAGE) as error:
                raise InvalidRecording(
                    f"{self._path}: damaged after line {rows.line_num + before}: {error}"
                ) from None
            finally:
                self._file = None

    def __iter__(self) -> Iterator[Tick]:
        return self.read()


class Layout:
    """Where in a row of texts each value stands.

    Raises:
        InvalidRecording: the columns are not enough for trades or quotes.
    """

    def __init__(self, header: list[str], columns: Mapping[str, str], symbol: str | None) -> None:
        self._symbol = symbol
        places = _find_columns(header, columns)
        if "time" not in places:
            raise InvalidRecording(
                f"no time column among {', '.join(header)}; name it with --columns time=NAME"
            )
        self._has_trades = {"price", "size"} <= places.keys()
        self._has_quotes = {"bid", "ask"} <= places.keys()
        if not (self._has_trades or self._has_quotes):
            raise InvalidRecording(
                f"neither price and size nor bid and ask among {', '.join(header)};"
                " name them with --columns price=NAME,size=NAME"
            )
        if symbol is None and "symbol" not in places:
            raise InvalidRecording("no symbol column; name the symbol with --symbol")
        self._clock_column = _separate_clock(header, places["time"])
        self._time_column = places["time"]
        self._symbol_column = places.get("symbol")
        self._id, self._venue, self._side = map(places.get, ("id", "venue", "side"))
        self._price, self._size = places.get("price", -1), places.get("size", -1)
        self._bid, self._ask = places.get("bid", -1), places.get("ask", -1)
        self._bid_size, self._ask_size = map(places.get, ("bid_size", "ask_size"))
        self._places = places

    def times_of(self, rows: Sequence[Sequence[Any]]) -> list[Time]:
        """The times of rows, of those that have one."""
        try:
            return self._times(rows)
        except (ValueError, IndexError):
            return [] if len(rows) == 1 else [each for row in rows for each in self.times_of([row])]

    def _times(self, rows: Sequence[Sequence[Any]]) -> list[Time]:
        at, clock = self._time_column, self._clock_column
        if clock is not None:
            return [read_time(f"{row[at]} {row[clock]}") for row in rows]
        return [row[at] if isinstance(row[at], Time) else read_time(row[at]) for row in rows]

    @property
    def timing(self) -> set[int]:
        """The columns that hold the time: one, or two where the time of day has its own."""
        clock = set() if self._clock_column is None else {self._clock_column}
        return clock | {self._time_column}

    @property
    def amounts(self) -> set[int]:
        """The columns that hold prices and sizes."""
        names = ("price", "size", "bid", "bid_size", "ask", "ask_size")
        return {self._places[name] for name in names if name in self._places}

    @property
    def used(self) -> set[int]:
        """The columns that are read."""
        clock = set() if self._clock_column is None else {self._clock_column}
        return clock | set(self._places.values())

    def read(self, block: Block, on_bad_row: Callable[[int, str], None]) -> Iterable[Tick]:
        """The ticks of some rows, in their order.

        Args:
            block: cells are texts. A time may also be a `Time`, and an amount a float.
            on_bad_row: called with the number and the error of each row that is no tick, when its
                turn comes.
        """
        try:
            return self._read(block.rows)
        except (ValueError, IndexError, InvalidTick):
            return self._read_singly(block, on_bad_row)

    def _read_singly(self, block: Block, on_bad_row: Callable[[int, str], None]) -> Iterator[Tick]:
        for row, number in zip(block.rows, block.numbers, strict=True):
            try:
                ticks = self._read([row])
            except IndexError:
                on_bad_row(number, f"has only {len(row)} columns")
            except (ValueError, InvalidTick) as error:
                on_bad_row(number, str(error))
            else:
                yield from ticks

    def _read(self, rows: Sequence[Sequence[Any]]) -> Sequence[Tick]:
        """The ticks of rows that all make sense; raises ValueError, IndexError or InvalidTick."""
        times = self._times(rows)
        place = self._symbol_column
        symbols = (
            repeat(self._symbol or "") if place is None else [row[place].strip() for row in rows]
        )
        trades = self._trades(rows, times, symbols) if self._has_trades else []
        quotes = self._quotes(rows, times, symbols) if self._has_quotes else []
        ticks: list[Tick] = []
        if trades and quotes:
            next_trade, next_quote = iter(trades).__next__, iter(quotes).__next__
            for row in rows:
                if _is_given(row[self._price]):
                    ticks.append(next_trade())
                if _is_given(row[self._bid]):
                    ticks.append(next_quote())
        else:
            ticks += trades or quotes
        for tick in ticks:
            validate(tick)
        return ticks

    def _trades(
        self, rows: Sequence[Sequence[Any]], times: list[Time], symbols: Iterable[str]
    ) -> list[Trade]:
        price, size = self._price, self._size
        number, venue, side = self._id, self._venue, self._side
        return [
            Trade(
                symbol=symbol,
                id=None if number is None else _text(row[number]),
                venue=None if venue is None else _text(row[venue]),
                price=float(row[price]),
                size=float(row[size]),
                side=None if side is None else _SIDES.get(row[side].strip().lower()),
                time=time,
            )
            for row, time, symbol in zip(rows, times, symbols, strict=False)
            if _is_given(row[price])
        ]

    def _quotes(
        self, rows: Sequence[Sequence[Any]], times: list[Time], symbols: Iterable[str]
    ) -> list[Quote]:
        bid, bid_size, ask, ask_size = self._bid, self._bid_size, self._ask, self._ask_size
        venue = self._venue
        return [
            Quote(
                symbol=symbol,
                bid_venue=None if venue is None else _text(row[venue]),
                bid_price=float(row[bid]),
                bid_size=0.0 if bid_size is None else _size(row[bid_size]),
                ask_venue=None if venue is None else _text(row[venue]),
                ask_price=float(row[ask]),
                ask_size=0.0 if ask_size is None else _size(row[ask_size]),
                time=time,
            )
            for row, time, symbol in zip(rows, times, symbols, strict=False)
            if _is_given(row[bid])
        ]


def _is_given(cell: Any) -> bool:
    return not isinstance(cell, str) or bool(cell.strip())


def _text(cell: str) -> str | None:
    return cell.strip() or None


def _size(cell: Any) -> float:
    return float(cell) if _is_given(cell) else 0.0


class _Rows(Protocol):
    """What `csv.reader` returns."""

    line_num: int

    def __iter__(self) -> Iterator[list[str]]: ...


def _blocks(rows: _Rows, size: int, lines_before: int = 0) -> Iterator[Block]:
    """Rows in blocks, empty ones left out, numbered by the line in which each ends.

    What lies before damage comes before that is raised.
    """
    block = Block([], [])
    try:
        for row in rows:
            if row:
                block.rows.append(row)
                block.numbers.append(rows.line_num + lines_before)
                if len(block.rows) == size:
                    yield block
                    block = Block([], [])
    except (OSError, UnicodeDecodeError, *DAMAGE):
        yield block
        raise
    yield block


def parse_columns(text: str) -> dict[str, str]:
    """Read `time=DateTime,price=Last` as a mapping.

    Raises:
        ValueError: a part is not of the form `what=NAME`, or `what` is unknown.
    """
    columns: dict[str, str] = {}
    for part in text.split(","):
        what, equals, name = part.partition("=")
        if not (equals and name and what.strip() in _COLUMN_NAMES):
            raise ValueError(
                f"{part!a} is not WHAT=NAME with WHAT one of {', '.join(_COLUMN_NAMES)}"
            )
        columns[what.strip()] = name.strip()
    return columns


# Ticks that follow each other often have the same time.
@lru_cache(maxsize=64)
def read_time(text: str) -> Time:
    """A time as recordings write it: a date and time, or a number since the Unix epoch.

    Whether a number counts seconds, milliseconds, microseconds or nanoseconds is told by its size,
    as for times after 1973. Every digit counts.

    Raises:
        ValueError: it is neither.
    """
    text = text.strip()
    whole, _, fraction = text.partition(".")
    if ":" in whole and fraction.isdigit() and len(fraction) <= 9:
        return Time(_read_whole_second(whole) + int(fraction.ljust(9, "0")))
    return Time(_read_whole_second(text))


@lru_cache(maxsize=64)
def _read_whole_second(text: str) -> int:
    number = re.fullmatch(r"(\d+)(?:\.(\d+))?", text, re.ASCII)
    if number is None:
        return Time.parse(text)
    unit = NS_PER_SECOND
    while unit > 1 and int(number[1]) >= _SECONDS_MAX * (NS_PER_SECOND // unit):
        unit //= 1000
    fraction = number[2] or ""
    if 10 ** len(fraction) > unit and fraction.rstrip("0"):
        if len(fraction.rstrip("0")) > len(str(unit)) - 1:
            raise ValueError(f"finer than a nanosecond: {text[:40]!r}")
        fraction = fraction.rstrip("0")
    digits = len(str(unit)) - 1
    return Time.from_wire(int(number[1]) * unit + int(fraction[:digits].ljust(digits, "0") or 0))


def _find_columns(header: list[str], columns: Mapping[str, str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for what, name in columns.items():
        if name not in header:
            raise InvalidRecording(f"no column {name!a} among {', '.join(header)}")
        places[what] = header.index(name)
    for index, name in enumerate(header):
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        for what, names in _COLUMN_NAMES.items():
            if plain in names and index not in places.values():
                places.setdefault(what, index)
    return places


def _separate_clock(header: list[str], time_column: int) -> int | None:
    """The column with the time of day, where the first one found holds only the date."""
    names = [name.strip().lower() for name in header]
    if names[time_column] == "date" and "time" in names:
        return names.index("time")
    return None


def _read_header(line: str) -> list[str]:
    header = [name.strip() for name in next(csv.reader([line], delimiter=_delimiter_of(line)), [])]
    if not header:
        raise InvalidRecording("empty")
    return header


def _delimiter_of(header: str) -> str:
    return max(",;\t|", key=header.count)
