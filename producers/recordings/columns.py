"""Find the columns of a table that hold times, prices and so on, by name or as the user says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import is_symbol

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
_UNIT: Final = re.compile(
    r"(.{2,}?)(?:(?:_|\W)+s|[\W_]*(?:secs?|seconds|ms|millis\w*|us|micros\w*|ns|nanos\w*))\W*",
    re.ASCII,
)
"""A column's name followed by its unit: `timestamp_ms`, `time[ns]`."""
_DATES: Final = frozenset("date day tradedate".split())
"""Columns that hold only a date if another column holds the time of day."""
_TELLING: Final = frozenset(("time", "price", "size", "bid", "ask", "bid_size", "ask_size"))
_NAME_MAX: Final = 40
_SHOWN: Final = 30
"""The number of column names that a message lists."""
NONE: Final = "-"
"""The name that `--columns` uses for a column that doesn't exist."""


def parse_columns(text: str) -> dict[str, str]:
    """Parse `time=DateTime,price=Last` into a mapping.

    Raises:
        ValueError: a part doesn't have the form `what=NAME`, or `what` is unknown.
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


def knows(header: Sequence[str]) -> int:
    """Count the texts that are known names of a column with a time, a price or a size."""
    wanted = [names for what, names in _COLUMN_NAMES.items() if what in _TELLING]
    return sum(any(plain_name(name) in names for names in wanted) for name in header)


def find_columns(
    header: Sequence[str], plain: Sequence[str], columns: Mapping[str, str]
) -> dict[str, int]:
    """Return the index of the column that holds each value, for values that have a column.

    Args:
        plain: the header's names, normalized by `plain_name`.
        columns: which column holds what, by name or by number from 1, or `NONE` if no column does.

    Raises:
        InvalidRecording: a named column doesn't exist.
    """
    places: dict[str, int] = {}
    for what, name in columns.items():
        if name in header:
            places[what] = header.index(name)
        elif name.isdecimal() and 1 <= int(name) <= len(header):
            places[what] = int(name) - 1
        elif name != NONE:
            raise InvalidRecording(f"no column {name!a} among {list_names(header)}")
    if "time" not in columns and (time := _find_time(header, plain)) is not None:
        places["time"] = time
    # The sign of a size may also encode the side.
    taken = {place for what, place in places.items() if what != "side"}
    for index, name in enumerate(plain):
        for what, names in _COLUMN_NAMES.items():
            if name in names and index not in taken and what not in columns and what not in places:
                places[what] = index
                taken.add(index)
    if "clock" not in columns and plain[places.get("time", 0)] not in _DATES:
        places.pop("clock", None)
    return places


def _find_time(header: Sequence[str], plain: Sequence[str]) -> int | None:
    """Return the column with the time, or with the date if the time of day is in another column."""
    names = _COLUMN_NAMES["time"]
    found = [n for n, name in enumerate(plain) if name in names or _is_timed(header[n])]
    dates = [n for n in found if plain[n] in _DATES]
    whole = [n for n in found if n not in dates and plain[n] not in _COLUMN_NAMES["clock"]]
    if dates and whole:
        return whole[0]
    return next(iter(dates or found), None)


def _is_timed(name: str) -> bool:
    if len(name) > _NAME_MAX:
        return False
    parts = _UNIT.fullmatch(name.strip().lower())
    return parts is not None and plain_name(parts[1]) in _COLUMN_NAMES["time"]


def list_names(header: Sequence[str]) -> str:
    """Format the names of columns for a message; of many, only the first ones."""
    shown = ", ".join(name[:40] for name in header[:_SHOWN])
    return shown + (f" and {len(header) - _SHOWN} more" if len(header) > _SHOWN else "")
