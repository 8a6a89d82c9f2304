"""What a credential covers: feeds, channels and symbols. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, TypeVar

from msgspec import Struct

from feed.ticks import CHANNELS, Subscription, is_feed_name, is_pattern

ANY: Final = "*"

Value = TypeVar("Value")


class Entitlements(Struct, frozen=True):
    """The feeds, channels and symbols that a credential covers, each with each.

    Attributes:
        feeds: names of feeds; `*` is any.
        channels: `trades`, `quotes`, `bars`, `bars:1s`, …; `*` is any.
        symbols: symbols, prefixes such as `BTC-*`; `*` is any.
    """

    feeds: tuple[str, ...] = (ANY,)
    channels: tuple[str, ...] = (ANY,)
    symbols: tuple[str, ...] = (ANY,)

    def allows_feed(self, feed: str) -> bool:
        """Whether it covers something in a feed."""
        return ANY in self.feeds or feed in self.feeds

    def allows_channel(self, channel: str) -> bool:
        """Whether it covers something of a channel."""
        return ANY in self.channels or channel in self.channels

    def narrow(self, feed: str, wanted: Subscription) -> frozenset[Subscription]:
        """What is left of a subscription: itself, smaller ones in place of a wildcard, or nothing.

        Of two patterns that have a symbol in common, one covers the other.
        """
        if not (self.allows_feed(feed) and self.allows_channel(wanted.channel)):
            return frozenset()
        if any(_covers(symbols, wanted.pattern) for symbols in self.symbols):
            return frozenset((wanted,))
        return frozenset(
            Subscription(wanted.channel, symbols)
            for symbols in self.symbols
            if _covers(wanted.pattern, symbols)
        )

    def narrow_all(
        self, feed: str, wanted: Mapping[Subscription, Value]
    ) -> dict[Subscription, Value]:
        """What is left of several subscriptions, each with what was said of the closest one."""
        if self == EVERYTHING:
            return dict(wanted)
        closest_last = sorted(wanted, key=lambda each: (not each.is_wildcard, len(each.pattern)))
        return {part: wanted[each] for each in closest_last for part in self.narrow(feed, each)}

    def faults(self) -> Iterable[str]:
        """What is wrong with it, in words that a person can act on."""
        for feed in self.feeds:
            if feed != ANY and not is_feed_name(feed):
                yield f"feeds: {feed!a} is not 1 to 32 characters of a-z 0-9 _ -, nor *"
        for channel in self.channels:
            if channel != ANY and channel not in CHANNELS:
                yield f"channels: {channel!a} is none of {', '.join(CHANNELS)}, nor *"
        for symbols in self.symbols:
            if not is_pattern(symbols):
                yield f"symbols: {symbols!a} is no symbol, nor a prefix such as BTC-*, nor *"


EVERYTHING: Final = Entitlements()
"""What everybody may see on a server without authentication."""


def _covers(pattern: str, other: str) -> bool:
    """Whether every symbol that `other` matches is one that `pattern` matches."""
    if pattern.endswith("*"):
        return other.startswith(pattern[:-1])
    return pattern == other
