"""Select what to play: merge several recordings, choose symbols, limit the number of ticks."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import dropwhile, islice

from tickcast.wire.playback import TickSource
from tickcast.wire.subscriptions import Coverage, Subscription, is_pattern
from tickcast.wire.ticks import StreamKey, Tick
from tickcast.wire.times import Time


class Merged:
    """Several sources merged by due time. Ties keep the order in which the sources are given."""

    def __init__(self, sources: Sequence[TickSource[Tick]]) -> None:
        self._sources = sources

    @property
    def first(self) -> Time:
        """The earliest time of all sources."""
        return min(source.first for source in self._sources)

    @property
    def last(self) -> Time:
        """The latest time of all sources."""
        return max(source.last for source in self._sources)

    def read(self, start: Time | None) -> Iterator[Tick]:
        """Yield all ticks from `start` on."""
        timed = [_timed(_from(source, start)) for source in self._sources]
        # For equal times, heapq.merge takes the earlier iterable first.
        return (tick for _, tick in heapq.merge(*timed, key=_due))


class Chosen:
    """The ticks of a source whose symbols match the patterns.

    Args:
        patterns: symbols, and prefixes such as `BTC-*`.
    """

    def __init__(self, source: TickSource[Tick], patterns: Iterable[str]) -> None:
        self._source = source
        self._coverage = Coverage(Subscription("", pattern) for pattern in patterns)
        self._known: dict[str, bool] = {}

    @property
    def first(self) -> Time:
        """The first time of the whole source."""
        return self._source.first

    @property
    def last(self) -> Time:
        """The last time of the whole source."""
        return self._source.last

    def read(self, start: Time | None) -> Iterator[Tick]:
        """Yield the matching ticks."""
        known = self._known
        for tick in self._source.read(start):
            wanted = known.get(tick.symbol)
            if wanted is None:
                key = StreamKey("", "", tick.symbol)
                wanted = known[tick.symbol] = self._coverage.covers(key)
            if wanted:
                yield tick


class Limited:
    """At most `limit` ticks of a source, counted from where reading starts. Reads no further."""

    def __init__(self, source: TickSource[Tick], limit: int) -> None:
        self._source = source
        self._limit = limit

    @property
    def first(self) -> Time:
        """The first time of the whole source."""
        return self._source.first

    @property
    def last(self) -> Time:
        """The last time of the whole source."""
        return self._source.last

    def read(self, start: Time | None) -> Iterator[Tick]:
        """Yield at most `limit` ticks."""
        return islice(_from(self._source, start), self._limit)


def parse_patterns(text: str) -> list[str]:
    """Parse `ES,BTC-*` into a list.

    Raises:
        ValueError: a part is neither a symbol nor a prefix.
    """
    patterns = [part.strip() for part in text.split(",")]
    for pattern in patterns:
        if not is_pattern(pattern):
            raise ValueError(f"{pattern[:40]!a} is no symbol")
    return patterns


def _from(source: TickSource[Tick], start: Time | None) -> Iterator[Tick]:
    ticks = source.read(start)
    return ticks if start is None else dropwhile(lambda tick: tick.time < start, ticks)


def _timed(ticks: Iterator[Tick]) -> Iterator[tuple[int, Tick]]:
    due: int | None = None
    for tick in ticks:
        if due is None or tick.time > due:
            due = tick.time
        yield due, tick


def _due(timed: tuple[int, Tick]) -> int:
    return timed[0]
