"""Coinbase Exchange: trades from `matches`, quotes from `ticker`.

Source: Coinbase Exchange documentation, "WebSocket Channels" and "WebSocket Rate Limits".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from msgspec import Struct

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

_NAME: Final = "coinbase"
_TAKERS: Final[dict[str, Literal["B", "S"]]] = {"buy": "S", "sell": "B"}
"""The taker's side for each maker's side."""


class _Head(Struct):
    type: str


class _Match(Struct):
    """`match`, or `last_match`, which is the last match before the subscription.

    `side` is the maker's side: that of the order in the book.
    """

    trade_id: Number
    side: str
    size: str
    price: str
    product_id: str
    time: str


class _Ticker(Struct):
    """`ticker`: the best bid and ask after a trade. It has had sizes since about 2022.

    A product that never traded has prices of 0, and may lack the sequence and the time. The frame
    also contains the trade, with the taker's side. We use `matches` for trades instead, because
    the venue skips tickers during bursts of trades.
    """

    product_id: str
    sequence: Number | None = None
    time: str | None = None
    best_bid: str = ""
    best_bid_size: str = "0"
    best_ask: str = ""
    best_ask_size: str = "0"


class _Heartbeat(Struct):
    time: str


class _Error(Struct):
    message: str
    reason: str = ""


_HEAD: Final = msgspec.json.Decoder(_Head)
_MATCH: Final = msgspec.json.Decoder(_Match)
_TICKER: Final = msgspec.json.Decoder(_Ticker)
_HEARTBEAT: Final = msgspec.json.Decoder(_Heartbeat)
_ERROR: Final = msgspec.json.Decoder(_Error)


class Coinbase(Venue):
    """The `Venue` for Coinbase Exchange."""

    name = _NAME
    url = "wss://ws-feed.exchange.coinbase.com"
    hosts = ("coinbase.com", "gdax.com")
    # Ten messages per second is documented. A limit on products isn't.
    limits = Limits(streams=1000, messages_per_s=10)
    silence_max_s = 10.0  # A heartbeat comes every second.
    symbols = SymbolRule("-")

    def subscribe(self, names: Sequence[str], wants: Wants) -> list[bytes]:
        """Send one message per product, so that a refused product doesn't affect the others."""
        channels = ["heartbeat"]
        if wants.trades:
            channels.append("matches")
        if wants.quotes:
            channels.append("ticker")
        return [
            msgspec.json.encode({"type": "subscribe", "product_ids": [name], "channels": channels})
            for name in names
        ]

    def parse(self, frame: bytes, received: Time) -> Ticks | Notice:
        kind = decode(_HEAD, frame).type
        try:
            match kind:
                case "match" | "last_match":
                    return self._read_match(decode(_MATCH, frame))
                case "ticker":
                    return self._read_ticker(decode(_TICKER, frame), received)
                case "heartbeat":
                    time = Time.parse(decode(_HEARTBEAT, frame).time)
                    return Notice(NoticeKind.HEARTBEAT, kind, time)
                case "error":
                    error = decode(_ERROR, frame)
                    return Notice(
                        NoticeKind.REFUSED, f"{error.message}: {error.reason}".strip(": ")
                    )
        except UnknownMarket:
            raise
        except ValueError as error:
            raise BadFrame(str(error)) from None
        return Notice(
            NoticeKind.ACCEPTED if kind == "subscriptions" else NoticeKind.UNMAPPED, kind[:40]
        )

    def _read_match(self, match: _Match) -> Ticks:
        trade = Trade(
            symbol=self.symbols.ours(match.product_id),
            id=match.trade_id,
            venue=_NAME,
            price=decimal(match.price),
            size=decimal(match.size),
            side=_TAKERS.get(match.side),
            time=Time.parse(match.time),
        )
        return Ticks((numbered_trade(trade, SequenceSeries.TRADES, match.trade_id),), trade.time)

    def _read_ticker(self, ticker: _Ticker, received: Time) -> Ticks | Notice:
        bid, ask = (decimal(each or "0") for each in (ticker.best_bid, ticker.best_ask))
        if not (bid and ask):
            return Notice(NoticeKind.UNMAPPED, "ticker without a quote")
        time = Time.parse(ticker.time) if ticker.time else None
        quote = Quote(
            symbol=self.symbols.ours(ticker.product_id),
            bid_venue=_NAME,
            bid_price=bid,
            bid_size=decimal(ticker.best_bid_size),
            ask_venue=_NAME,
            ask_price=ask,
            ask_size=decimal(ticker.best_ask_size),
            time=received if time is None else time,
        )
        if ticker.sequence is None:
            return Ticks((Numbered(checked(quote)),), time)
        return Ticks((Numbered(checked(quote), SequenceSeries.QUOTES, ticker.sequence),), time)


VENUE: Final[Venue] = Coinbase()
