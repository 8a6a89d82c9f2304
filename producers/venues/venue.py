"""What a venue is to us: where it is, how to ask it, and what its frames say. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Final, NamedTuple, Protocol, TypeVar

import msgspec

from feed.errors import BadFrame, InvalidTick
from feed.ticks import Tick, Trade, validate
from feed.times import Time
from producers.venues.symbols import SymbolRule

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A venue's number of something, as far as it can be published."""
T = TypeVar("T")
_SHOWN: Final = 200
_DECIMAL: Final = re.compile(r"\d{1,40}(\.\d{1,40})?([eE][+-]?\d{1,3})?", re.ASCII)


class Wants(NamedTuple):
    """Which ticks are asked for."""

    trades: bool = True
    quotes: bool = True

    @property
    def per_symbol(self) -> int:
        """How many streams that is for each symbol."""
        return self.trades + self.quotes


class Limits(NamedTuple):
    """What a venue lets one connection do.

    Attributes:
        streams: channels times symbols.
        messages_per_s: that it takes from us.
    """

    streams: int
    messages_per_s: float


class Series(Enum):
    """Numbers that a venue gives: of what, and whether each is one more than the last.

    Each symbol has its own. Of those that only grow, a jump says nothing.
    """

    TRADES = ("trades", True)
    AGGREGATES = ("aggregates", True)
    QUOTES = ("quotes", False)

    @property
    def is_gapless(self) -> bool:
        """Whether a jump means that something is missing."""
        return self.value[1]


class Numbered(NamedTuple):
    """A tick with the venue's number, where it has one.

    Attributes:
        void: it only takes its number: it is not to be published.
    """

    tick: Tick
    series: Series | None = None
    number: int = 0
    void: bool = False


class Ticks(NamedTuple):
    """A frame with ticks.

    Attributes:
        venue_time: when the venue made the frame, by its own clock, if it says so.
    """

    ticks: Sequence[Numbered]
    venue_time: Time | None = None


class Kind(Enum):
    """What a frame without ticks is."""

    HEARTBEAT = "heartbeat"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNMAPPED = "unmapped"


class Notice(NamedTuple):
    """A frame without ticks.

    Attributes:
        text: the venue's own words, where it refuses something; else what sort of frame it is.
    """

    kind: Kind
    text: str = ""
    venue_time: Time | None = None


class Venue(Protocol):
    """One venue. It keeps no state, so that one instance serves any number of connections."""

    name: str
    """What it is called here; the `x` of its trades."""
    url: str
    hosts: tuple[str, ...]
    """The domains under which its streams have been found, now and earlier."""
    limits: Limits
    silence_max_s: float | None
    """A connection that brings nothing for so long is dead; None: silence says nothing."""
    symbols: SymbolRule

    def subscribe(self, names: Sequence[str], wants: Wants) -> list[bytes]:
        """The messages that ask for some markets, by the venue's names, in the order to send."""
        ...

    def parse(self, frame: bytes, received: Time) -> Ticks | Notice:
        """What a frame says. Ticks for which the venue gives no time happened when received.

        Raises:
            BadFrame: it is not what the venue's documentation says.
        """
        ...


def decode(decoder: msgspec.json.Decoder[T], frame: bytes) -> T:
    """Decode a frame, with one kind of error for whatever can be wrong with it.

    Raises:
        BadFrame: it does not fit.
    """
    try:
        return decoder.decode(frame)
    except RecursionError:
        raise BadFrame("nested too deeply") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise BadFrame(shown(str(error))) from None


def shown(text: str) -> str:
    """The beginning of what a venue says, with nothing in it that could steer a terminal."""
    return text[:_SHOWN].encode("unicode_escape").decode("ascii")


def decimal(text: str) -> float:
    """The number that a decimal string stands for.

    Raises:
        ValueError: it is none, or below 0. `float` alone would take `nan`, blanks and underscores.
    """
    if _DECIMAL.fullmatch(text) is None:
        raise ValueError(f"not a decimal number: {text[:40]!a}")
    return float(text)


def numbered_trade(trade: Trade, series: Series, number: int) -> Numbered:
    """A trade with its number. One of nothing, or for nothing, did not happen.

    Venues send such as placeholders. Their numbers count: else they would be missing.

    Raises:
        BadFrame: it breaks a rule.
    """
    return Numbered(checked(trade), series, number, void=not (trade.price and trade.size))


def checked(tick: Tick) -> Tick:
    """The tick, if it can be published.

    Raises:
        BadFrame: it breaks a rule.
    """
    try:
        validate(tick)
    except InvalidTick as error:
        raise BadFrame(str(error)) from None
    return tick
