"""Ticks from recorded CSV files, plain or compressed, whatever their columns are called."""

from __future__ import annotations

import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final, Literal

from feed.errors import InvalidRecording, InvalidTick
from feed.ticks import Quote, Tick, Trade, validate
from feed.times import NS_PER_SECOND, Time

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

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
_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_DAMAGE: Final = (EOFError, zlib.error, zstd.ZstdError, csv.Error)
"""What is raised where a file is cut off, or its compression or its quotes make no sense."""


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
        try:
            self.size_bytes = path.stat().st_size
            with _opened(path) as (lines, _):
                self._layout = _Layout(_read_header(lines), self._columns, symbol)
        except OSError as error:
            raise InvalidRecording(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise InvalidRecording(f"{path}: neither text nor compressed text") from None
        except (InvalidRecording, ValueError, *_DAMAGE) as error:
            raise InvalidRecording(f"{path}: {error}") from None

    @property
    def position_bytes(self) -> int:
        """How far into the file, as stored, the reading has come."""
        return self._file.tell() if self._file else 0

    def __iter__(self) -> Iterator[Tick]:
        with _opened(self._path) as (lines, stored):
            self._file = stored
            rows = csv.reader(lines, delimiter=_delimiter_of(lines.readline()))
            try:
                for row in rows:
                    if row:
                        yield from self._read_row(row, rows.line_num + 1)
            except (OSError, UnicodeDecodeError, *_DAMAGE) as error:
                raise InvalidRecording(
                    f"{self._path}: damaged after line {rows.line_num + 1}: {error}"
                ) from None
            finally:
                self._file = None

    def _read_row(self, row: list[str], line: int) -> Sequence[Tick]:
        try:
            return self._layout.read(row)
        except IndexError:
            self._on_bad_row(line, f"has only {len(row)} columns")
        except (ValueError, InvalidTick) as error:
            self._on_bad_row(line, str(error))
        return ()


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
        self._places = places

    def read(self, row: list[str]) -> Sequence[Tick]:
        """The ticks of one row; raises ValueError, IndexError or InvalidTick."""
        places = self._places
        text = row[places["time"]]
        if self._clock_column is not None:
            text = f"{text} {row[self._clock_column]}"
        time = read_time(text.strip())
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


def _read_header(lines: io.TextIOBase) -> list[str]:
    first = lines.readline()
    header = [
        name.strip() for name in next(csv.reader([first], delimiter=_delimiter_of(first)), [])
    ]
    if not header:
        raise InvalidRecording("empty")
    return header


def _delimiter_of(header: str) -> str:
    return max(",;\t|", key=header.count)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[io.TextIOWrapper, BinaryIO]]:
    """The file's lines, and the file below the decompression, whose position tells the progress."""
    with path.open("rb") as stored:
        magic = stored.read(4)
        stored.seek(0)
        data: BinaryIO = stored
        if magic.startswith(_GZIP_MAGIC):
            data = gzip.GzipFile(fileobj=stored)  # type: ignore[assignment]
        elif magic == _ZSTD_MAGIC:
            data = zstd.ZstdFile(stored)  # type: ignore[assignment]
        with io.TextIOWrapper(data, encoding="utf-8-sig", newline="") as lines:
            yield lines, stored
