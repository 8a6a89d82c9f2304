"""Messages that resume every stream where it was after a cut. No I/O.

They renew each subscription with its options and with the positions of those streams that have one.
Servers limit the size of a message, so this may take several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from tickcast.client.accounts import SequenceAccounts, StreamAccount
from tickcast.wire.subscriptions import Subscription
from tickcast.wire.ticks import SYMBOL_MAX

Fields = dict[str, Any]
"""A message without its `id`."""


class RequestedOptions(NamedTuple):
    """The options of a subscription request; None if not given.

    Attributes:
        start: the time to start from, in nanoseconds since the Unix epoch.
    """

    conflate_ms: int | None = None
    slow: str | None = None
    start: int | None = None

    def over(self, held: RequestedOptions) -> RequestedOptions:
        """Merge these options into those of an existing subscription, keeping its start."""
        conflate_ms = held.conflate_ms if self.conflate_ms is None else self.conflate_ms
        return RequestedOptions(conflate_ms, self.slow or held.slow, held.start)


def subscribe(entries: Iterable[Subscription], wish: RequestedOptions, **options: object) -> Fields:
    """Return a message that adds subscriptions."""
    said = {name: value for name, value in wish._asdict().items() if value is not None}
    return {"action": "subscribe", **_by_channel(entries), **said, **options}


def unsubscribe(entries: Iterable[Subscription]) -> Fields:
    """Return a message that ends subscriptions."""
    return {"action": "unsubscribe", **_by_channel(entries)}


def merge_channels(
    channels: Mapping[str, Iterable[str]] | None,
    trades: Iterable[str],
    quotes: Iterable[str],
    bars: Iterable[str],
) -> dict[str, list[str]]:
    """Combine the channel parameters into symbols by channel.

    >>> merge_channels({"bars:5s": ["ES"]}, trades=["ES", "NQ"], quotes=(), bars=())
    {'bars:5s': ['ES'], 'trades': ['ES', 'NQ'], 'quotes': [], 'bars': []}

    Raises:
        ValueError: symbols are a string, whose letters would be taken for symbols.
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


class ResumePlanner:
    """Builds the messages that restore all subscriptions.

    Narrow subscriptions come first. Otherwise a wildcard's `"*": 0` would bring the whole history
    of a stream that is also named, and wanted only from a later point on.

    Positions that do not fit into one message are spread over as few as possible, because servers
    limit a client's messages and charge each by what it names.

    Args:
        books: the positions of the streams; None if the server does not understand positions.
        size: returns the size of a message on the wire, in bytes.
        most: the maximum size of a message, in bytes.
    """

    def __init__(
        self, books: SequenceAccounts | None, size: Callable[[Fields], int], most: int
    ) -> None:
        self._books = books
        self._size = size
        self._most = most
        self._asked: list[Subscription] = []

    def messages(self, wishes: Mapping[Subscription, RequestedOptions]) -> Iterator[Fields]:
        """Yield the messages in order; send each after the reply to the one before."""

        def order(entry: Subscription) -> tuple[int, str]:
            return -len(entry.pattern) if entry.is_wildcard else -SYMBOL_MAX - 2, str(wishes[entry])

        for wish, entries in groupby(sorted(wishes, key=order), wishes.__getitem__):
            yield from self._bring_back(list(entries), wish)

    def _bring_back(self, entries: list[Subscription], wish: RequestedOptions) -> Iterator[Fields]:
        message = self._ask_for(entries, wish, self._known(entries))
        if self._size(message) <= self._most:
            self._asked += entries
            yield message
            return
        parts: list[Subscription] = []
        together: list[Subscription] = []
        known: list[StreamAccount] = []
        size = 0
        for entry, books in self._split(entries, wish, parts):
            more = self._size(self._ask_for([entry], wish, books))
            if together and size + more > self._most:
                # The sum of the single sizes overestimates the size of the joint message.
                joint = self._ask_for([*together, entry], wish, known + books)
                size = self._size(joint) - more
                if size + more > self._most:
                    yield self._ask_for(together, wish, known)
                    together, known, size = [], [], 0
            together.append(entry)
            known += books
            size += more
        yield self._ask_for(together, wish, known)
        yield from self._unsubscribe_from(parts)

    def _unsubscribe_from(self, parts: list[Subscription]) -> Iterator[Fields]:
        message = unsubscribe(parts)
        if len(parts) > 1 and self._size(message) > self._most:
            half = len(parts) // 2
            yield from self._unsubscribe_from(parts[:half])
            yield from self._unsubscribe_from(parts[half:])
        elif parts:
            yield message

    def _split(
        self, entries: Iterable[Subscription], wish: RequestedOptions, parts: list[Subscription]
    ) -> Iterator[tuple[Subscription, list[StreamAccount]]]:
        """Yield entries with the positions of their streams, each small enough for one message.

        A wildcard with too many streams comes after its parts, which are added to `parts`. They are
        needed only until the whole wildcard is subscribed, because it covers the same streams.
        """
        for entry in entries:
            known = self._known([entry])
            if entry.is_wildcard and not self._fits(entry, wish, known):
                for part, books in self._parts(entry, wish, known):
                    parts.append(part)
                    yield part, books
                known = []
            self._asked.append(entry)
            yield entry, known

    def _parts(
        self, whole: Subscription, wish: RequestedOptions, known: Iterable[StreamAccount]
    ) -> Iterator[tuple[Subscription, list[StreamAccount]]]:
        by_part: dict[Subscription, list[StreamAccount]] = {}
        for book in known:
            by_part.setdefault(_part_with(book.symbol, whole), []).append(book)
        for part in sorted(by_part):
            if part.is_wildcard and not self._fits(part, wish, by_part[part]):
                yield from self._parts(part, wish, by_part[part])
            else:
                yield part, by_part[part]

    def _fits(
        self, entry: Subscription, wish: RequestedOptions, known: list[StreamAccount]
    ) -> bool:
        return self._size(self._ask_for([entry], wish, known)) <= self._most

    def _known(self, entries: list[Subscription]) -> list[StreamAccount]:
        if self._books is None:
            return []
        return self._books.positioned(entries, besides=self._asked)

    def _ask_for(
        self, entries: list[Subscription], wish: RequestedOptions, known: Iterable[StreamAccount]
    ) -> Fields:
        if self._books is None:
            return subscribe(entries, wish._replace(start=None))
        resume = _resume_value(known)
        wildcards = [each for each in entries if each.is_wildcard]
        if wildcards and wish.start is None:
            # Unknown streams have appeared since the cut: request them from their first tick.
            zeros = {
                channel: dict.fromkeys(patterns, 0)
                for channel, patterns in _by_channel(wildcards).items()
            }
            resume.append({"epoch": "", **zeros})
        return subscribe(entries, wish, resume=resume)


def _part_with(symbol: str, whole: Subscription) -> Subscription:
    """Return the part of a wildcard that covers a symbol: by its next character, if any."""
    size = len(whole.pattern)
    return whole._replace(pattern=symbol if len(symbol) < size else symbol[:size] + "*")


def _resume_value(known: Iterable[StreamAccount]) -> list[dict[str, Any]]:
    """Return one map per epoch. An empty epoch matches none, so the server reports a gap."""
    maps: dict[str, dict[str, Any]] = {}
    for book in known:
        positions = maps.setdefault(book.epoch, {"epoch": book.epoch})
        positions.setdefault(book.channel, {})[book.symbol] = book.seq
    return list(maps.values())
