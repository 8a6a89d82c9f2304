"""Trades, quotes and bars, the streams they belong to, and their validation."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache, partial
from math import inf, isfinite
from typing import (
    TYPE_CHECKING,
    Final,
    Literal,
    NamedTuple,
    SupportsFloat,
    SupportsIndex,
)

from msgspec import Struct, StructMeta, field
from msgspec.structs import replace

from tickcast.wire.errors import InvalidTick
from tickcast.wire.times import Time
from tickcast.wire.values import to_count, to_id, to_number, to_text, to_time

DEFAULT_FEED: Final = "live"
Timeframe = Literal["1s", "5s", "1m", "5m", "1h", "1d"]
TIMEFRAMES: Final = ("1s", "5s", "1m", "5m", "1h", "1d")
SIDES: Final = ("B", "S")
# What programs may pass for a price or a size, and for a time; see `tickcast.wire.values`.
Number = SupportsFloat | SupportsIndex
AnyTime = SupportsIndex | str | datetime
# In the order in which messages list them.
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
# Maximum lengths in characters, of a symbol and of a trade id or a venue's name.
SYMBOL_MAX: Final = 32
TEXT_MAX: Final = 64

# The greatest `seq` that a client may send. Integers up to this one are exact as doubles, and so in
# JavaScript and in Redis scripts. At a million ticks per second they last for 285 years.
SEQ_MAX: Final = 2**53 - 1

_FEED = re.compile(r"[a-z0-9_-]{1,32}")
_SYMBOL = re.compile(r"[A-Za-z0-9._/:-]{1,32}")


# `gc=False` keeps ticks out of the garbage collector, which would have to traverse hundreds of
# thousands of them. They contain only scalars, so they can't be part of a reference cycle.


# Each class has a metaclass whose `__call__` checks and converts the arguments. With `__init__` or
# `__post_init__`, decoders would do it again; and for them a default of `time` would make it
# optional on the wire.

_EXACT: Final = frozenset((float, int))


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidTick(f"{name}: {value!a:.60} is not one of {', '.join(choices)}")


class _TradeType(StructMeta):
    if not TYPE_CHECKING:

        def __call__(
            self, symbol, price, size, *, id=None, venue=None, side=None, time=None, **others
        ):
            if type(symbol) is not str:
                symbol = to_text("Trade.symbol", symbol)
            if type(price) not in _EXACT:
                price = to_number("Trade.price", price)
            if type(size) not in _EXACT:
                size = to_number("Trade.size", size)
            if type(time) is not Time:
                time = Time.now() if time is None else to_time("Trade.time", time)
            if id is not None and type(id) is not int and type(id) is not str:
                id = to_id("Trade.id", id)  # noqa: A001
            if venue is not None and type(venue) is not str:
                venue = to_text("Trade.venue", venue)
            if side is not None:
                _check_choice("Trade.side", side, SIDES)
            if others or self is not Trade:
                return super().__call__(
                    symbol=symbol, id=id, venue=venue, price=price, size=size, side=side, time=time,
                    **others,
                )  # fmt: skip
            return new_trade(
                symbol=symbol, id=id, venue=venue, price=price, size=size, side=side, time=time
            )

        __call__.__qualname__ = "Trade"


class _QuoteType(StructMeta):
    if not TYPE_CHECKING:

        def __call__(
            self, symbol, bid_price, bid_size, ask_price, ask_size, *, bid_venue=None,
            ask_venue=None, time=None, **others,
        ):  # fmt: skip
            if type(symbol) is not str:
                symbol = to_text("Quote.symbol", symbol)
            if type(bid_price) not in _EXACT:
                bid_price = to_number("Quote.bid_price", bid_price)
            if type(bid_size) not in _EXACT:
                bid_size = to_number("Quote.bid_size", bid_size)
            if type(ask_price) not in _EXACT:
                ask_price = to_number("Quote.ask_price", ask_price)
            if type(ask_size) not in _EXACT:
                ask_size = to_number("Quote.ask_size", ask_size)
            if type(time) is not Time:
                time = Time.now() if time is None else to_time("Quote.time", time)
            if bid_venue is not None and type(bid_venue) is not str:
                bid_venue = to_text("Quote.bid_venue", bid_venue)
            if ask_venue is not None and type(ask_venue) is not str:
                ask_venue = to_text("Quote.ask_venue", ask_venue)
            if others or self is not Quote:
                return super().__call__(
                    symbol=symbol, bid_venue=bid_venue, bid_price=bid_price, bid_size=bid_size,
                    ask_venue=ask_venue, ask_price=ask_price, ask_size=ask_size, time=time,
                    **others,
                )  # fmt: skip
            return new_quote(
                symbol=symbol, bid_venue=bid_venue, bid_price=bid_price, bid_size=bid_size,
                ask_venue=ask_venue, ask_price=ask_price, ask_size=ask_size, time=time,
            )  # fmt: skip

        __call__.__qualname__ = "Quote"


class _BarType(StructMeta):
    if not TYPE_CHECKING:

        def __call__(
            self, *, symbol, open, high, low, close, volume, trade_count, vwap, time,
            timeframe="1m", **others,
        ):  # fmt: skip
            if type(symbol) is not str:
                symbol = to_text("Bar.symbol", symbol)
            if not _EXACT.issuperset(map(type, (open, high, low, close, volume, vwap))):
                open = to_number("Bar.open", open)  # noqa: A001
                high = to_number("Bar.high", high)
                low = to_number("Bar.low", low)
                close = to_number("Bar.close", close)
                volume = to_number("Bar.volume", volume)
                vwap = to_number("Bar.vwap", vwap)
            if type(trade_count) is not int:
                trade_count = to_count("Bar.trade_count", trade_count)
            if type(time) is not Time:
                time = to_time("Bar.time", time)
            _check_choice("Bar.timeframe", timeframe, TIMEFRAMES)
            if others or self is not Bar:
                return super().__call__(
                    symbol=symbol, open=open, high=high, low=low, close=close, volume=volume,
                    trade_count=trade_count, vwap=vwap, time=time, timeframe=timeframe, **others,
                )  # fmt: skip
            return new_bar(
                symbol=symbol, open=open, high=high, low=low, close=close, volume=volume,
                trade_count=trade_count, vwap=vwap, time=time, timeframe=timeframe,
            )  # fmt: skip

        __call__.__qualname__ = "Bar"


class Trade(
    Struct, metaclass=_TradeType, tag_field="T", tag="t", kw_only=True, omit_defaults=True, gc=False
):
    """A transaction: `size` units of `symbol` changed hands at `price`.

    >>> Trade("AAPL", 187.1, 100, side="B", time=Time.parse("2026-01-05T14:30:00Z")).size
    100

    Attributes:
        id: the venue's number or name of the trade.
        venue: where the trade took place.
        side: the taker's side, `B` (bought) or `S` (sold).
        time: when the trade took place, by the venue's clock; by default now.
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

    if TYPE_CHECKING:

        def __init__(
            self, symbol: str, price: Number, size: Number, *, id: int | str | None = None,
            venue: str | None = None, side: Literal["B", "S"] | None = None, time: AnyTime = ...,
            seq: int | None = None, snap: bool = False, conflated: int = 0,
        ) -> None: ...  # fmt: skip


class Quote(
    Struct, metaclass=_QuoteType, tag_field="T", tag="q", kw_only=True, omit_defaults=True, gc=False
):
    """The best bid and ask of a symbol. The last four attributes are as in `Trade`.

    >>> Quote("AAPL", 187.0, 3, 187.1, 2).ask_price
    187.1
    """

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

    if TYPE_CHECKING:

        def __init__(
            self, symbol: str, bid_price: Number, bid_size: Number, ask_price: Number,
            ask_size: Number, *, bid_venue: str | None = None, ask_venue: str | None = None,
            time: AnyTime = ..., seq: int | None = None, snap: bool = False, conflated: int = 0,
        ) -> None: ...  # fmt: skip


class Bar(
    Struct, metaclass=_BarType, tag_field="T", tag="b", kw_only=True, omit_defaults=True, gc=False
):
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

    if TYPE_CHECKING:

        def __init__(
            self, *, symbol: str, open: Number, high: Number, low: Number, close: Number,
            volume: Number, trade_count: SupportsIndex, vwap: Number, time: AnyTime,
            timeframe: Timeframe = "1m", seq: int | None = None, snap: bool = False,
            conflated: int = 0,
        ) -> None: ...  # fmt: skip


Tick = Trade | Quote | Bar

# By the value of `T` in messages.
TICK_TYPES: Final[dict[str, type[Tick]]] = {"t": Trade, "q": Quote, "b": Bar}

# For loops that create millions of ticks: 0.08 µs each, where the classes take 0.5. All fields that
# have no default must be given, with the types of the fields.
_NO_TRADE: Final[Trade] = StructMeta.__call__(Trade, symbol="", price=0.0, size=0.0, time=Time(0))
_NO_QUOTE: Final[Quote] = StructMeta.__call__(
    Quote, symbol="", bid_price=0.0, bid_size=0.0, ask_price=0.0, ask_size=0.0, time=Time(0)
)
_NO_BAR: Final[Bar] = StructMeta.__call__(
    Bar, symbol="", open=0.0, high=0.0, low=0.0, close=0.0, volume=0.0, trade_count=0, vwap=0.0,
    time=Time(0),
)  # fmt: skip
new_trade: Final = partial(replace, _NO_TRADE)
new_quote: Final = partial(replace, _NO_QUOTE)
new_bar: Final = partial(replace, _NO_BAR)


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


def sort_channels(channels: Iterable[str]) -> list[str]:
    """Sort channels in the order of `CHANNELS`."""
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


# -- validation


def validate(tick: Tick) -> None:
    """Check a tick against the rules in `docs/protocol.md`, section "Ticks".

    Raises:
        InvalidTick: the tick breaks a rule; the message names the first one.
    """
    if type(tick.symbol) is not str or not is_symbol(tick.symbol):
        # Quoted in part and in ASCII, because the message is logged.
        raise InvalidTick(
            f"symbol {str(tick.symbol)[:40]!a} is not 1 to 32 characters of A-Z a-z 0-9 . _ / : -"
        )
    if type(tick.time) is not Time:
        raise InvalidTick(f"t must be a time, not {tick.time!a:.60}")
    if isinstance(tick, Trade):
        _check_price("p", tick.price)
        _check_amount("s", tick.size)
        if tick.id is not None:
            _check_id("i", tick.id)
        if tick.venue is not None:
            _check_text("x", tick.venue)
        if tick.side is not None:
            _check_choice("tks", tick.side, SIDES)
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


# Only floats and plain integers are encoded as numbers, and a program may set an attribute to
# anything else.


def _check_price(name: str, value: float) -> None:
    if (type(value) is not float or not isfinite(value)) and not _is_exact_integer(value):
        raise InvalidTick(f"{name} must be a finite number, not {value!a:.60}")


def _check_amount(name: str, value: float) -> None:
    if (type(value) is not float or not 0 <= value < inf) and not (
        _is_exact_integer(value) and value >= 0
    ):
        raise InvalidTick(f"{name} must be a finite number of at least 0, not {value!a:.60}")


def _is_exact_integer(value: object) -> bool:
    """Whether a value is an integer that a float can hold, as clients receive it."""
    return type(value) is int and abs(value) < 2**1000 and float(value) == value


def _check_integer(name: str, value: int) -> None:
    if type(value) is not int:
        raise InvalidTick(f"{name} must be an integer, not {value!a:.60}")
    if not -(2**63) <= value < 2**63:
        raise InvalidTick(f"{name} must fit 64 bits")


def _check_id(name: str, value: int | str) -> None:
    if isinstance(value, int):
        _check_integer(name, value)
    else:
        _check_text(name, value)


def _check_text(name: str, value: str) -> None:
    if type(value) is not str:
        raise InvalidTick(f"{name} must be text, not {value!a:.60}")
    if not 0 < len(value) <= TEXT_MAX:
        raise InvalidTick(f"{name} must have 1 to {TEXT_MAX} characters, not {len(value)}")
    if not value.isprintable():
        raise InvalidTick(f"{name} must be printable text, not {value!a}")
