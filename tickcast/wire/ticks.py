"""Trades, quotes and bars, the streams they belong to, subscriptions and validation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from msgspec import Struct, field

from tickcast.wire.errors import InvalidTick
from tickcast.wire.times import Time

DEFAULT_FEED: Final = "live"
Timeframe = Literal["1s", "5s", "1m", "5m", "1h", "1d"]
CHANNELS: Final = (
    "trades",
    "quotes",
    "bars",
    "bars:1s",
    "bars:5s",
    "bars:5m",
    "bars:1h",
    "bars:1d",
)
SYMBOL_MAX: Final = 32
"""Maximum length of a symbol, in characters."""
TEXT_MAX: Final = 64
"""Maximum length of a trade id or venue name, in characters."""

SEQ_MAX: Final = 2**53 - 1
"""The greatest `seq` that a client may send. Integers up to this one are exact as doubles, and so
in JavaScript and in Redis scripts. At a million ticks per second they last for 285 years.
"""

_FEED = re.compile(r"[a-z0-9_-]{1,32}")
_SYMBOL = re.compile(r"[A-Za-z0-9._/:-]{1,32}")


class Trade(Struct, tag_field="T", tag="t", kw_only=True, omit_defaults=True, gc=False):
    """A transaction: `size` units of `symbol` changed hands at `price`.

    Attributes:
        id: the venue's number or name of the trade.
        venue: where the trade took place.
        side: the taker's side, `B` (bought) or `S` (sold).
        time: when the trade took place, by the venue's clock.
        seq: number in the stream, 1, 2, 3, … within an epoch; assigned by the broker.
        snap: True for a latest tick that is sent on request before live ones.
        conflated: number of earlier ticks of the stream that this one replaced (`cf`).
    """

    symbol: str = field(name="S")
    id: int | str | None = field(name="i", default=None)
    venue: str | None = field(name="x", default=None)
    price: float = field(name="p")
    size: float = field(name="s")
    side: Literal["B", "S"] | None = field(name="tks", default=None)
    time: Time = field(name="t")
    seq: int | None = None
    snap: bool = False
    conflated: int = field(name="cf", default=0)


class Quote(Struct, tag_field="T", tag="q", kw_only=True, omit_defaults=True, gc=False):
    """The best bid and ask of a symbol. The last four attributes are as in `Trade`."""

    symbol: str = field(name="S")
    bid_venue: str | None = field(name="bx", default=None)
    bid_price: float = field(name="bp")
    bid_size: float = field(name="bs")
    ask_venue: str | None = field(name="ax", default=None)
    ask_price: float = field(name="ap")
    ask_size: float = field(name="as")
    time: Time = field(name="t")
    seq: int | None = None
    snap: bool = False
    conflated: int = field(name="cf", default=0)


class Bar(Struct, tag_field="T", tag="b", kw_only=True, omit_defaults=True, gc=False):
    """The trading in one interval. `time` is its start; the other attributes are as in `Trade`."""

    symbol: str = field(name="S")
    open: float = field(name="o")
    high: float = field(name="h")
    low: float = field(name="l")
    close: float = field(name="c")
    volume: float = field(name="v")
    trade_count: int = field(name="n")
    vwap: float = field(name="vw")
    time: Time = field(name="t")
    timeframe: Timeframe = field(name="tf", default="1m")
    seq: int | None = None
    snap: bool = False
    conflated: int = field(name="cf", default=0)


Tick = Trade | Quote | Bar


class StreamKey(NamedTuple):
    """Identifies a stream: one channel of one symbol in one feed."""

    feed: str
    channel: str
    symbol: str


def channel_of(tick: Tick) -> str:
    """The channel of a tick.

    >>> channel_of(Trade(symbol="ES", price=1640.25, size=3, time=Time.now()))
    'trades'
    """
    if isinstance(tick, Trade):
        return "trades"
    if isinstance(tick, Quote):
        return "quotes"
    return "bars" if tick.timeframe == "1m" else f"bars:{tick.timeframe}"


def number(ticks: list[Tick], first_seq: int) -> list[Tick]:
    """Number ticks of one stream, starting with `first_seq`."""
    for seq, tick in enumerate(ticks, first_seq):
        tick.seq = seq
    return ticks


def sort_channels(channels: Iterable[str]) -> list[str]:
    """Sort channels in the order used by the protocol."""
    return sorted(channels, key=CHANNELS.index)


def is_feed_name(name: str) -> bool:
    """Whether `name` is a valid feed name."""
    return _FEED.fullmatch(name) is not None


def is_symbol(text: str) -> bool:
    """Whether `text` is a valid symbol."""
    return len(text) <= SYMBOL_MAX and _is_symbol(text)


# Producers check the same few symbols over and over. `is_symbol` limits the length of cached text.
@lru_cache(maxsize=10_000)
def _is_symbol(text: str) -> bool:
    return _SYMBOL.fullmatch(text) is not None


# ---------------------------------------------------------------------------------- validation


def validate(tick: Tick) -> None:
    """Check a tick against the rules in `docs/protocol.md`, section "Ticks".

    Raises:
        InvalidTick: the tick breaks a rule; the message names the first one.
    """
    if not is_symbol(tick.symbol):
        raise InvalidTick(
            f"symbol {tick.symbol[:40]!a} is not 1 to 32 characters of A-Z a-z 0-9 . _ / : -"
        )
    if isinstance(tick, Trade):
        _check_price("p", tick.price)
        _check_amount("s", tick.size)
        if tick.id is not None:
            _check_text("i", tick.id)
        if tick.venue is not None:
            _check_text("x", tick.venue)
    elif isinstance(tick, Quote):
        _check_price("bp", tick.bid_price)
        _check_amount("bs", tick.bid_size)
        _check_price("ap", tick.ask_price)
        _check_amount("as", tick.ask_size)
        if tick.bid_venue is not None:
            _check_text("bx", tick.bid_venue)
        if tick.ask_venue is not None:
            _check_text("ax", tick.ask_venue)
    else:
        _check_price("o", tick.open)
        _check_price("h", tick.high)
        _check_price("l", tick.low)
        _check_price("c", tick.close)
        _check_amount("v", tick.volume)
        _check_amount("n", tick.trade_count)
        _check_integer("n", tick.trade_count)
        _check_price("vw", tick.vwap)


def _check_price(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise InvalidTick(f"{name} must be a finite number, not {value}")


def _check_amount(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise InvalidTick(f"{name} must be a finite number of at least 0, not {value}")


def _check_integer(name: str, value: int) -> None:
    if not -(2**63) <= value < 2**63:
        raise InvalidTick(f"{name} must fit 64 bits")


def _check_text(name: str, value: int | str) -> None:
    if isinstance(value, int):
        _check_integer(name, value)
    elif not 0 < len(value) <= TEXT_MAX:
        raise InvalidTick(f"{name} must have 1 to {TEXT_MAX} characters, not {len(value)}")
    elif not value.isprintable():
        raise InvalidTick(f"{name} must be printable text, not {value!a}")
