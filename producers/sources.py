"""Recordings to replay: files of any kind, one or several in one order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile
from pathlib import Path

from feed.playback import Source
from feed.ticks import Coverage, StreamKey, Subscription, Tick, is_pattern
from feed.times import Time
from producers.recordings import CsvRecording

BadRow = Callable[[int, str], None]


def open_recording(
    path: Path, symbol: str | None, columns: Mapping[str, str], on_bad_row: BadRow
) -> Source[Tick]:
    """A file as what it is, which its content tells.

    Args:
        symbol, columns, on_bad_row: as `CsvRecording` has them.

    Raises:
        InvalidRecording: it can't be read.
    """
    return CsvRecording(path, symbol, columns, on_bad_row)


class Merged:
    """Several sources in one order: by due time, and where that is the same, as they are given."""

    def __init__(self, sources: Sequence[Source[Tick]]) -> None:
        self._sources = sources

    @property
    def first(self) -> Time:
        """The earliest of all."""
        return min(source.first for source in self._sources)

    @property
    def last(self) -> Time:
        """The latest of all."""
        return max(source.last for source in self._sources)

    def read(self, start: Time | None) -> Iterator[Tick]:
        """All ticks from `start` on."""
        timed = [_timed(source.read(start), start) for source in self._sources]
        # Of equal times heapq takes the earlier iterable first.
        return (tick for _, tick in heapq.merge(*timed, key=_due))


class Chosen:
    """Those ticks of a source whose symbols are wanted.

    Args:
        patterns: symbols, and prefixes such as `BTC-*`.
    """

    def __init__(self, source: Source[Tick], patterns: Iterable[str]) -> None:
        self._source = source
        self._coverage = Coverage(Subscription("", pattern) for pattern in patterns)
        self._known: dict[str, bool] = {}

    @property
    def first(self) -> Time:
        """That of the whole."""
        return self._source.first

    @property
    def last(self) -> Time:
        """That of the whole."""
        return self._source.last

    def read(self, start: Time | None) -> Iterator[Tick]:
        """The wanted ticks."""
        known = self._known
        for tick in self._source.read(start):
            wanted = known.get(tick.symbol)
            if wanted is None:
                key = StreamKey("", "", tick.symbol)
                wanted = known[tick.symbol] = self._coverage.covers(key)
            if wanted:
                yield tick


def parse_patterns(text: str) -> list[str]:
    """Read `ES,BTC-*`.

    Raises:
        ValueError: a part is neither a symbol nor a prefix.
    """
    patterns = [part.strip() for part in text.split(",")]
    for pattern in patterns:
        if not is_pattern(pattern):
            raise ValueError(f"{pattern[:40]!a} is no symbol")
    return patterns


def _timed(ticks: Iterator[Tick], start: Time | None) -> Iterator[tuple[int, Tick]]:
    if start is not None:
        ticks = dropwhile(lambda tick: tick.time < start, ticks)
    due: int | None = None
    for tick in ticks:
        if due is None or tick.time > due:
            due = tick.time
        yield due, tick


def _due(timed: tuple[int, Tick]) -> int:
    return timed[0]
