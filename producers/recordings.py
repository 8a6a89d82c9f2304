"""Ticks from recorded CSV files, plain or compressed, whatever their columns are called."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final, Literal

from feed.errors import InvalidRecording, InvalidTick
from feed.ticks import Quote, Tick, Trade, validate
from feed.times import NS_PER_SECOND, Time
from producers.compressed import DAMAGE, opened, opened_text
from producers.marks import CountedLines, Marks

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
_ROWS_PER_REPORT: Final = 20_000


class CsvRecording:
    """A CSV file of trades, of quotes, or of both, read row by row.

    The first row names the columns. Rows keep the file's order.

    Args:
        path: plain, gzip or zstd; told by the content.
        symbol: the symbol of rows that name none.
        columns: which column holds what, where its name does not say so: `{"time": "when"}`.
        on_bad_row: called with the line number and the error of each row that is no tick; such rows
            are left out. Of rows that are read again it is not told again.

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
        self._told_line = 0
        self._file: BinaryIO | None = None
        self._span: tuple[Time, Time] | None = None
        self._marks = Marks()
        try:
            self.size_bytes = path.stat().st_size
            with opened_text(path) as (lines, _):
                header = lines.readline()
                self._delimiter = _delimiter_of(header)
                self._layout = _Layout(_read_header(header), self._columns, symbol)
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
        first: int | None = None
        greatest = 0
        marks = Marks()
        with opened(self._path) as (content, stored):
            self._file = stored
            lines = CountedLines(content)
            texts = iter(lines)
            next(texts, "")
            rows = csv.reader(texts, delimiter=self._delimiter)
            try:
                for row in rows:
                    try:
                        time = self._layout.time_of(row)
                    except (ValueError, IndexError):
                        continue
                    if first is None:
                        first = greatest = time
                    elif time > greatest:
                        greatest = time
                    marks.pass_row(greatest, lines.offset, rows.line_num + 1)
                    if not rows.line_num % _ROWS_PER_REPORT:
                        on_progress()
            except (OSError, UnicodeDecodeError, *DAMAGE):
                pass
            finally:
                self._file = None
        if first is None:
            raise InvalidRecording(f"{self._path}: no row has a time")
        if not lines.countable:
            marks.forget()
        self._span, self._marks = (Time(first), Time(greatest)), marks

    def read(self, start: Time | None = None) -> Iterator[Tick]:
        """The ticks in the file's order, from some place before those of `start` on.

        Raises:
            InvalidRecording: the file turns out to be damaged.
        """
        mark = None if start is None else self._marks.before(start)
        with opened_text(self._path, mark.offset if mark else 0) as (lines, stored):
            self._file = stored
            if mark is None:
                lines.readline()
            rows = csv.reader(lines, delimiter=self._delimiter)
            before = mark.line if mark else 1
            try:
                for row in rows:
                    if row:
                        yield from self._read_row(row, rows.line_num + before)
            except (OSError, UnicodeDecodeError, *DAMAGE) as error:
                raise InvalidRecording(
                    f"{self._path}: damaged after line {rows.line_num + before}: {error}"
                ) from None
            finally:
                self._file = None

    def __iter__(self) -> Iterator[Tick]:
        return self.read()

    def _read_row(self, row: list[str], line: int) -> Sequence[Tick]:
        try:
            return self._layout.read(row)
        except IndexError:
            self._tell(line, f"has only {len(row)} columns")
        except (ValueError, InvalidTick) as error:
            self._tell(line, str(error))
        return ()

    def _tell(self, line: int, error: str) -> None:
        if line > self._told_line:
            self._told_line = line
            self._on_bad_row(line, error)


class _Layout:
    """Where in a row each value stands."""

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
        self._places = places

    def time_of(self, row: list[str]) -> Time:
        """The time of one row; raises ValueError or IndexError."""
        text = row[self._time_column]
        if self._clock_column is not None:
            text = f"{text} {row[self._clock_column]}"
        return read_time(text.strip())

    def read(self, row: list[str]) -> Sequence[Tick]:
        """The ticks of one row; raises ValueError, IndexError or InvalidTick."""
        places = self._places
        time = self.time_of(row)
        symbol = row[places["symbol"]].strip() if "symbol" in places else self._symbol or ""
        found: list[Tick] = []
        if self._has_trades and row[places["price"]].strip():
            found.append(self._read_trade(row, symbol, time))
        if self._has_quotes and row[places["bid"]].strip():
            found.append(self._read_quote(row, symbol, time))
        for tick in found:
            validate(tick)
        return found

    def _read_trade(self, row: list[str], symbol: str, time: Time) -> Trade:
        return Trade(
            symbol=symbol,
            id=self._text(row, "id"),
            venue=self._text(row, "venue"),
            price=float(row[self._places["price"]]),
            size=float(row[self._places["size"]]),
            side=_SIDES.get((self._text(row, "side") or "").lower()),
            time=time,
        )

    def _read_quote(self, row: list[str], symbol: str, time: Time) -> Quote:
        return Quote(
            symbol=symbol,
            bid_venue=self._text(row, "venue"),
            bid_price=float(row[self._places["bid"]]),
            bid_size=float(self._text(row, "bid_size") or 0),
            ask_venue=self._text(row, "venue"),
            ask_price=float(row[self._places["ask"]]),
            ask_size=float(self._text(row, "ask_size") or 0),
            time=time,
        )

    def _text(self, row: list[str], name: str) -> str | None:
        place = self._places.get(name)
        return row[place].strip() or None if place is not None else None


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


def read_time(text: str) -> Time:
    """A time as recordings write it: a date and time, or a number since the Unix epoch.

    Whether a number counts seconds, milliseconds, microseconds or nanoseconds is told by its size,
    as for times after 1973. Every digit counts.

    Raises:
        ValueError: it is neither.
    """
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
