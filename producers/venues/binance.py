"""Binance, spot: trades from `trade` (or `aggTrade`), quotes from `bookTicker`.

We request combined streams. Frames of raw streams, which captures by other tools contain, are
parsed as well.

Source: Binance Spot API documentation, "WebSocket Streams".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct, field

from tickcast.venues import (
    NO_QUOTE,
    Notice,
    NoticeKind,
    Number,
    NumberSeries,
    PairRule,
    TickFrame,
    TickKinds,
    Venue,
    VenueLimits,
    batched,
    decimal,
    decode,
)
from tickcast.wire.times import Time

T = TypeVar("T")
_STREAMS_PER_MESSAGE: Final = 200
# Smaller numbers are milliseconds: 10**14 ms is in the year 5138, and 10**14 µs in 1973.
_MICROSECONDS_MIN: Final = 10**14
_QUOTES: Final = tuple(
    "USDT USDC FDUSD TUSD BUSD USDP USDS USD1 PAX DAI VAI EURI BTC ETH BNB SOL XRP TRX DOGE DOT"
    " EUR GBP AUD TRY BRL RUB UAH NGN ZAR PLN RON ARS JPY MXN COP CZK IDR IDRT BIDR BKRW BVND KZT"
    " UST".split()
)


class _Head(Struct):
    """The common fields of a combined stream's frame, a raw stream's frame and a response."""

    stream: str = ""
    # The type of event in a raw stream. Only book tickers lack it, and only they have `u`.
    event: str = field(name="e", default="")
    update: int | None = field(name="u", default=None)
    id: int | str | None = None
    code: int | None = None
    msg: str = ""
    error: dict[str, object] | None = None


class _Fill(Struct):
    symbol: str = field(name="s")
    price: str = field(name="p")
    quantity: str = field(name="q")
    # When the trade happened, and when the event was sent.
    time: int = field(name="T")
    sent: int = field(name="E")
    # Then the taker sold.
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


_HEAD: Final = msgspec.json.Decoder(_Head)
# The decoder for a frame of a raw stream, and the one for a frame of a combined stream.
_TRADE: Final = (msgspec.json.Decoder(_Trade), msgspec.json.Decoder(_Combined[_Trade]))
_AGGREGATE: Final = (msgspec.json.Decoder(_Aggregate), msgspec.json.Decoder(_Combined[_Aggregate]))
_TICKER: Final = (msgspec.json.Decoder(_BookTicker), msgspec.json.Decoder(_Combined[_BookTicker]))


class Binance(Venue):
    """The `Venue` for Binance's spot market."""

    name = "binance"
    url = "wss://stream.binance.com:9443/stream?timeUnit=MICROSECOND"
    hosts = ("binance.com", "binance.vision")
    # Documented: 1,024 streams, and 5 messages per second including pings and pongs.
    limits = VenueLimits(streams=1024, messages_per_s=2)
    silence_max_s = None  # Binance sends no heartbeats, so a quiet market sends nothing.
    symbols = PairRule("", quotes=_QUOTES)

    def subscribe(self, markets: Sequence[str], kinds: TickKinds) -> list[bytes]:
        """Request up to 200 streams per message, so that no message gets too long."""
        channels = [*["trade"] * kinds.trades, *["bookTicker"] * kinds.quotes]
        streams = [f"{name.lower()}@{channel}" for name in markets for channel in channels]
        return [
            msgspec.json.encode({"method": "SUBSCRIBE", "params": part, "id": number})
            for number, part in enumerate(batched(streams, _STREAMS_PER_MESSAGE), 1)
        ]

    def parse(self, frame: bytes, received: Time) -> TickFrame | Notice:
        head = decode(_HEAD, frame)
        if head.stream:
            kind = head.stream.partition("@")[2]
        else:
            kind = head.event or ("" if head.update is None else "bookTicker")
        match kind:
            case "trade":
                return self._parse_fill(_read(_TRADE, head, frame), NumberSeries.TRADES)
            case "aggTrade":
                return self._parse_fill(_read(_AGGREGATE, head, frame), NumberSeries.AGGREGATES)
            case "bookTicker":
                return self._parse_ticker(_read(_TICKER, head, frame), received)
        return _parse_response(head)

    def _parse_fill(self, fill: _Trade | _Aggregate, series: NumberSeries) -> TickFrame:
        price, size = decimal(fill.price), decimal(fill.quantity)
        side: Literal["B", "S"] = "S" if fill.is_buyer_maker else "B"
        trade = self.trade(fill.symbol, price, size, side, _time(fill.time), fill.id, series)
        return TickFrame((trade,), _time(fill.sent))

    def _parse_ticker(self, ticker: _BookTicker, received: Time) -> TickFrame | Notice:
        bid = (decimal(ticker.bid), decimal(ticker.bid_quantity))
        ask = (decimal(ticker.ask), decimal(ticker.ask_quantity))
        quote = self.quote(ticker.symbol, bid, ask, received, ticker.update)
        return TickFrame((quote,)) if bid[0] and ask[0] else NO_QUOTE


def _read(
    decoders: tuple[msgspec.json.Decoder[T], msgspec.json.Decoder[_Combined[T]]],
    head: _Head,
    frame: bytes,
) -> T:
    raw, combined = decoders
    return decode(combined, frame).data if head.stream else decode(raw, frame)


def _parse_response(head: _Head) -> Notice:
    if head.error is not None:
        text = str(head.error.get("msg", "refused without a reason"))
        return Notice(NoticeKind.REFUSED, text)
    if head.code is not None:
        return Notice(NoticeKind.REFUSED, head.msg or f"error {head.code}")
    if head.id is not None:
        return Notice(NoticeKind.ACCEPTED, "SUBSCRIBE")
    return Notice(NoticeKind.UNMAPPED, head.stream[:40] or "other")


def _time(number: int) -> Time:
    """Convert a time in the unit of the connection's `timeUnit`. Raises ValueError."""
    return Time.from_number(str(number), "us" if number >= _MICROSECONDS_MIN else "ms")
