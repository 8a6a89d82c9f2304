"""Recordings to replay: files of any kind, one or several in one order."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile, islice
from pathlib import Path
from typing import Final

from feed.errors import InvalidRecording, InvalidTape
from feed.playback import Source
from feed.tapes.lines import Head, decode_line
from feed.tapes.tape import Tape
from feed.ticks import Coverage, StreamKey, Subscription, Tick, is_pattern
from feed.times import Time
from producers.compressed import DAMAGE, opened_bytes
from producers.recordings import CsvRecording

_HEAD_MAX: Final = 64 * 1024
BadRow = Callable[[int, str], None]


def open_recording(
    path: Path, symbol: str | None, columns: Mapping[str, str], on_bad_row: BadRow
) -> Source:
    """A file as what it is, which its content tells.

    Args:
        symbol, columns, on_bad_row: as `CsvRecording` has them.

    Raises:
        InvalidRecording: it can't be read.
    """
    if is_tape(path):
        return TapeRecording(path)
    return CsvRecording(path, symbol, columns, _once(on_bad_row))


def _once(on_bad_row: BadRow) -> BadRow:
    """What is wrong in a file is told when it is met first, not again after a seek."""
    told = 0

    def tell(line: int, error: str) -> None:
        nonlocal told
        if line > told:
            told = line
            on_bad_row(line, error)

    return tell


class TapeRecording:
    """A tape, whose ticks are numbered anew.

    Raises:
        InvalidRecording, InvalidTape: it holds no tick, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._tape = Tape.open(path)
        if self._tape.manifest.first is None:
            raise InvalidRecording(f"{path}: holds no tick")

    @property
    def first(self) -> Time:
        """The least time of its ticks."""
        return self._tape.first

    @property
    def last(self) -> Time:
        """The greatest time of its ticks."""
        return self._tape.last

    def read(self, start: Time | None) -> Iterator[Tick]:
        """The ticks of each stream from its first at or after `start` on."""
        for tick in self._tape.read(start):
            tick.seq = None
            yield tick


def is_tape(path: Path) -> bool:
    """Whether a file begins like a tape."""
    try:
        with opened_bytes(path) as (content, _):
            return isinstance(decode_line(content.readline(_HEAD_MAX)), Head)
    except (OSError, InvalidTape, *DAMAGE):
        return False


class Merged:
    """Several sources in one order: by due time, and where that is the same, as they are given."""

    def __init__(self, sources: Sequence[Source]) -> None:
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
        timed = [_timed(_from(source, start)) for source in self._sources]
        # Of equal times heapq takes the earlier iterable first.
        return (tick for _, tick in heapq.merge(*timed, key=_due))


class Chosen:
    """Those ticks of a source whose symbols are wanted.

    Args:
        patterns: symbols, and prefixes such as `BTC-*`.
    """

    def __init__(self, source: Source, patterns: Iterable[str]) -> None:
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


class Limited:
    """The first so many ticks of a source, from wherever it is read: none beyond is looked at."""

    def __init__(self, source: Source, limit: int) -> None:
        self._source = source
        self._limit = limit

    @property
    def first(self) -> Time:
        """That of the whole."""
        return self._source.first

    @property
    def last(self) -> Time:
        """That of the whole."""
        return self._source.last

    def read(self, start: Time | None) -> Iterator[Tick]:
        """So many ticks."""
        return islice(_from(self._source, start), self._limit)


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


def _from(source: Source, start: Time | None) -> Iterator[Tick]:
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
