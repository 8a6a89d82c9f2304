"""Subscriptions, the streams that they cover, and values by pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

from tickcast.wire.ticks import StreamKey, is_symbol

Value = TypeVar("Value")

_NO_PREFIXES: Final[dict[int, set[str]]] = {}
_PREFIX = re.compile(r"[A-Za-z0-9._/:-]{0,32}\*")


def is_pattern(text: str) -> bool:
    """Whether `text` is valid in a subscription: a symbol, or a prefix followed by `*`.

    >>> [is_pattern(text) for text in ("ES", "BTC-*", "*", "B*C", "")]
    [True, True, True, False, False]
    """
    return is_symbol(text) or _PREFIX.fullmatch(text) is not None


class Subscription(NamedTuple):
    """A channel and a pattern: a symbol, `*`, or a prefix such as `BTC-*`."""

    channel: str
    pattern: str

    @property
    def is_wildcard(self) -> bool:
        """True if the pattern can match more than one symbol."""
        return self.pattern.endswith("*")


class Coverage:
    """Finds quickly which streams are covered by a set of subscriptions, even a large one."""

    __slots__ = ("_named", "_prefixes", "has_wildcards")

    def __init__(self, subscriptions: Iterable[Subscription]) -> None:
        self._named: dict[tuple[str, str], None] = {}
        # By channel and length, longest first. Even a thousand prefixes have few lengths.
        self._prefixes: dict[str, dict[int, set[str]]] = {}
        prefixes: dict[str, dict[int, set[str]]] = {}
        for subscription in subscriptions:
            if subscription.is_wildcard:
                prefix = subscription.pattern[:-1]
                by_length = prefixes.setdefault(subscription.channel, {})
                by_length.setdefault(len(prefix), set()).add(prefix)
            else:
                self._named[subscription] = None
        for channel, by_length in prefixes.items():
            self._prefixes[channel] = dict(sorted(by_length.items(), reverse=True))
        self.has_wildcards = bool(self._prefixes)

    def named_streams(self, feed: str) -> Iterable[StreamKey]:
        """The streams that are named in full, in the given order."""
        return (StreamKey(feed, *name) for name in self._named)

    def prefixes(self) -> Iterator[tuple[str, str]]:
        """The channels and prefixes of the wildcards, except those covered by other wildcards."""
        for channel, by_length in self._prefixes.items():
            last: str | None = None
            for prefix in sorted(prefix for prefixes in by_length.values() for prefix in prefixes):
                if last is None or not prefix.startswith(last):
                    last = prefix
                    yield channel, prefix

    def names(self, stream: StreamKey) -> bool:
        """Whether one of the subscriptions names the stream in full."""
        return (stream.channel, stream.symbol) in self._named

    def covers(self, stream: StreamKey) -> bool:
        """Whether one of the subscriptions matches the stream."""
        return self.names(stream) or self.covers_by_wildcard(stream)

    def covers_by_wildcard(self, stream: StreamKey) -> bool:
        """Whether one of the wildcards matches the stream."""
        return any(
            stream.symbol[:length] in prefixes
            for length, prefixes in self._prefixes.get(stream.channel, _NO_PREFIXES).items()
        )

    def covers_pattern(self, wanted: Subscription) -> bool:
        """Whether one of the subscriptions covers every stream that `wanted` matches."""
        channel, pattern = wanted
        # "BTC-*" is covered if "BTC-" starts with the prefix of another wildcard.
        is_wildcard = pattern.endswith("*")
        symbol = pattern[:-1] if is_wildcard else pattern
        return self.longest_match(channel, symbol, by_name=not is_wildcard) is not None

    def longest_match(self, channel: str, symbol: str, by_name: bool = True) -> Subscription | None:
        """The subscription that names a symbol, or else the wildcard with the longest match.

        Args:
            by_name: if False, consider only wildcards.
        """
        if by_name and (channel, symbol) in self._named:
            return Subscription(channel, symbol)
        for length, prefixes in self._prefixes.get(channel, _NO_PREFIXES).items():
            if length <= len(symbol) and (prefix := symbol[:length]) in prefixes:
                return Subscription(channel, prefix + "*")
        return None


class PatternMap(Coverage, Generic[Value]):
    """A value for each subscription. The longest pattern that matches a stream decides.

    A lookup takes one step for each prefix length in use, of which there are at most 33.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[Subscription, Value]) -> None:
        super().__init__(values)
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def match(self, stream: StreamKey) -> Value | None:
        """The value for the stream's exact name, else for its longest prefix; None if neither."""
        decisive = self.longest_match(stream.channel, stream.symbol)
        return None if decisive is None else self._values[decisive]

    def match_pattern(self, wanted: Subscription) -> Value | None:
        """The value for a whole pattern, which is a symbol or a wildcard; None if there is none."""
        if wanted in self._values:
            return self._values[wanted]
        # The prefixes that match "BTC-" also match every symbol of "BTC-*".
        symbol = wanted.pattern.removesuffix("*")
        decisive = self.longest_match(wanted.channel, symbol, by_name=not wanted.is_wildcard)
        return None if decisive is None else self._values[decisive]
