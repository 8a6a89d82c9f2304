"""A map from patterns to values, in which the most specific pattern decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from tickcast.wire.ticks import Coverage, StreamKey, Subscription

Value = TypeVar("Value")


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

    def of(self, stream: StreamKey) -> Value | None:
        """The value for the stream's exact name, else for its longest prefix; None if neither."""
        decisive = self.closest(stream.channel, stream.symbol)
        return None if decisive is None else self._values[decisive]

    def of_pattern(self, wanted: Subscription) -> Value | None:
        """The value for a whole pattern, which is a symbol or a wildcard; None if there is none."""
        if wanted in self._values:
            return self._values[wanted]
        # The prefixes that match "BTC-" also match every symbol of "BTC-*".
        symbol = wanted.pattern.removesuffix("*")
        decisive = self.closest(wanted.channel, symbol, by_name=not wanted.is_wildcard)
        return None if decisive is None else self._values[decisive]
