"""Sources of live ticks for `tickcast live`. No I/O.

Derive from `Venue`: it has the address, subscribes to markets and parses frames. Packages register
their venues under the entry point group `tickcast.venues`; docs/venues.md shows one.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import msgspec

from tickcast.wire.errors import BadFrame
from tickcast.wire.ticks import Quote, Tick, Trade, is_symbol, validate
from tickcast.wire.times import Time

T = TypeVar("T")

__all__ = [
    "BadFrame", "Notice", "NoticeKind", "NumberSeries", "NumberedTick", "PairRule", "SymbolRule",
    "TickFrame", "TickKinds", "Venue", "VenueLimits", "batched", "decimal", "decode",
]  # fmt: skip

# A sequence number or id of a venue, in the range that can be published.
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

_SHOWN_MAX: Final = 200
_SYMBOL: Final = re.compile(r"[A-Z0-9][A-Za-z0-9.]*-[A-Z0-9]+", re.ASCII)
_DECIMAL: Final = re.compile(r"\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,3})?", re.ASCII)


class TickKinds(NamedTuple):
    """The kinds of ticks to subscribe to."""

    trades: bool = True
    quotes: bool = True

    @property
    def streams_per_symbol(self) -> int:
        """The number of a venue's streams for each symbol."""
        return self.trades + self.quotes


class VenueLimits(NamedTuple):
    """A venue's limits for one connection."""

    # Channels times symbols.
    streams: int
    # How fast we may send messages.
    messages_per_s: float


# -- what frames contain


class NumberSeries(Enum):
    """A series of numbers that a venue assigns to ticks, separately for each symbol."""

    TRADES = "trades"
    AGGREGATES = "aggregates"
    QUOTES = "quotes"

    @property
    def is_gapless(self) -> bool:
        """Whether a jump in the numbers means that ticks are missing."""
        return self is not NumberSeries.QUOTES


class NumberedTick(NamedTuple):
    """A tick with the venue's number, if it has one."""

    tick: Tick
    series: NumberSeries | None = None
    number: int = 0
    # Only the number counts; the tick must not be published.
    is_placeholder: bool = False


class TickFrame(NamedTuple):
    """A frame with ticks."""

    ticks: Sequence[NumberedTick]
    # When the venue created the frame, by the venue's clock.
    venue_time: Time | None = None


class NoticeKind(Enum):
    """The kind of a frame without ticks."""

    HEARTBEAT = "heartbeat"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNMAPPED = "unmapped"


class Notice(NamedTuple):
    """A frame without ticks."""

    kind: NoticeKind
    # The venue's message for a refusal, otherwise the type of frame.
    text: str = ""
    venue_time: Time | None = None


NO_QUOTE: Final = Notice(NoticeKind.UNMAPPED, "ticker without a quote")


# -- names of markets


class UnknownMarket(BadFrame):
    """A market whose name can't be converted to a symbol, such as one in Chinese."""

    def __init__(self, market: str) -> None:
        super().__init__(f"{market[:40]!a} is not the name of a market")
        self.market = market[:40]


class SymbolRule:
    """Converts between a venue's names of markets and our symbols. Here, both are the same."""

    def to_symbol(self, market: str) -> str:
        """Return our symbol for the venue's name of a market. Raises UnknownMarket."""
        if not is_symbol(market):
            raise UnknownMarket(market)
        return market

    def to_market(self, symbol: str) -> str:
        """Return the venue's name for one of our symbols.

        Raises:
            ValueError: `to_symbol` would not return this symbol for any name.
        """
        if not is_symbol(symbol):
            raise ValueError(f"{symbol[:40]!a} is not a symbol")
        return symbol


@dataclass(frozen=True)
class PairRule(SymbolRule):
    """The rule for venues that trade pairs of currencies.

    Our symbol is base and quote, joined by `-`, each under its current name: `BTC-USD`.
    """

    # What the venue puts between base and quote; "" for nothing.
    separator: str
    # Maps the venue's old names of currencies to the current ones.
    renamed: Mapping[str, str] = field(default_factory=dict)
    # The quote currencies, if there is no separator. The longest match is used.
    quotes: tuple[str, ...] = ()

    def to_symbol(self, market: str) -> str:
        base, quote = self._split(market)
        symbol = f"{self.renamed.get(base, base)}-{self.renamed.get(quote, quote)}"
        if not (_SYMBOL.fullmatch(symbol) and is_symbol(symbol)):
            raise UnknownMarket(market)
        return symbol

    def to_market(self, symbol: str) -> str:
        if not (_SYMBOL.fullmatch(symbol) and is_symbol(symbol)):
            raise ValueError(f"{symbol[:40]!a} is not BASE-QUOTE in capitals, such as BTC-USD")
        market = symbol.replace("-", self.separator)
        try:
            back = self.to_symbol(market)
        except UnknownMarket:
            raise ValueError(f"{symbol!a}: the venue has no markets quoted in that") from None
        if back != symbol:
            raise ValueError(f"{symbol!a} is called {back} here")
        return market

    def _split(self, market: str) -> tuple[str, str]:
        if self.separator:
            base, separator, quote = market.partition(self.separator)
            if separator:
                return base, quote
        quotes = [quote for quote in self.quotes if market.endswith(quote) and market != quote]
        if not quotes:
            raise UnknownMarket(market)
        quote = max(quotes, key=len)
        return market.removesuffix(quote), quote


# -- the venue


class Venue(ABC):
    """One venue. It has no state, so one instance serves any number of connections."""

    # The venue's name in Tickcast, and the `x` of its trades.
    name: str
    url: str
    # The current and former domains of its streams, by which captures find the venue. Those of a
    # venue in another package name it instead.
    hosts: tuple[str, ...] = ()
    limits: VenueLimits = VenueLimits(streams=1000, messages_per_s=5)
    # A connection that is silent for longer is dead. None means that silence is normal.
    silence_max_s: float | None = None
    symbols: SymbolRule = SymbolRule()

    @abstractmethod
    def subscribe(self, markets: Sequence[str], kinds: TickKinds) -> list[bytes]:
        """Return the messages that subscribe to markets, in order."""

    @abstractmethod
    def parse(self, frame: bytes, received: Time) -> TickFrame | Notice:
        """Parse a frame. Ticks without a time from the venue get the time of receipt.

        Raises:
            BadFrame: the frame differs from the venue's documentation. It is counted, logged and
                skipped. InvalidTick, ValueError, LookupError and TypeError mean the same.
        """

    def trade(
        self,
        market: str,
        price: float,
        size: float,
        side: Literal["B", "S"] | None,
        time: Time,
        number: int | None = None,
        series: NumberSeries = NumberSeries.TRADES,
    ) -> NumberedTick:
        """Make a trade; `side` is the taker's.

        Args:
            number: the venue's number of the trade. With it, duplicates are dropped and gaps
                reported.
        """
        symbol = self.symbols.to_symbol(market)
        trade = Trade(
            symbol=symbol, id=number, venue=self.name, price=price, size=size, side=side, time=time
        )
        # Venues send trades of 0 as placeholders. Without their numbers, there would be gaps.
        return _numbered(trade, series, number, not (price and size))

    def quote(
        self,
        market: str,
        bid: tuple[float, float],
        ask: tuple[float, float],
        time: Time,
        number: int | None = None,
    ) -> NumberedTick:
        """Make a quote; `bid` and `ask` are prices and sizes."""
        quote = Quote(
            symbol=self.symbols.to_symbol(market),
            bid_venue=self.name,
            bid_price=bid[0],
            bid_size=bid[1],
            ask_venue=self.name,
            ask_price=ask[0],
            ask_size=ask[1],
            time=time,
        )
        return _numbered(quote, NumberSeries.QUOTES, number)


def _numbered(
    tick: Tick, series: NumberSeries, number: int | None, is_placeholder: bool = False
) -> NumberedTick:
    """Validate a tick and add the venue's number, if there is one."""
    validate(tick)
    if number is None:
        return NumberedTick(tick, is_placeholder=is_placeholder)
    if not isinstance(number, int):
        raise BadFrame(f"the number of a tick is {str(number)[:40]!a}")
    return NumberedTick(tick, series, number, is_placeholder)


def decode(decoder: msgspec.json.Decoder[T], frame: bytes) -> T:
    """Decode a frame. Raises BadFrame, whatever is wrong with it."""
    try:
        return decoder.decode(frame)
    except RecursionError:
        raise BadFrame("nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadFrame(escape(str(error))) from None


def escape(text: str) -> str:
    """Return the beginning of a venue's message, with control characters escaped."""
    return text[:_SHOWN_MAX].encode("unicode_escape").decode("ascii")


def decimal(text: str) -> float:
    """Convert a decimal string to a number. Raises ValueError, also for negative numbers."""
    # `float` alone would accept `nan`, blanks and underscores.
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError(f"not a decimal number: {text[:40]!a}")
    return float(text)


def batched(items: Sequence[str], size: int) -> list[Sequence[str]]:
    """Split a sequence into parts of at most `size` items."""
    return [items[start : start + size] for start in range(0, len(items), size)]
