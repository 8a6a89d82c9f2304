"""Ticks from Databento's files, DBN, plain or compressed with zstd."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from feed.errors import InvalidRecording, InvalidSettings, InvalidTick
from feed.ticks import Quote, Tick, Trade, validate
from feed.times import NS_PER_SECOND, Time

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CHUNK: Final = 256 * 1024
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_PRICE_SCALE: Final = 1_000_000_000
_SIDES: Final[dict[str, Literal["B", "S"]]] = {"B": "B", "A": "S"}
"""The aggressor's: `Ask` is a seller's (Databento's documentation, "Side")."""


class DatabentoRecording:
    """A DBN file of the schemas `trades`, `mbp-1`, `bbo-…` and their consolidated kin.

    Times are those of the event. It takes databento-dbn.

    Args:
        path: of the file.
        symbol: of instruments for which the file has none.
        on_bad_row: called with the number and the error of each record that is no tick.

    Raises:
        InvalidRecording: the file can't be read.
        InvalidSettings: databento-dbn is not installed.
    """

    def __init__(
        self,
        path: Path,
        symbol: str | None,
        on_bad_row: Callable[[int, str], None] = lambda row, error: None,
    ) -> None:
        try:
            import databento_dbn  # noqa: PLC0415 - only this needs it
        except ImportError:
            raise InvalidSettings(
                "DBN takes databento-dbn: pip install 'tickcast[databento]'"
            ) from None
        self._dbn = databento_dbn
        self._path = path
        self._symbol = symbol
        self._on_bad_row = on_bad_row
        self._symbols = _Symbols()

    def __iter__(self) -> Iterator[Tick]:
        row = 0
        try:
            for record in self._records():
                if isinstance(record, self._dbn.Metadata):
                    self._symbols.learn(record.mappings)
                elif isinstance(record, self._dbn.SymbolMappingMsg):
                    self._symbols.name(record.instrument_id, record.stype_out_symbol)
                else:
                    row += 1
                    yield from self._read(record, row)
        except OSError as error:
            raise InvalidRecording(f"{self._path}: {error.strerror or error}") from None
        except (self._dbn.DBNError, zstd.ZstdError, EOFError) as error:
            raise InvalidRecording(f"{self._path}: damaged after record {row:,}: {error}") from None

    def _records(self) -> Iterator[Any]:
        decoder = self._dbn.DBNDecoder()
        with self._path.open("rb") as stored:
            magic = stored.read(4)
            stored.seek(0)
            data: BinaryIO = stored
            if magic == _ZSTD_MAGIC:
                data = zstd.ZstdFile(stored)  # type: ignore[assignment]
            while chunk := data.read(_CHUNK):
                decoder.write(chunk)
                yield from decoder.decode()
        if decoder.buffer():
            raise EOFError("cut off")

    def _read(self, record: Any, row: int) -> list[Tick]:
        try:
            found = list(self._ticks_of(record))
            for tick in found:
                validate(tick)
        except (ValueError, InvalidTick) as error:
            self._on_bad_row(row, str(error))
            return []
        return found

    def _ticks_of(self, record: Any) -> Iterator[Tick]:
        dbn = self._dbn
        if isinstance(record, dbn.TradeMsg):
            yield self._trade(record)
        elif isinstance(record, dbn.MBP1Msg | dbn.CMBP1Msg):
            if record.action == dbn.Action.TRADE:
                yield self._trade(record)
            yield from self._quote(record)
        elif isinstance(record, dbn.BBOMsg | dbn.CBBOMsg):
            yield from self._quote(record)
        else:
            raise ValueError(f"{type(record).__name__} is neither a trade nor a quote")

    def _trade(self, record: Any) -> Trade:
        return Trade(
            symbol=self._symbol_of(record),
            price=record.price / _PRICE_SCALE,
            size=float(record.size),
            side=_SIDES.get(str(record.side)),
            time=Time(record.ts_event),
        )

    def _quote(self, record: Any) -> Iterator[Quote]:
        level = record.levels[0]
        if self._dbn.UNDEF_PRICE in (level.bid_px, level.ask_px):
            return  # A market with one side has no quote.
        yield Quote(
            symbol=self._symbol_of(record),
            bid_price=level.bid_px / _PRICE_SCALE,
            bid_size=float(level.bid_sz),
            ask_price=level.ask_px / _PRICE_SCALE,
            ask_size=float(level.ask_sz),
            time=Time(record.ts_event),
        )

    def _symbol_of(self, record: Any) -> str:
        if record.ts_event >= 2**63:
            raise ValueError("no time")
        symbol = self._symbols.find(record.instrument_id, record.ts_event) or self._symbol
        if symbol is None:
            raise ValueError(f"instrument {record.instrument_id} has no symbol; use --symbol")
        return symbol


class _Symbols:
    """What instruments are called, day by day."""

    def __init__(self) -> None:
        self._dated: dict[int, list[tuple[str, str, str]]] = {}
        self._named: dict[int, str] = {}

    def learn(self, mappings: Any) -> None:
        """Take the mappings of a file's head, where they lead from symbols to numbers."""
        for symbol, intervals in mappings.items():
            for each in intervals:
                number = str(each["symbol"])
                if number.isdecimal():
                    span = (str(each["start_date"]), str(each["end_date"]), symbol)
                    self._dated.setdefault(int(number), []).append(span)
        for spans in self._dated.values():
            spans.sort()

    def name(self, number: int, symbol: str) -> None:
        """Take what a record in the stream says, from here on."""
        self._named[number] = symbol

    def find(self, number: int, time_ns: int) -> str | None:
        """What an instrument is called at a time; None if that is not known."""
        if (symbol := self._named.get(number)) is not None:
            return symbol
        spans = self._dated.get(number)
        if not spans:
            return None
        day = datetime.fromtimestamp(time_ns // NS_PER_SECOND, UTC).date().isoformat()
        place = bisect_right(spans, day, key=lambda span: span[0]) - 1
        if place < 0 or not day < spans[place][1]:
            return None
        return spans[place][2]
