"""Read ticks from Databento's DBN files, plain or compressed with zstd."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, Final, Literal

from producers.recordings.files import DAMAGE_ERRORS, BadRow, Recording, ignore_bad_row, open_bytes
from producers.recordings.values import ValueCache, parse_symbol
from tickcast.wire.errors import InvalidRecording, InvalidSettings, InvalidTick
from tickcast.wire.ticks import Quote, Tick, Trade, new_quote, new_trade, validate
from tickcast.wire.times import NS_PER_SECOND, Time

_DAY_NS: Final = 86_400 * NS_PER_SECOND
_READ_BYTES: Final = 256 * 1024
_INSTRUMENT_ID: Final = "instrument_id"
_PRICE_SCALE: Final = 1_000_000_000
# Prefixes of the schemas whose records are trades or quotes.
_SCHEMAS: Final = ("trades", "mbp-", "tbbo", "bbo", "cmbp-", "tcbbo", "cbbo")
# The aggressor's side. `Ask` means a seller (Databento's documentation, "Side").
_SIDES: Final[dict[str, Literal["B", "S"]]] = {"B": "B", "A": "S"}


class DatabentoRecording(Recording):
    """A DBN file of trades, of quotes, or of both. Requires databento-dbn.

    Schemas: `trades`, `tbbo`, `mbp-1`, `mbp-10`, `bbo-1s`, `bbo-1m` and the consolidated ones.

    A tick has the time of the event. A quote of an interval has the end of the interval instead,
    because its `ts_event` is the time of the last trade. Among book changes, only those with the
    action `T` become trades. Every change that leaves a book with both sides yields a quote.

    Args:
        symbol: the symbol of instruments for which the file has none.
        on_bad_row: called with the number and the error of each record that isn't a tick.

    Raises:
        InvalidRecording: the file can't be read, or has another schema.
        InvalidSettings: databento-dbn is not installed.
    """

    def __init__(
        self,
        path: Path,
        symbol: str | None,
        on_bad_row: BadRow = ignore_bad_row,
        renamed: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(path, on_bad_row)
        try:
            import databento_dbn  # noqa: PLC0415 - only this needs it
        except ImportError:
            raise InvalidSettings(
                "DBN requires databento-dbn: pip install 'tickcast[databento]'"
            ) from None
        self._dbn = databento_dbn
        self._symbol = symbol
        self._symbols = _InstrumentSymbols()
        names = renamed or {}
        self._symbol_cache = ValueCache(lambda text: parse_symbol(text, names))

    def _read(self, start: Time | None) -> Iterator[Tick]:
        row = 0
        try:
            for record in self._records():
                if isinstance(record, self._dbn.Metadata):
                    self._check_schema(record.schema)
                    self._symbols.add_mappings(record)
                elif isinstance(record, self._dbn.SymbolMappingMsg):
                    self._symbols.add_mapping(record.instrument_id, record.stype_out_symbol)
                elif not isinstance(record, self._dbn.SystemMsg):
                    row += 1
                    yield from self._convert(record, row)
        except OSError as error:
            raise InvalidRecording(f"{self._path}: {error.strerror or error}") from None
        except (self._dbn.DBNError, *DAMAGE_ERRORS) as error:
            raise InvalidRecording(f"{self._path}: damaged after record {row:,}: {error}") from None

    def _check_schema(self, schema: Any) -> None:
        if schema is not None and not str(schema).startswith(_SCHEMAS):
            raise InvalidRecording(
                f"{self._path}: the schema {schema} holds neither trades nor quotes;"
                " get trades, tbbo, mbp-1, mbp-10 or bbo-1s"
            )

    def _records(self) -> Iterator[Any]:
        decoder = self._dbn.DBNDecoder()
        with open_bytes(self._path) as (content, _):
            while part := content.read(_READ_BYTES):
                decoder.write(part)
                yield from decoder.decode()
        if decoder.buffer():
            raise EOFError("cut off")

    def _convert(self, record: Any, row: int) -> list[Tick]:
        try:
            ticks = list(self._ticks(record))
            for tick in ticks:
                validate(tick)
        except (ValueError, InvalidTick) as error:
            self._on_bad_row(row, str(error))
            return []
        return ticks

    def _ticks(self, record: Any) -> Iterator[Tick]:
        dbn = self._dbn
        if isinstance(record, dbn.TradeMsg):
            if record.action != dbn.Action.TRADE:
                raise ValueError(f"action {record.action} is not a trade")
            yield self._trade(record)
        elif isinstance(record, dbn.MBP1Msg | dbn.CMBP1Msg | dbn.MBP10Msg):
            yield from self._book_ticks(record)
        elif isinstance(record, dbn.BBOMsg | dbn.CBBOMsg):
            yield self._quote(record, _time(record.ts_recv))
        else:
            raise ValueError(f"{type(record).__name__} is neither a trade nor a quote")

    def _book_ticks(self, record: Any) -> Iterator[Tick]:
        """Yield the trade of a book change, if it is one, and the best prices after it."""
        level, undefined = record.levels[0], self._dbn.UNDEF_PRICE
        if record.action == self._dbn.Action.TRADE:
            yield self._trade(record)
            # A trade doesn't change the book. If a side is missing, the change that removed it
            # has already been reported.
            with suppress(ValueError):
                yield self._quote(record, self._event_time(record))
        elif not (
            record.action == self._dbn.Action.CLEAR and level.bid_px == level.ask_px == undefined
        ):
            yield self._quote(record, self._event_time(record))

    def _trade(self, record: Any) -> Trade:
        if record.price == self._dbn.UNDEF_PRICE:
            raise ValueError("a trade without a price")
        return new_trade(
            symbol=self._symbol_of(record),
            price=record.price / _PRICE_SCALE,
            size=self._size(record.size),
            side=_SIDES.get(str(record.side)),
            time=self._event_time(record),
        )

    def _quote(self, record: Any, time: Time | None) -> Quote:
        level = record.levels[0]
        if time is None:
            raise ValueError("a quote without a time")
        for side, price in (("a bid", level.bid_px), ("an ask", level.ask_px)):
            if price == self._dbn.UNDEF_PRICE:
                raise ValueError(f"a quote without {side}")
        return new_quote(
            symbol=self._symbol_of(record),
            bid_price=level.bid_px / _PRICE_SCALE,
            bid_size=self._size(level.bid_sz),
            ask_price=level.ask_px / _PRICE_SCALE,
            ask_size=self._size(level.ask_sz),
            time=time,
        )

    def _size(self, size: int) -> float:
        if size == self._dbn.UNDEF_ORDER_SIZE:
            raise ValueError("the size is not known")
        return float(size)

    def _event_time(self, record: Any) -> Time:
        """Return the venue's time of the event, or Databento's time of receipt if it is unknown."""
        time = _time(record.ts_event) or _time(record.ts_recv)
        if time is None:
            raise ValueError("no time")
        return time

    def _symbol_of(self, record: Any) -> str:
        # Use the time that orders the file: an instrument that never traded has no other.
        time = _time(record.ts_recv) or self._event_time(record)
        symbol = self._symbols.find(record.instrument_id, time) or self._symbol
        if symbol is None:
            raise ValueError(f"instrument {record.instrument_id} has no symbol; use --symbol")
        name: str = self._symbol_cache[symbol]
        return name


def _time(ns: int) -> Time | None:
    """Return a time, or None if it is undefined."""
    return Time(ns) if 0 < ns < 2**63 else None


def _day(day: object) -> int:
    """Return a date as days since 1970."""
    return date.fromisoformat(str(day)).toordinal() - date(1970, 1, 1).toordinal()


class _InstrumentSymbols:
    """The symbols of instruments, day by day."""

    def __init__(self) -> None:
        # The first day, the day after the last one and the symbol, in the order of days since 1970.
        self._dated: dict[int, list[tuple[int, int, str]]] = {}
        # Mappings from records in the stream, which apply from there on.
        self._current: dict[int, str] = {}

    def add_mappings(self, metadata: Any) -> None:
        """Add the mappings of a file's header: symbols to numbers, or numbers to symbols."""
        from_numbers = str(metadata.stype_in) == _INSTRUMENT_ID
        for name, intervals in metadata.mappings.items():
            for each in intervals:
                number, symbol = name, str(each["symbol"])
                if not from_numbers:
                    number, symbol = symbol, name
                if number.isdecimal() and symbol:
                    span = (_day(each["start_date"]), _day(each["end_date"]), symbol)
                    self._dated.setdefault(int(number), []).append(span)
        for spans in self._dated.values():
            spans.sort()

    def add_mapping(self, number: int, symbol: str) -> None:
        """Add a mapping from a record in the stream."""
        self._current[number] = symbol

    def find(self, number: int, time_ns: int) -> str | None:
        """Return the symbol of an instrument at a time, or None if it is unknown."""
        if (symbol := self._current.get(number)) is not None:
            return symbol
        spans = self._dated.get(number)
        if not spans:
            return None
        day = time_ns // _DAY_NS
        index = bisect_right(spans, day, key=lambda span: span[0]) - 1
        if index < 0 or not day < spans[index][1]:
            return None
        return spans[index][2]
