"""The recorded frames and the ticks in them, computed independently of the product's code."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from tests.conftest import DATA
from tickcast.wire.ticks import Quote, Tick, Trade
from tickcast.wire.times import Time

COINBASE = DATA / "coinbase-exchange-ws.txt.gz"
BINANCE = DATA / "binance-spot-ws.txt.gz"
needs_captures = pytest.mark.skipif(
    not (COINBASE.exists() and BINANCE.exists()),
    reason="the recorded frames are not beside this checkout",
)
_BINANCE_NAMES = {
    "NKNUSDT": "NKN-USDT", "BLZETH": "BLZ-ETH", "LRCBTC": "LRC-BTC", "RUNEEUR": "RUNE-EUR"
}  # fmt: skip
BINANCE_SYMBOLS = list(_BINANCE_NAMES.values())
_OTHER_SIDE: dict[str, Any] = {"buy": "S", "sell": "B"}


class Received(NamedTuple):
    """A recorded frame; `at` is nanoseconds since the epoch."""

    at: int
    frame: bytes


def received_from(path: Any) -> Iterator[Received]:
    """Return all frames received from the venue."""
    with gzip.open(path) as lines:
        for line in lines:
            when, _, frame = line.rstrip(b"\n").partition(b": ")
            if when[:1].isdigit():
                yield Received(int(Decimal(when.decode()) * 10**9), frame)


def coinbase_tick(received: Received) -> Tick | None:
    """Return the tick in a Coinbase frame, if any."""
    fields = json.loads(received.frame)
    if fields["type"] in ("match", "last_match"):
        return Trade(
            symbol=fields["product_id"],
            id=fields["trade_id"],
            venue="coinbase",
            price=_number(fields["price"]),
            size=_number(fields["size"]),
            side=_OTHER_SIDE[fields["side"]],
            time=_iso(fields["time"]),
        )
    if fields["type"] == "ticker":
        return Quote(
            symbol=fields["product_id"],
            bid_venue="coinbase",
            bid_price=_number(fields["best_bid"]),
            bid_size=0.0,
            ask_venue="coinbase",
            ask_price=_number(fields["best_ask"]),
            ask_size=0.0,
            time=_iso(fields["time"]),
        )
    return None


def binance_tick(received: Received) -> Tick | None:
    """Return the tick in a Binance frame, if any."""
    frame = json.loads(received.frame)
    fields = frame["data"]
    if frame["stream"].endswith("@aggTrade"):
        return Trade(
            symbol=_BINANCE_NAMES[fields["s"]],
            id=fields["a"],
            venue="binance",
            price=_number(fields["p"]),
            size=_number(fields["q"]),
            side="S" if fields["m"] else "B",
            time=Time(fields["T"] * 10**6),
        )
    if frame["stream"].endswith("@bookTicker"):
        return Quote(
            symbol=_BINANCE_NAMES[fields["s"]],
            bid_venue="binance",
            bid_price=_number(fields["b"]),
            bid_size=_number(fields["B"]),
            ask_venue="binance",
            ask_price=_number(fields["a"]),
            ask_size=_number(fields["A"]),
            time=Time(received.at),
        )
    return None


def _number(text: str) -> float:
    return float(Decimal(text))


def _iso(text: str) -> Time:
    since = datetime.fromisoformat(text.replace("Z", "+00:00")) - datetime(1970, 1, 1, tzinfo=UTC)
    return Time(((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * 1000)
