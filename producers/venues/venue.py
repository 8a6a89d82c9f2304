"""The interface of a venue: its address, its subscriptions and how to parse its frames. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Final, NamedTuple, Protocol, TypeVar

import msgspec

from producers.venues.symbols import SymbolRule
from tickcast.wire.errors import BadFrame, InvalidTick
from tickcast.wire.ticks import Tick, Trade, validate
from tickcast.wire.times import Time

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A sequence number or id of a venue, in the range that can be published."""
T = TypeVar("T")
_SHOWN: Final = 200
_DECIMAL: Final = re.compile(r"\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,3})?", re.ASCII)


class Wants(NamedTuple):
    """The kinds of ticks to request."""

    trades: bool = True
    quotes: bool = True

    @property
    def per_symbol(self) -> int:
        """The number of streams for each symbol."""
        return self.trades + self.quotes


class Limits(NamedTuple):
    """A venue's limits for one connection.

    Attributes:
        streams: the maximum number of streams: channels times symbols.
        messages_per_s: the maximum rate of messages that we send.
    """

    streams: int
    messages_per_s: float


class SequenceSeries(Enum):
    """A series of numbers that a venue assigns, and whether the numbers are consecutive.

    Each symbol has a separate series. If numbers aren't consecutive, a jump doesn't mean a gap.
    """

    TRADES = ("trades", True)
    AGGREGATES = ("aggregates", True)
    QUOTES = ("quotes", False)

    @property
    def is_gapless(self) -> bool:
        """Whether a jump in the numbers means that something is missing."""
        return self.value[1]


class Numbered(NamedTuple):
    """A tick with the venue's number, if it has one.

    Attributes:
        void: whether only the number counts, and the tick must not be published.
    """

    tick: Tick
    series: SequenceSeries | None = None
    number: int = 0
    void: bool = False


class Ticks(NamedTuple):
    """A frame with ticks.

    Attributes:
        venue_time: when the venue created the frame, by the venue's clock, if the frame has it.
    """

    ticks: Sequence[Numbered]
    venue_time: Time | None = None


class NoticeKind(Enum):
    """The kind of a frame without ticks."""

    HEARTBEAT = "heartbeat"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNMAPPED = "unmapped"


class Notice(NamedTuple):
    """A frame without ticks.

    Attributes:
        text: the venue's message, for a refusal; otherwise the type of frame.
    """

    kind: NoticeKind
    text: str = ""
    venue_time: Time | None = None


class Venue(Protocol):
    """One venue. It has no state, so one instance serves any number of connections."""

    name: str
    """The venue's name in Tickcast, and the `x` of its trades."""
    url: str
    hosts: tuple[str, ...]
    """The current and former domains of its streams."""
    limits: Limits
    silence_max_s: float | None
    """A connection that is silent for longer is dead. None means that silence is normal."""
    symbols: SymbolRule

    def subscribe(self, names: Sequence[str], wants: Wants) -> list[bytes]:
        """Return the messages that subscribe to markets, given by the venue's names, in order."""
        ...

    def parse(self, frame: bytes, received: Time) -> Ticks | Notice:
        """Parse a frame. Ticks without a time from the venue get the time of receipt.

        Raises:
            BadFrame: the frame differs from the venue's documentation.
        """
        ...


def decode(decoder: msgspec.json.Decoder[T], frame: bytes) -> T:
    """Decode a frame, with a single type of error for everything that can be wrong with it.

    Raises:
        BadFrame: the frame isn't JSON, or doesn't match the decoder's type.
    """
    try:
        return decoder.decode(frame)
    except RecursionError:
        raise BadFrame("nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadFrame(shown(str(error))) from None


def shown(text: str) -> str:
    """Return the beginning of a venue's message, with control characters escaped."""
    return text[:_SHOWN].encode("unicode_escape").decode("ascii")


def decimal(text: str) -> float:
    """Convert a decimal string to a number.

    `float` alone would accept `nan`, blanks and underscores.

    Raises:
        ValueError: the string isn't a decimal number, or is negative.
    """
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError(f"not a decimal number: {text[:40]!a}")
    return float(text)


def numbered_trade(trade: Trade, series: SequenceSeries, number: int) -> Numbered:
    """Combine a trade with its number. A trade with a price or size of 0 is void.

    Venues send such trades as placeholders. Their numbers count, otherwise they would be missing.

    Raises:
        BadFrame: the trade is invalid.
    """
    return Numbered(checked(trade), series, number, void=not (trade.price and trade.size))


def checked(tick: Tick) -> Tick:
    """Return the tick if it can be published.

    Raises:
        BadFrame: the tick is invalid.
    """
    try:
        validate(tick)
    except InvalidTick as error:
        raise BadFrame(str(error)) from None
    return tick
