"""Kraken, WebSocket v2: trades from `trade`, quotes from `ticker` with the trigger `bbo`.

Source: Kraken's documentation, "Spot WebSocket v2": "Trades", "Ticker (Level 1)", "Heartbeat".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

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
    decode,
    numbered_trade,
)
from tickcast.wire.errors import BadFrame
from tickcast.wire.ticks import Quote, Trade
from tickcast.wire.times import Time

_NAME: Final = "kraken"
_SYMBOLS_PER_MESSAGE: Final = 100
_SIDES: Final[dict[str, Literal["B", "S"]]] = {"buy": "B", "sell": "S"}
Amount = Annotated[float, msgspec.Meta(ge=0)]


class _Head(Struct):
    channel: str = ""
    method: str = ""
    success: bool = True
    error: str | None = None
    symbol: str | None = None
    time_out: str | None = None


class _Trade(Struct):
    """One trade. `side` is the taker's. Prices and sizes are JSON numbers, not strings."""

    symbol: str
    side: str
    price: Amount
    qty: Amount
    trade_id: Number
    timestamp: str


class _Trades(Struct):
    data: list[_Trade]


class _Ticker(Struct):
    """The best bid and ask. `timestamp` was added to v2 later."""

    symbol: str
    bid: Amount | None = None
    bid_qty: Amount | None = None
    ask: Amount | None = None
    ask_qty: Amount | None = None
    timestamp: str | None = None


class _Tickers(Struct):
    data: list[_Ticker]


_HEAD: Final = msgspec.json.Decoder(_Head)
_TRADES: Final = msgspec.json.Decoder(_Trades)
_TICKERS: Final = msgspec.json.Decoder(_Tickers)


class Kraken(Venue):
    """The `Venue` for Kraken."""

    name = _NAME
    url = "wss://ws.kraken.com/v2"
    hosts = ("kraken.com",)
    # Neither limit is documented for public channels. Both values are conservative.
    limits = Limits(streams=1000, messages_per_s=5)
    silence_max_s = 10.0  # Kraken sends a heartbeat every second when there is nothing else.
    symbols = SymbolRule("/", renamed={"XBT": "BTC", "XDG": "DOGE"})

    def subscribe(self, names: Sequence[str], wants: Wants) -> list[bytes]:
        """Request quotes with a snapshot of the latest one, and trades without past ones."""
        channels: list[dict[str, object]] = []
        if wants.trades:
            channels.append({"channel": "trade", "snapshot": False})
        if wants.quotes:
            channels.append({"channel": "ticker", "event_trigger": "bbo", "snapshot": True})
        return [
            msgspec.json.encode(
                {"method": "subscribe", "params": {**channel, "symbol": list(part)}}
            )
            for start in range(0, len(names), _SYMBOLS_PER_MESSAGE)
            for part in (names[start : start + _SYMBOLS_PER_MESSAGE],)
            for channel in channels
        ]

    def parse(self, frame: bytes, received: Time) -> Ticks | Notice:
        head = decode(_HEAD, frame)
        try:
            match head.channel:
                case "trade":
                    return self._read_trades(decode(_TRADES, frame).data)
                case "ticker":
                    return self._read_tickers(decode(_TICKERS, frame).data, received)
                case "heartbeat":
                    return Notice(NoticeKind.HEARTBEAT, "heartbeat")
            time = Time.parse(head.time_out) if head.time_out else None
        except UnknownMarket:
            raise
        except ValueError as error:
            raise BadFrame(str(error)) from None
        if head.error is not None or not head.success:
            text = head.error or "refused without a reason"
            named = f" ({head.symbol})" if head.symbol and head.symbol not in text else ""
            return Notice(NoticeKind.REFUSED, text + named, time)
        if head.method == "subscribe":
            return Notice(NoticeKind.ACCEPTED, "subscribe", time)
        return Notice(NoticeKind.UNMAPPED, (head.channel or head.method or "other")[:40], time)

    def _read_trades(self, trades: list[_Trade]) -> Ticks:
        found = []
        for each in trades:
            trade = Trade(
                symbol=self.symbols.ours(each.symbol),
                id=each.trade_id,
                venue=_NAME,
                price=each.price,
                size=each.qty,
                side=_SIDES.get(each.side),
                time=Time.parse(each.timestamp),
            )
            found.append(numbered_trade(trade, SequenceSeries.TRADES, each.trade_id))
        return Ticks(found, found[-1].tick.time if found else None)

    def _read_tickers(self, tickers: list[_Ticker], received: Time) -> Ticks | Notice:
        found = []
        time = None
        for each in tickers:
            if not (each.bid and each.ask):
                continue
            if each.bid_qty is None or each.ask_qty is None:
                raise BadFrame("a quote without sizes")
            time = Time.parse(each.timestamp) if each.timestamp else None
            quote = Quote(
                symbol=self.symbols.ours(each.symbol),
                bid_venue=_NAME,
                bid_price=each.bid,
                bid_size=each.bid_qty,
                ask_venue=_NAME,
                ask_price=each.ask,
                ask_size=each.ask_qty,
                time=received if time is None else time,
            )
            found.append(Numbered(checked(quote)))
        return (
            Ticks(found, time) if found else Notice(NoticeKind.UNMAPPED, "ticker without a quote")
        )


VENUE: Final[Venue] = Kraken()
