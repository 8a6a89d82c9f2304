"""Kraken, WebSocket v2: trades from `trade`, quotes from `ticker` with the trigger `bbo`.

Source: Kraken's documentation, "Spot WebSocket v2": "Trades", "Ticker (Level 1)", "Heartbeat".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

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
    batched,
    decode,
)
from tickcast.wire.errors import BadFrame
from tickcast.wire.times import Time

_SYMBOLS_PER_MESSAGE: Final = 100
_SIDES: Final[dict[str, Literal["B", "S"]]] = {"buy": "B", "sell": "S"}
_Amount = Annotated[float, msgspec.Meta(ge=0)]


class _Head(Struct):
    channel: str = ""
    method: str = ""
    success: bool = True
    error: str | None = None
    symbol: str | None = None
    time_out: str | None = None


class _Trade(Struct):
    """One trade. Prices and sizes are JSON numbers, not strings."""

    symbol: str
    # The taker's side.
    side: str
    price: _Amount
    qty: _Amount
    trade_id: Number
    timestamp: str


class _Trades(Struct):
    data: list[_Trade]


class _Ticker(Struct):
    """The best bid and ask."""

    symbol: str
    bid: _Amount | None = None
    bid_qty: _Amount | None = None
    ask: _Amount | None = None
    ask_qty: _Amount | None = None
    # Kraken added it to v2 later.
    timestamp: str | None = None


class _Tickers(Struct):
    data: list[_Ticker]


_HEAD: Final = msgspec.json.Decoder(_Head)
_TRADES: Final = msgspec.json.Decoder(_Trades)
_TICKERS: Final = msgspec.json.Decoder(_Tickers)


class Kraken(Venue):
    """The `Venue` for Kraken."""

    name = "kraken"
    url = "wss://ws.kraken.com/v2"
    hosts = ("kraken.com",)
    # Neither limit is documented for public channels. Both values are conservative.
    limits = VenueLimits(streams=1000, messages_per_s=5)
    silence_max_s = 10.0  # Kraken sends a heartbeat every second when there is nothing else.
    symbols = PairRule("/", renamed={"XBT": "BTC", "XDG": "DOGE"})

    def subscribe(self, markets: Sequence[str], kinds: TickKinds) -> list[bytes]:
        """Request quotes with a snapshot of the latest one, and trades without past ones."""
        channels: list[dict[str, object]] = []
        if kinds.trades:
            channels.append({"channel": "trade", "snapshot": False})
        if kinds.quotes:
            channels.append({"channel": "ticker", "event_trigger": "bbo", "snapshot": True})
        return [
            msgspec.json.encode({"method": "subscribe", "params": {**channel, "symbol": part}})
            for part in batched(markets, _SYMBOLS_PER_MESSAGE)
            for channel in channels
        ]

    def parse(self, frame: bytes, received: Time) -> TickFrame | Notice:
        head = decode(_HEAD, frame)
        match head.channel:
            case "trade":
                return self._parse_trades(decode(_TRADES, frame).data)
            case "ticker":
                return self._parse_tickers(decode(_TICKERS, frame).data, received)
            case "heartbeat":
                return Notice(NoticeKind.HEARTBEAT, "heartbeat")
        time = Time.parse(head.time_out) if head.time_out else None
        if head.error is not None or not head.success:
            text = head.error or "refused without a reason"
            named = f" ({head.symbol})" if head.symbol and head.symbol not in text else ""
            return Notice(NoticeKind.REFUSED, text + named, time)
        if head.method == "subscribe":
            return Notice(NoticeKind.ACCEPTED, "subscribe", time)
        return Notice(NoticeKind.UNMAPPED, (head.channel or head.method or "other")[:40], time)

    def _parse_trades(self, trades: list[_Trade]) -> TickFrame:
        ticks = [
            self.trade(
                each.symbol,
                each.price,
                each.qty,
                _SIDES.get(each.side),
                Time.parse(each.timestamp),
                each.trade_id,
            )
            for each in trades
        ]
        return TickFrame(ticks, ticks[-1].tick.time if ticks else None)

    def _parse_tickers(self, tickers: list[_Ticker], received: Time) -> TickFrame | Notice:
        quotes = []
        time = None
        for each in tickers:
            if not (each.bid and each.ask):
                continue
            if each.bid_qty is None or each.ask_qty is None:
                raise BadFrame("a quote without sizes")
            time = Time.parse(each.timestamp) if each.timestamp else None
            quotes.append(
                self.quote(
                    each.symbol,
                    (each.bid, each.bid_qty),
                    (each.ask, each.ask_qty),
                    received if time is None else time,
                )
            )
        return TickFrame(quotes, time) if quotes else NO_QUOTE
