"""What a client may see: entitlements, and the grant that valid credentials give. No I/O."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cached_property
from typing import Final, TypeVar

from msgspec import Struct

from tickcast.wire.subscriptions import Coverage, PatternMap, Subscription, is_pattern
from tickcast.wire.ticks import CHANNELS, is_feed_name

ANY: Final = "*"

Value = TypeVar("Value")


class Entitlements(Struct, frozen=True, dict=True):
    """The feeds, channels and symbols that a credential covers, in all combinations.

    Attributes:
        feeds: names of feeds; `*` means any.
        channels: `trades`, `quotes`, `bars`, `bars:1s`, …; `*` means any.
        symbols: symbols, and prefixes such as `BTC-*`; `*` means any.
    """

    feeds: tuple[str, ...] = (ANY,)
    channels: tuple[str, ...] = (ANY,)
    symbols: tuple[str, ...] = (ANY,)

    def allows_feed(self, feed: str) -> bool:
        """Whether they cover anything in a feed."""
        has_some = bool(self.channels and self.symbols)
        return has_some and (ANY in self.feeds or feed in self.feeds)

    def allows_channel(self, channel: str) -> bool:
        """Whether they cover any symbol of a channel."""
        return ANY in self.channels or channel in self.channels

    @cached_property
    def _coverage(self) -> Coverage:
        """An index of the symbols. Channels are checked separately."""
        return Coverage(Subscription("", symbols) for symbols in self.symbols)

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(set(self.symbols))

    def narrow(self, feed: str, wanted: Subscription) -> frozenset[Subscription]:
        """Reduce a subscription to its covered part.

        The result is the subscription itself, narrower ones in place of a wildcard, or nothing.
        There are no other cases: if two patterns share a symbol, one of them covers the other.
        """
        return frozenset(self.narrow_all(feed, {wanted: None}))

    def narrow_all(
        self, feed: str, wanted: Mapping[Subscription, Value]
    ) -> dict[Subscription, Value]:
        """Reduce several subscriptions to their covered parts.

        A narrower subscription gets the value of the wanted one that matches it most closely.
        """
        if self == EVERYTHING:
            return dict(wanted)
        if not self.allows_feed(feed):
            return {}
        left: dict[Subscription, Value] = {}
        parts: dict[Subscription, None] = {}
        for each, value in wanted.items():
            if self.allows(feed, each):
                left[each] = value
            elif each.is_wildcard and self.allows_channel(each.channel):
                parts.update(dict.fromkeys(self._within(each)))
        if parts:
            closest = PatternMap(wanted)
            left.update((part, closest.match_pattern(*part)) for part in parts)  # type: ignore[misc]
        return left

    def refused(self, feed: str, wanted: Iterable[Subscription]) -> list[Subscription]:
        """Return the subscriptions that are not covered at all."""
        if not self.allows_feed(feed):
            return list(wanted)
        # A message may name thousands of symbols, so look up once what is the same for all.
        channels = {channel for channel in CHANNELS if self.allows_channel(channel)}
        closest = self._coverage.longest_match
        found: list[Subscription] = []
        for each in wanted:
            channel, pattern = each
            if pattern.endswith("*"):
                if not self.narrow(feed, each):
                    found.append(each)
            elif channel not in channels or closest("", pattern) is None:
                found.append(each)
        return found

    def allows(self, feed: str, wanted: Subscription) -> bool:
        """Whether they cover a whole subscription."""
        if not (self.allows_feed(feed) and self.allows_channel(wanted.channel)):
            return False
        return self._coverage.covers_pattern(Subscription("", wanted.pattern))

    def _within(self, wanted: Subscription) -> Iterable[Subscription]:
        """The entitled symbols and prefixes that a wildcard covers."""
        prefix, names = wanted.pattern[:-1], self._sorted
        for place in range(bisect_left(names, prefix), len(names)):
            if not names[place].startswith(prefix):
                break
            yield Subscription(wanted.channel, names[place])

    def faults(self) -> Iterable[str]:
        """Describe the errors in the entitlements, in words that help to correct them."""
        for feed in self.feeds:
            if feed != ANY and not is_feed_name(feed):
                yield f"feeds: {feed!a} is not 1 to 32 characters of a-z 0-9 _ -, nor *"
        for channel in self.channels:
            if channel != ANY and channel not in CHANNELS:
                yield f"channels: {channel!a} is none of {', '.join(CHANNELS)}, nor *"
        for symbols in self.symbols:
            if not is_pattern(symbols):
                yield f"symbols: {symbols!a} is neither a symbol, nor a prefix such as BTC-*, nor *"


# The entitlements of every client on a server without authentication.
EVERYTHING: Final = Entitlements()


class Proof(Enum):
    """The kind of credentials that a client has presented."""

    # The server does not ask for credentials.
    NOTHING = "nothing"
    KEY = "key"
    TOKEN = "token"  # noqa: S105


class Grant(Struct, frozen=True):
    """The rights of one client.

    Attributes:
        proof: the kind of credentials that gave the rights.
        subject: the owner of the rights: a key's id, or a token's `sub`; safe to log.
        entitlements: what the client may see.
        max_connections: how many connections the subject may have at a time; None for no limit.
        expires_s: when the rights end, in seconds since the Unix epoch; None for never.
        publishes: whether the client may also publish into what it may see.
    """

    proof: Proof = Proof.NOTHING
    subject: str = ""
    entitlements: Entitlements = EVERYTHING
    max_connections: int | None = None
    expires_s: float | None = None
    publishes: bool = False

    def is_renewed_by(self, other: Grant) -> bool:
        """Whether another grant replaces this one: it is for the same subject, with a new token."""
        same = other.proof is self.proof is Proof.TOKEN and other.subject == self.subject
        return same and other.expires_s != self.expires_s


# The grant of every client on a server without authentication.
OPEN_GRANT: Final = Grant()
# The grant of programs on the server's own machine, if no other machine can reach the server.
LOCAL_GRANT: Final = Grant(publishes=True)
