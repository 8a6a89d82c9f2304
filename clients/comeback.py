"""What to say after a cut, so that every stream goes on where it was. No I/O.

Everything is asked for again: each subscription with its options, and with the positions of the
streams that have one. Servers take messages of a bounded size, so it may take several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from clients.books import Book, Books
from feed.ticks import SYMBOL_MAX, Subscription

Fields = dict[str, Any]
"""A message, but for its `id`."""


class Wish(NamedTuple):
    """How a subscription was asked for; None is what was not said.

    Attributes:
        start: from this time on, nanoseconds since the Unix epoch.
    """

    conflate_ms: int | None = None
    slow: str | None = None
    start: int | None = None

    def over(self, held: Wish) -> Wish:
        """What holds when this is said of a subscription that is held: its past is over."""
        conflate_ms = held.conflate_ms if self.conflate_ms is None else self.conflate_ms
        return Wish(conflate_ms, self.slow or held.slow, held.start)


def subscribe(entries: Iterable[Subscription], wish: Wish, **options: object) -> Fields:
    """A message that adds subscriptions."""
    said = {name: value for name, value in wish._asdict().items() if value is not None}
    return {"action": "subscribe", **_by_channel(entries), **said, **options}


def unsubscribe(entries: Iterable[Subscription]) -> Fields:
    """A message that ends subscriptions."""
    return {"action": "unsubscribe", **_by_channel(entries)}


def merge_channels(
    channels: Mapping[str, Iterable[str]] | None,
    trades: Iterable[str],
    quotes: Iterable[str],
    bars: Iterable[str],
) -> dict[str, list[str]]:
    """Symbols by channel, from the parameters that name them.

    >>> merge_channels({"bars:5s": ["ES"]}, trades=["ES", "NQ"], quotes=(), bars=())
    {'bars:5s': ['ES'], 'trades': ['ES', 'NQ'], 'quotes': [], 'bars': []}

    Raises:
        ValueError: a string in place of symbols, whose letters would be taken for them.
    """
    merged = {channel: _symbols(channel, given) for channel, given in (channels or {}).items()}
    for channel, given in (("trades", trades), ("quotes", quotes), ("bars", bars)):
        merged.setdefault(channel, []).extend(_symbols(channel, given))
    return merged


def _symbols(channel: str, given: Iterable[str]) -> list[str]:
    if isinstance(given, str):
        raise ValueError(
            f"{channel}: {given!r} is a string; a list of symbols is wanted, such as [{given!r}]"
        )
    return list(given)


def _by_channel(entries: Iterable[Subscription]) -> dict[str, list[str]]:
    channels: dict[str, list[str]] = {}
    for channel, pattern in entries:
        channels.setdefault(channel, []).append(pattern)
    return channels


class ComeBack:
    """Finds the messages that bring back all that was held.

    What is narrow comes first. A wildcard's `"*": 0` would bring the whole past of a stream that is
    named besides, and wanted from a later point on.

    Args:
        books: where each stream stands; None if the server would not know what that means.
        fits: whether a message is small enough.
    """

    def __init__(self, books: Books | None, fits: Callable[[Fields], bool]) -> None:
        self._books = books
        self._fits = fits
        self._asked: set[Subscription] = set()

    def messages(self, wishes: Mapping[Subscription, Wish]) -> Iterator[Fields]:
        """What to say, in this order, each when the one before is answered."""

        def order(entry: Subscription) -> tuple[int, str]:
            return -len(entry.pattern) if entry.is_wildcard else -SYMBOL_MAX - 2, str(wishes[entry])

        for wish, entries in groupby(sorted(wishes, key=order), wishes.__getitem__):
            yield from self._bring_back(list(entries), wish)

    def _bring_back(self, entries: list[Subscription], wish: Wish) -> Iterator[Fields]:
        message, known = self._ask_for(entries, wish)
        if self._fits(message):
            self._asked.update(entries)
            yield message
        elif len(entries) > 1:
            half = len(entries) // 2
            yield from self._bring_back(entries[:half], wish)
            yield from self._bring_back(entries[half:], wish)
        else:
            yield from self._bring_back_in_parts(entries[0], wish, known)

    def _bring_back_in_parts(
        self, whole: Subscription, wish: Wish, known: Iterable[Book]
    ) -> Iterator[Fields]:
        """A wildcard over so many streams that their positions do not fit: prefix by prefix.

        The parts are held only until the whole is, which then covers the same streams.
        """
        parts = sorted({_part_with(book.symbol, whole) for book in known})
        for part in parts:
            yield from self._bring_back([part], wish)
        yield from self._bring_back([whole], wish)
        yield unsubscribe(parts)

    def _ask_for(self, entries: list[Subscription], wish: Wish) -> tuple[Fields, list[Book]]:
        if self._books is None:
            return subscribe(entries, wish._replace(start=None)), []
        known = self._books.positioned(entries, besides=self._asked)
        resume = _resume_value(known)
        wildcards = [each for each in entries if each.is_wildcard]
        if wildcards and wish.start is None:
            # Streams that are not known have appeared since: they are due from their first tick.
            zeros = {
                channel: dict.fromkeys(patterns, 0)
                for channel, patterns in _by_channel(wildcards).items()
            }
            resume.append({"epoch": "", **zeros})
        return subscribe(entries, wish, resume=resume), known


def _part_with(symbol: str, whole: Subscription) -> Subscription:
    """The part of a wildcard that a symbol is in: by its next character, if it has one."""
    size = len(whole.pattern)
    return whole._replace(pattern=symbol if len(symbol) < size else symbol[:size] + "*")


def _resume_value(known: Iterable[Book]) -> list[dict[str, Any]]:
    """Positions, one map for each epoch. An empty epoch fits nothing: the server tells of a gap."""
    maps: dict[str, dict[str, Any]] = {}
    for book in known:
        positions = maps.setdefault(book.epoch, {"epoch": book.epoch})
        positions.setdefault(book.channel, {})[book.symbol] = book.seq
    return list(maps.values())
