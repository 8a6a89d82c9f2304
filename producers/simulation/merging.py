"""Select what to replay: merge recordings, choose symbols and limit the number of ticks."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from itertools import dropwhile, islice

from tickcast.wire.playback import TickSource
from tickcast.wire.subscriptions import Coverage, Subscription, is_pattern
from tickcast.wire.ticks import StreamKey, Tick
from tickcast.wire.times import Time


class MergedSource:
    """Several sources merged by due time. Ties keep the order in which the sources are given.

    Args:
        patterns: symbols, and prefixes such as `BTC-*`. Other ticks are left out.
        limit: the maximum number of ticks, counted from where reading starts.
    """

    def __init__(
        self,
        sources: Sequence[TickSource[Tick]],
        patterns: Iterable[str] | None = None,
        limit: int | None = None,
    ) -> None:
        self._sources = sources
        self._coverage: Coverage | None = None
        if patterns is not None:
            self._coverage = Coverage(Subscription("", pattern) for pattern in patterns)
        self._limit = limit

    @property
    def first(self) -> Time:
        """The earliest time of all sources, whatever the patterns."""
        return min(source.first for source in self._sources)

    @property
    def last(self) -> Time:
        """The latest time of all sources, whatever the patterns."""
        return max(source.last for source in self._sources)

    def read(self, start: Time | None) -> Iterator[Tick]:
        """Yield the ticks from `start` on, and read no further than the limit."""
        ticks = self._merge(start)
        if self._coverage is not None:
            ticks = self._select(ticks, self._coverage)
        # `islice` stops before it reads another tick, which may be invalid.
        return ticks if self._limit is None else islice(ticks, self._limit)

    def _merge(self, start: Time | None) -> Iterator[Tick]:
        parts = [_from_start(source, start) for source in self._sources]
        if len(parts) == 1:
            return parts[0]
        # For equal times, heapq.merge takes the earlier iterable first.
        merged = heapq.merge(*map(_with_due_times, parts), key=lambda each: each[0])
        return (tick for _, tick in merged)

    def _select(self, ticks: Iterator[Tick], coverage: Coverage) -> Iterator[Tick]:
        is_wanted: dict[str, bool] = {}
        for tick in ticks:
            wanted = is_wanted.get(tick.symbol)
            if wanted is None:
                key = StreamKey("", "", tick.symbol)
                wanted = is_wanted[tick.symbol] = coverage.covers(key)
            if wanted:
                yield tick


def parse_patterns(text: str) -> list[str]:
    """Parse `ES,BTC-*` into a list. Raises ValueError."""
    patterns = [part.strip() for part in text.split(",")]
    for pattern in patterns:
        if not is_pattern(pattern):
            raise ValueError(f"{pattern[:40]!a} is not a symbol")
    return patterns


def _from_start(source: TickSource[Tick], start: Time | None) -> Iterator[Tick]:
    ticks = source.read(start)
    return ticks if start is None else dropwhile(lambda tick: tick.time < start, ticks)


def _with_due_times(ticks: Iterator[Tick]) -> Iterator[tuple[int, Tick]]:
    due: int | None = None
    for tick in ticks:
        if due is None or tick.time > due:
            due = tick.time
        yield due, tick
