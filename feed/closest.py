"""Values by pattern, and which of several patterns decides for a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

from feed.ticks import Coverage, StreamKey, Subscription

Value = TypeVar("Value")


class PatternMap(Coverage, Generic[Value]):
    """A value for each subscription. The longest pattern that matches a stream decides.

    A lookup costs one step for each length of prefix in use, which are at most 33.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[Subscription, Value]) -> None:
        super().__init__(values)
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def of(self, stream: StreamKey) -> Value | None:
        """The value of the stream's own name, or else of its longest prefix; None without one."""
        decisive = self.closest(stream.channel, stream.symbol)
        return None if decisive is None else self._values[decisive]

    def of_pattern(self, wanted: Subscription) -> Value | None:
        """The same for a symbol or a wildcard as a whole."""
        if wanted in self._values:
            return self._values[wanted]
        # The prefixes that match "BTC-" also match every symbol of "BTC-*".
        symbol = wanted.pattern.removesuffix("*")
        decisive = self.closest(wanted.channel, symbol, by_name=not wanted.is_wildcard)
        return None if decisive is None else self._values[decisive]
