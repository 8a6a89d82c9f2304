"""What is said of subscriptions, and what it comes down to for a stream that several match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from feed.ticks import Coverage, StreamKey, Subscription

Value = TypeVar("Value")


class Closest(Coverage, Generic[Value]):
    """A value for each subscription; of those that match a stream, the closest one's counts."""

    __slots__ = ("_by_prefix", "_said")

    def __init__(self, said: Mapping[Subscription, Value]) -> None:
        super().__init__(said)
        self._said = said
        wildcards = [each for each in said if each.is_wildcard]
        self._by_prefix = sorted(wildcards, key=lambda each: len(each.pattern), reverse=True)

    def of(self, stream: StreamKey) -> Value | None:
        """What its own name says, or else the longest prefix; None where nothing matches."""
        named = self._said.get(Subscription(stream.channel, stream.symbol))
        if named is not None:
            return named
        for wildcard in self._by_prefix:
            channel, pattern = wildcard
            if channel == stream.channel and stream.symbol.startswith(pattern[:-1]):
                return self._said[wildcard]
        return None
