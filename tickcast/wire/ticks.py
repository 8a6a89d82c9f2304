"""Trades, quotes and bars, the streams they belong to, and their validation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple

from msgspec import Struct, StructMeta, field
from msgspec.structs import replace

from tickcast.wire.errors import InvalidTick
from tickcast.wire.times import Time

DEFAULT_FEED: Final = "live"
Timeframe = Literal["1s", "5s", "1m", "5m", "1h", "1d"]
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


class _TickType(StructMeta):
    """Lets programs write `Trade("AAPL", 187.1, 100)`: some positional arguments, and the time now.

    msgspec takes positional arguments in the order of the fields, which is also the order on the
    wire and in tapes. A default for `time` would make decoders accept ticks without a time. They
    do not come through here.
    """

    if not TYPE_CHECKING:

        def __call__(self, *values: Any, **fields: Any) -> Any:
            names = self._positional
            if len(values) > len(names):
                raise TypeError(f"{self.__name__} takes only {', '.join(names)} by position")
            fields = dict(zip(names, values, strict=False)) | fields if values else fields
            if "time" not in fields:
                fields["time"] = Time.now()
            return super().__call__(**fields)


class Trade(
    Struct, metaclass=_TickType, tag_field="T", tag="t", kw_only=True, omit_defaults=True, gc=False
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
    _positional: ClassVar = ("symbol", "price", "size")

    if TYPE_CHECKING:

        def __init__(
            self, symbol: str, price: float, size: float, *, id: int | str | None = None,
            venue: str | None = None, side: Literal["B", "S"] | None = None, time: Time = ...,
            seq: int | None = None, snap: bool = False, conflated: int = 0,
        ) -> None: ...  # fmt: skip


class Quote(
    Struct, metaclass=_TickType, tag_field="T", tag="q", kw_only=True, omit_defaults=True, gc=False
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
    _positional: ClassVar = ("symbol", "bid_price", "bid_size", "ask_price", "ask_size")

    if TYPE_CHECKING:

        def __init__(
            self, symbol: str, bid_price: float, bid_size: float, ask_price: float,
            ask_size: float, *, bid_venue: str | None = None, ask_venue: str | None = None,
            time: Time = ..., seq: int | None = None, snap: bool = False, conflated: int = 0,
        ) -> None: ...  # fmt: skip


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

# For loops that create millions of ticks: 0.08 µs each, where the classes take 0.6. All fields that
# have no default must be given.
new_trade: Final = partial(replace, Trade("", 0.0, 0.0, time=Time(0)))
new_quote: Final = partial(replace, Quote("", 0.0, 0.0, 0.0, 0.0, time=Time(0)))


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


# ---------------------------------------------------------------------------------- validation


def validate(tick: Tick) -> None:
    """Check a tick against the rules in `docs/protocol.md`, section "Ticks".

    Raises:
        InvalidTick: the tick breaks a rule; the message names the first one.
    """
    if not is_symbol(tick.symbol):
        # Quoted in part and in ASCII, because the message is logged.
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
