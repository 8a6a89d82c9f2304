"""Binance, spot: trades from `trade` (or `aggTrade`), quotes from `bookTicker`.

We request combined streams. Frames of raw streams, which captures by other tools contain, are
parsed as well.

Source: Binance Spot API documentation, "WebSocket Streams".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Struct, field

from producers.venues.symbols import SymbolRule, UnknownMarket
from producers.venues.venue import (
    Limits,
    Notice,
    NoticeKind,
    Number,
    Numbered,
    SequenceSeries,
    Ticks,
    Venue,
    Wants,
    checked,
    decimal,
    decode,
    numbered_trade,
)
from tickcast.wire.errors import BadFrame
from tickcast.wire.ticks import Quote, Trade
from tickcast.wire.times import Time

_NAME: Final = "binance"
T = TypeVar("T")
_STREAMS_PER_MESSAGE: Final = 200
_MICROSECONDS_MIN: Final = 10**14
"""Smaller numbers are milliseconds: 10**14 ms is in the year 5138, and 10**14 µs in 1973."""
_QUOTES: Final = tuple(
    "USDT USDC FDUSD TUSD BUSD USDP USDS USD1 PAX DAI VAI EURI BTC ETH BNB SOL XRP TRX DOGE DOT"
    " EUR GBP AUD TRY BRL RUB UAH NGN ZAR PLN RON ARS JPY MXN COP CZK IDR IDRT BIDR BKRW BVND KZT"
    " UST".split()
)


class _Head(Struct):
    """The common fields of a combined stream's frame, a raw stream's frame and a response.

    In a raw stream, `e` is the type of event. Only book tickers lack it, and only they have `u`.
    """

    stream: str = ""
    event: str = field(name="e", default="")
    update: int | None = field(name="u", default=None)
    id: int | str | None = None
    code: int | None = None
    msg: str = ""
    error: dict[str, object] | None = None


class _Fill(Struct):
    """Fields of a trade. If `m`, the buyer was the maker, so the taker sold.

    `T` is the time of the trade, and `E` the time when the event was sent.
    """

    symbol: str = field(name="s")
    price: str = field(name="p")
    quantity: str = field(name="q")
    time: int = field(name="T")
    sent: int = field(name="E")
    is_buyer_maker: bool = field(name="m")


class _Trade(_Fill):
    id: Number = field(name="t")


class _Aggregate(_Fill):
    """All fills of one taker order at one price. Aggregates have a separate series of ids."""

    id: Number = field(name="a")


class _BookTicker(Struct):
    """The best bid and ask. It has no time."""

    update: Number = field(name="u")
    symbol: str = field(name="s")
    bid: str = field(name="b")
    bid_quantity: str = field(name="B")
    ask: str = field(name="a")
    ask_quantity: str = field(name="A")


class _Combined(Struct, Generic[T]):
    """A combined stream's frame, which wraps a raw stream's frame."""

    data: T


class _Form(NamedTuple, Generic[T]):
    """Decoders for the two forms of a frame."""

    combined: msgspec.json.Decoder[_Combined[T]]
    raw: msgspec.json.Decoder[T]

    def read(self, head: _Head, frame: bytes) -> T:
        """Decode a frame. Raises BadFrame."""
        return decode(self.combined, frame).data if head.stream else decode(self.raw, frame)


_HEAD: Final = msgspec.json.Decoder(_Head)
_TRADE: Final = _Form(msgspec.json.Decoder(_Combined[_Trade]), msgspec.json.Decoder(_Trade))
_AGGREGATE: Final = _Form(
    msgspec.json.Decoder(_Combined[_Aggregate]), msgspec.json.Decoder(_Aggregate)
)
_BOOK_TICKER: Final = _Form(
    msgspec.json.Decoder(_Combined[_BookTicker]), msgspec.json.Decoder(_BookTicker)
)


class Binance(Venue):
    """The `Venue` for Binance's spot market."""

    name = _NAME
    url = "wss://stream.binance.com:9443/stream?timeUnit=MICROSECOND"
    hosts = ("binance.com", "binance.vision")
    # Documented: 1,024 streams, and 5 messages per second including pings and pongs.
    limits = Limits(streams=1024, messages_per_s=2)
    silence_max_s = None  # Binance sends no heartbeats, so a quiet market sends nothing.
    symbols = SymbolRule("", quotes=_QUOTES)

    def subscribe(self, names: Sequence[str], wants: Wants) -> list[bytes]:
        """Request up to 200 streams per message, so that no message gets too long."""
        kinds = ["trade"] * wants.trades + ["bookTicker"] * wants.quotes
        streams = [f"{name.lower()}@{kind}" for name in names for kind in kinds]
        parts = (
            streams[start : start + _STREAMS_PER_MESSAGE]
            for start in range(0, len(streams), _STREAMS_PER_MESSAGE)
        )
        return [
            msgspec.json.encode({"method": "SUBSCRIBE", "params": part, "id": number})
            for number, part in enumerate(parts, 1)
        ]

    def parse(self, frame: bytes, received: Time) -> Ticks | Notice:
        head = decode(_HEAD, frame)
        try:
            match _kind_of(head):
                case "trade":
                    return self._read_trade(_TRADE.read(head, frame), SequenceSeries.TRADES)
                case "aggTrade":
                    return self._read_trade(_AGGREGATE.read(head, frame), SequenceSeries.AGGREGATES)
                case "bookTicker":
                    return self._read_quote(_BOOK_TICKER.read(head, frame), received)
        except UnknownMarket:
            raise
        except ValueError as error:
            raise BadFrame(str(error)) from None
        return _read_answer(head)

    def _read_trade(self, trade: _Trade | _Aggregate, series: SequenceSeries) -> Ticks:
        tick = Trade(
            symbol=self.symbols.ours(trade.symbol),
            id=trade.id,
            venue=_NAME,
            price=decimal(trade.price),
            size=decimal(trade.quantity),
            side="S" if trade.is_buyer_maker else "B",
            time=_time(trade.time),
        )
        return Ticks((numbered_trade(tick, series, trade.id),), _time(trade.sent))

    def _read_quote(self, book: _BookTicker, received: Time) -> Ticks | Notice:
        quote = Quote(
            symbol=self.symbols.ours(book.symbol),
            bid_venue=_NAME,
            bid_price=decimal(book.bid),
            bid_size=decimal(book.bid_quantity),
            ask_venue=_NAME,
            ask_price=decimal(book.ask),
            ask_size=decimal(book.ask_quantity),
            time=received,
        )
        if not (quote.bid_price and quote.ask_price):
            return Notice(NoticeKind.UNMAPPED, "ticker without a quote")
        return Ticks((Numbered(checked(quote), SequenceSeries.QUOTES, book.update),))


def _kind_of(head: _Head) -> str:
    if head.stream:
        return head.stream.partition("@")[2]
    return head.event or ("" if head.update is None else "bookTicker")


def _read_answer(head: _Head) -> Notice:
    if head.error is not None:
        return Notice(NoticeKind.REFUSED, str(head.error.get("msg", "refused without a reason")))
    if head.code is not None:
        return Notice(NoticeKind.REFUSED, head.msg or f"error {head.code}")
    if head.id is not None:
        return Notice(NoticeKind.ACCEPTED, "SUBSCRIBE")
    return Notice(NoticeKind.UNMAPPED, head.stream[:40] or "other")


def _time(number: int) -> Time:
    """Convert a time in milliseconds or microseconds, depending on the connection's `timeUnit`.

    Raises:
        ValueError: it isn't a plausible time in that unit.
    """
    return Time.from_number(str(number), "us" if number >= _MICROSECONDS_MIN else "ms")


VENUE: Final[Venue] = Binance()
