"""Coinbase Exchange: trades from `matches`, quotes from `ticker`.

Source: Coinbase Exchange documentation, "WebSocket Channels" and "WebSocket Rate Limits".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec
from msgspec import Struct

from tickcast.venues import (
    NO_QUOTE,
    Notice,
    NoticeKind,
    Number,
    PairRule,
    TickFrame,
    TickKinds,
    Venue,
    VenueLimits,
    decimal,
    decode,
)
from tickcast.wire.times import Time

# The taker's side for each maker's side.
_TAKERS: Final[dict[str, Literal["B", "S"]]] = {"buy": "S", "sell": "B"}


class _Head(Struct):
    type: str


class _Match(Struct):
    """`match`, or `last_match`, which is the last match before the subscription."""

    trade_id: Number
    # The maker's side: that of the order in the book.
    side: str
    size: str
    price: str
    product_id: str
    time: str


class _Ticker(Struct):
    """`ticker`: the best bid and ask after a trade.

    The frame also contains the trade, with the taker's side. We use `matches` for trades instead,
    because the venue skips tickers during bursts of trades.
    """

    product_id: str
    # A product that never traded has prices of 0, and may lack the sequence and the time.
    sequence: Number | None = None
    time: str | None = None
    best_bid: str = ""
    best_ask: str = ""
    # Sizes were added in about 2022.
    best_bid_size: str = "0"
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

    name = "coinbase"
    url = "wss://ws-feed.exchange.coinbase.com"
    hosts = ("coinbase.com", "gdax.com")
    # Ten messages per second is documented. A limit on products isn't.
    limits = VenueLimits(streams=1000, messages_per_s=10)
    silence_max_s = 10.0  # A heartbeat comes every second.
    symbols = PairRule("-")

    def subscribe(self, markets: Sequence[str], kinds: TickKinds) -> list[bytes]:
        """Send one message per product, so that a refused product doesn't affect the others."""
        channels = ["heartbeat", *["matches"] * kinds.trades, *["ticker"] * kinds.quotes]
        return [
            msgspec.json.encode({"type": "subscribe", "product_ids": [name], "channels": channels})
            for name in markets
        ]

    def parse(self, frame: bytes, received: Time) -> TickFrame | Notice:
        kind = decode(_HEAD, frame).type
        match kind:
            case "match" | "last_match":
                return self._parse_match(decode(_MATCH, frame))
            case "ticker":
                return self._parse_ticker(decode(_TICKER, frame), received)
            case "heartbeat":
                time = Time.parse(decode(_HEARTBEAT, frame).time)
                return Notice(NoticeKind.HEARTBEAT, kind, time)
            case "error":
                error = decode(_ERROR, frame)
                return Notice(NoticeKind.REFUSED, f"{error.message}: {error.reason}".strip(": "))
            case "subscriptions":
                return Notice(NoticeKind.ACCEPTED, kind)
        return Notice(NoticeKind.UNMAPPED, kind[:40])

    def _parse_match(self, match: _Match) -> TickFrame:
        time = Time.parse(match.time)
        price, size = decimal(match.price), decimal(match.size)
        side = _TAKERS.get(match.side)
        trade = self.trade(match.product_id, price, size, side, time, match.trade_id)
        return TickFrame((trade,), time)

    def _parse_ticker(self, ticker: _Ticker, received: Time) -> TickFrame | Notice:
        bid, ask = decimal(ticker.best_bid or "0"), decimal(ticker.best_ask or "0")
        if not (bid and ask):
            return NO_QUOTE
        time = Time.parse(ticker.time) if ticker.time else None
        quote = self.quote(
            ticker.product_id,
            (bid, decimal(ticker.best_bid_size)),
            (ask, decimal(ticker.best_ask_size)),
            received if time is None else time,
            ticker.sequence,
        )
        return TickFrame((quote,), time)
