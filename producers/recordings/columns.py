"""Find the columns of a table that hold times, prices and so on, by name or as the user says.

`find_header` finds the names in a CSV file: they may follow comments or a title, or be absent.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import is_symbol

# The usual names of each column, in the form of `plain_name`.
_COLUMN_NAMES: Final[Mapping[str, frozenset[str]]] = {
    "time": frozenset(
        "time datetime timestamp ts t date tsevent eventtime tradetime transacttime transactiontime"
        " siptimestamp createdat createdtime gmttime utctime timeutc datetimeutc timestamputc epoch"
        " unix unixtime unixtimestamp tradedate".split()
    ),
    "clock": frozenset("time timem timeofday clock tod".split()),
    "price": frozenset("price p px last lastprice tradeprice".split()),
    "size": frozenset(
        "size volume qty quantity amount vol lastsize lastqty tradesize tradeqty".split()
    ),
    "symbol": frozenset("symbol sym ticker instrument productid product symroot".split()),
    "suffix": frozenset("symsuffix".split()),
    "side": frozenset("side takerside aggressor aggressorside tks".split()),
    "buyer_maker": frozenset("isbuyermaker buyermaker".split()),
    "id": frozenset("id tradeid aggtradeid trdmatchid".split()),
    "venue": frozenset("venue exchange exch ex x".split()),
    "bid": frozenset("bid bidprice bidpx bp bestbid bestbidprice bidpx00 bids0price".split()),
    "bid_size": frozenset(
        "bidsize bidqty bidsz bidsiz bidvolume bidvol bidamount bidquantity bs bestbidsize"
        " bestbidqty bestbidquantity bestbidamount bidsz00 bids0amount bids0size".split()
    ),
    "ask": frozenset(
        "ask askprice askpx ap offer offerprice ofr bestask bestaskprice bestoffer askpx00"
        " asks0price".split()
    ),
    "ask_size": frozenset(
        "asksize askqty asksz asksiz askvolume askvol askamount askquantity offersize ofrsiz as"
        " bestasksize bestaskqty bestaskquantity bestaskamount asksz00 asks0amount"
        " asks0size".split()
    ),
}
# The columns by which a header is recognised. A row may well contain `buy` or an exchange's name.
_HEADER_NAMES: Final = frozenset[str]().union(
    *(_COLUMN_NAMES[each] for each in "time price size bid ask bid_size ask_size".split())
)
# A column's name followed by its unit: `timestamp_ms`, `time[ns]`.
_NAME_WITH_UNIT: Final = re.compile(
    r"(.{2,}?)(?:(?:_|\W)+s|[\W_]*(?:secs?|seconds|ms|millis\w*|us|micros\w*|ns|nanos\w*))\W*",
    re.ASCII,
)
# The regular expression takes quadratic time, so longer names have no unit.
_NAME_WITH_UNIT_MAX: Final = 40
# Columns that hold only a date if another column holds the time of day.
_DATES: Final = frozenset("date day tradedate".split())
_NAMES_SHOWN_MAX: Final = 30
# The name that `--columns` uses for a column that doesn't exist.
NO_COLUMN: Final = "-"


def parse_columns(text: str) -> dict[str, str]:
    """Parse `time=DateTime,price=Last` into a mapping. Raises ValueError."""
    columns: dict[str, str] = {}
    for part in text.split(","):
        what, equals, name = part.partition("=")
        if not (equals and name and what.strip() in _COLUMN_NAMES):
            raise ValueError(
                f"{part!a} is not WHAT=NAME with WHAT one of {', '.join(_COLUMN_NAMES)}"
            )
        columns[what.strip()] = name.strip()
    return columns


def parse_symbols(text: str) -> tuple[str | None, dict[str, str]]:
    """Parse `ES`, or `^GSPC=GSPC,ES=F=ES`: a symbol for rows that have none, and new names.

    Raises:
        ValueError: a part is neither a symbol nor a renaming.

    >>> parse_symbols("ES"), parse_symbols("ES=F=ES,M&M=MM")
    (('ES', {}), (None, {'ES=F': 'ES', 'M&M': 'MM'}))
    """
    default: str | None = None
    renamed: dict[str, str] = {}
    for part in text.split(","):
        old, equals, new = part.strip().rpartition("=")
        if not is_symbol(new) or (equals and not old) or (not equals and default is not None):
            raise ValueError(f"{part.strip()[:40]!a} is neither a symbol nor OLD=NEW")
        if equals:
            renamed[old] = new
        else:
            default = new
    return default, renamed


def plain_name(name: str) -> str:
    """Return a column's name reduced to its lowercase letters and digits: `<BID>` becomes `bid`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def find_columns(names: Sequence[str], columns: Mapping[str, str]) -> dict[str, int]:
    """Return the index of the column that holds each value, for values that have a column.

    Args:
        columns: which column holds what, by name or by number from 1, or `NO_COLUMN`.

    Raises:
        InvalidRecording: a named column doesn't exist.
    """
    plain = [plain_name(name) for name in names]
    indexes: dict[str, int] = {}
    for what, name in columns.items():
        if name in names:
            indexes[what] = names.index(name)
        elif name.isdecimal() and 1 <= int(name) <= len(names):
            indexes[what] = int(name) - 1
        elif name != NO_COLUMN:
            raise InvalidRecording(f"no column {name!a} among {list_names(names)}")
    if "time" not in columns and (time := _find_time(names, plain)) is not None:
        indexes["time"] = time
    # The sign of a size may also encode the side.
    taken = {index for what, index in indexes.items() if what != "side"}
    for index, name in enumerate(plain):
        for what, known in _COLUMN_NAMES.items():
            if name in known and index not in taken and what not in columns and what not in indexes:
                indexes[what] = index
                taken.add(index)
    if "clock" not in columns and plain[indexes.get("time", 0)] not in _DATES:
        indexes.pop("clock", None)
    return indexes


def _find_time(names: Sequence[str], plain: Sequence[str]) -> int | None:
    """Return the column with the time, or with the date if the time of day is in another column."""
    known = _COLUMN_NAMES["time"]
    found = [n for n, name in enumerate(plain) if name in known or _is_time_with_unit(names[n])]
    dates = [n for n in found if plain[n] in _DATES]
    whole = [n for n in found if n not in dates and plain[n] not in _COLUMN_NAMES["clock"]]
    if dates and whole:
        return whole[0]
    return next(iter(dates or found), None)


def _is_time_with_unit(name: str) -> bool:
    if len(name) > _NAME_WITH_UNIT_MAX:
        return False
    parts = _NAME_WITH_UNIT.fullmatch(name.strip().lower())
    return parts is not None and plain_name(parts[1]) in _COLUMN_NAMES["time"]


def list_names(names: Sequence[str]) -> str:
    """Format the names of columns for a message; of many, only the first ones."""
    shown = ", ".join(name[:40] for name in names[:_NAMES_SHOWN_MAX])
    more = len(names) - _NAMES_SHOWN_MAX
    return shown + (f" and {more} more" if more > 0 else "")


# -- the header of a CSV file

HEADER_LINES_MAX: Final = 50
_LINE_MAX: Final = 1 << 20
_VALUES_SHOWN_MAX: Final = 80
_COMMENTS: Final = ("#", "//", "%")
# The line that Excel writes first.
_SEPARATOR: Final = re.compile(r"\ufeff?\"?sep=(.)\"?\s*", re.IGNORECASE)
_VALUE: Final = re.compile(r"[+-]?[\d.,:/ TZ_-]*\d[\d.,:/ TZ_+-]*(?:[eE][+-]?\d+)?|true|false",
                           re.IGNORECASE | re.ASCII)  # fmt: skip


class Header(NamedTuple):
    """How a file is divided into a header and rows."""

    # The names of the columns, or numbers from 1 if the file has no names.
    names: list[str]
    delimiter: str
    # The number of lines before the first row.
    lines: int


def find_header(readline: Callable[[int], str], columns: Mapping[str, str]) -> Header:
    """Search the first lines of a file for the header.

    A line before the header is skipped if it can't be a row: if it is empty, a comment or Excel's
    `sep=;`, or has no number or date, or has fewer values than the header.

    Args:
        readline: returns the next line, up to a length, and an empty string at the end.
        columns: the columns that the user gave by name or number.

    Raises:
        InvalidRecording: the file is empty, or has no header and no columns were given by number.
        csv.Error: a value is too long.
    """
    delimiter: str | None = None
    first: Header | None = None
    comment: list[str] = []
    for number in range(1, HEADER_LINES_MAX + 1):
        line = readline(_LINE_MAX)
        if not line:
            break
        text = line.strip()
        if (separator := _SEPARATOR.fullmatch(line)) is not None and first is None:
            delimiter = separator[1]
        elif text.startswith(_COMMENTS) and first is None:
            comment = _split(text.lstrip("#/% "), delimiter or _guess_delimiter(text))
        elif text:
            used = delimiter or _guess_delimiter(line)
            header = Header(_split(line, used), used, number)
            if _is_header(header.names, columns) and (first is None or _is_title(first, header)):
                return header
            first = first or header
    if first is None:
        raise InvalidRecording("empty")
    values = first.names
    if len(comment) == len(values) and _is_header(comment, columns):
        return Header(comment, first.delimiter, first.lines - 1)
    if not any(map(_is_value, values)):
        return first
    if any(name.isdecimal() for name in columns.values()):
        names = [str(n) for n in range(1, len(values) + 1)]
        return Header(names, first.delimiter, first.lines - 1)
    raise InvalidRecording(
        f"no header: line {first.lines} holds values ({', '.join(values)[:_VALUES_SHOWN_MAX]}); say"
        " by number which column is what, such as --columns time=1,price=2,size=3"
    )


def _is_header(cells: Sequence[str], columns: Mapping[str, str]) -> bool:
    named = {name for name in columns.values() if not name.isdecimal()}
    if not named.isdisjoint(cells):
        return True
    # A row may contain a `T` or a `P`, but next to numbers.
    known = sum(plain_name(cell) in _HEADER_NAMES for cell in cells)
    return known > (2 if any(map(_is_value, cells)) else 0)


def _is_title(first: Header, header: Header) -> bool:
    """Return whether an earlier line can't be a row, given the header."""
    if not any(map(_is_value, first.names)):
        return True
    return sum(map(bool, first.names)) < len(header.names)


def _is_value(cell: str) -> bool:
    return _VALUE.fullmatch(cell) is not None


def _split(line: str, delimiter: str) -> list[str]:
    values = next(csv.reader([line], delimiter=delimiter), [])
    return [value.strip() for value in values]


def _guess_delimiter(line: str) -> str:
    return max(",;\t|", key=line.count)
