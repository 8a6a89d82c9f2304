"""Subscriptions, the streams that they cover, and values by pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

from tickcast.wire.ticks import StreamKey

Value = TypeVar("Value")

_NO_PREFIXES: Final[dict[int, set[str]]] = {}
# A symbol, perhaps followed by `*`, or `*` alone. See `is_symbol`.
_PATTERN = re.compile(r"[A-Za-z0-9._/:-]{1,32}\*?|\*")


def is_pattern(text: str) -> bool:
    """Whether `text` is valid in a subscription: a symbol, or a prefix followed by `*`.

    >>> [is_pattern(text) for text in ("ES", "BTC-*", "*", "B*C", "")]
    [True, True, True, False, False]
    """
    return _PATTERN.fullmatch(text) is not None


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
        # The subscriptions without wildcards, in the given order.
        self._named: dict[tuple[str, str], Subscription] = {}
        # By channel and length, longest first. Even a thousand prefixes have at most 33 lengths,
        # so a lookup takes few steps.
        self._prefixes: dict[str, dict[int, set[str]]] = {}
        prefixes: dict[str, dict[int, set[str]]] = {}
        for subscription in subscriptions:
            if subscription.is_wildcard:
                prefix = subscription.pattern[:-1]
                by_length = prefixes.setdefault(subscription.channel, {})
                by_length.setdefault(len(prefix), set()).add(prefix)
            else:
                self._named[subscription] = subscription
        for channel, by_length in prefixes.items():
            self._prefixes[channel] = dict(sorted(by_length.items(), reverse=True))
        self.has_wildcards = bool(self._prefixes)

    @property
    def named(self) -> Iterable[Subscription]:
        """The subscriptions that name a symbol in full, in the given order."""
        return self._named.values()

    def wildcard_prefixes(self) -> Iterator[tuple[str, str]]:
        """The channels and prefixes of the wildcards, except those covered by other wildcards."""
        for channel, by_length in self._prefixes.items():
            # Sorted, a prefix comes right before the prefixes that it covers.
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
        return self.longest_match(*wanted) is not None

    def longest_match(self, channel: str, pattern: str) -> Subscription | None:
        """The subscription that names a symbol, or else the wildcard with the longest prefix.

        Args:
            pattern: a symbol, or a wildcard that has to be covered as a whole.
        """
        if (channel, pattern) in self._named:
            return self._named[channel, pattern]
        # "BTC-*" is covered if "BTC-" begins with the prefix of a wildcard.
        symbol = pattern.removesuffix("*")
        for length, prefixes in self._prefixes.get(channel, _NO_PREFIXES).items():
            if (prefix := symbol[:length]) in prefixes:
                return Subscription(channel, prefix + "*")
        return None


class PatternMap(Coverage, Generic[Value]):
    """A value for each subscription. The longest pattern that matches a stream decides."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[Subscription, Value]) -> None:
        super().__init__(values)
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def match(self, stream: StreamKey) -> Value | None:
        """The value for the stream's exact name, else for its longest prefix; None if neither."""
        # Without `match_pattern`: a new wildcard calls this for each of thousands of streams.
        decisive = self.longest_match(stream.channel, stream.symbol)
        return None if decisive is None else self._values[decisive]

    def match_pattern(self, channel: str, pattern: str) -> Value | None:
        """The value for a symbol, or for a wildcard as a whole; None if there is none."""
        decisive = self.longest_match(channel, pattern)
        return None if decisive is None else self._values[decisive]
