"""Ticks with transit timestamps, for clients that configured `stamps`. No I/O."""

from __future__ import annotations

from typing import Any

from msgspec import field

from tickcast.wire.encoding import tick_from_message
from tickcast.wire.ticks import Bar, Quote, Tick, Trade


class StampedTrade(Trade, tag="t", kw_only=True):
    """A trade with the times of its transit.

    Attributes:
        published_us: when its publisher handed it to the broker, microseconds since the Unix epoch,
            by the publisher's clock.
        written_us: when the server wrote it to this connection, by the server's clock.
    """

    published_us: int = field(name="tr")
    written_us: int = field(name="tw")


class StampedQuote(Quote, tag="q", kw_only=True):
    """A quote with the additional attributes of a `StampedTrade`."""

    published_us: int = field(name="tr")
    written_us: int = field(name="tw")


class StampedBar(Bar, tag="b", kw_only=True):
    """A bar with the additional attributes of a `StampedTrade`."""

    published_us: int = field(name="tr")
    written_us: int = field(name="tw")


Stamped = StampedTrade | StampedQuote | StampedBar
"""The additional type of each tick after `Stream.configure(stamps=True)`."""


def tick_in(message: dict[str, Any]) -> Tick:
    """Return the tick in a message, which is `Stamped` if the message has stamps.

    Raises:
        InvalidTick: a field is missing or of the wrong type.

    >>> tick = tick_in({"T": "t", "S": "AAPL", "p": 190.0, "s": 100.0, "t": "2026-11-24T00:08:02Z",
    ...                 "seq": 18, "tr": 1795478882398165, "tw": 1795478882399104})
    >>> isinstance(tick, Trade), isinstance(tick, Stamped), tick.written_us - tick.published_us
    (True, True, 939)
    """
    return tick_from_message(message, Stamped) if "tw" in message else tick_from_message(message)
