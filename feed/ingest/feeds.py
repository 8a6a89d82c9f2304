"""The feeds that clients use, with their epochs and known streams."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from tickcast.wire.subscriptions import Subscription
from tickcast.wire.ticks import CHANNELS, StreamKey, is_symbol

logger = logging.getLogger("tickcast.upstream")


class Feed:
    """One feed: its epoch and its known streams.

    Attributes:
        epoch: the feed's epoch; empty until it has been read.
        streams: the streams that are known to exist; all of them once `listed` is True.
        listed: whether the directory has been read. Only wildcards need it.
        wanting: how many clients are waiting for streams of the feed.
        wanted: the wildcards that those clients will subscribe to.
        unused_since: when the last client left, on the loop's clock; None while the feed is used.
    """

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        self.epoch = ""
        self.streams: set[StreamKey] = set()
        self.listed = False
        self.wanting = 0
        self.wanted: Counter[Subscription] = Counter()
        self.unused_since: float | None = None

    def add_streams(self, listed: Iterable[StreamKey]) -> set[StreamKey]:
        """Add streams to the known ones, up to the limit. Returns the new ones."""
        valid = {key for key in listed if key.channel in CHANNELS and is_symbol(key.symbol)}
        new = valid - self.streams
        room = self._streams_max - len(self.streams)
        if len(new) > room:
            logger.warning("a feed has more than symbols_max streams: %d left out", len(new) - room)
            new = set(sorted(new)[:room])
        self.streams |= new
        return new


class Feeds:
    """All feeds that clients use or have used recently."""

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        self._feeds: dict[str, Feed] = {}

    def __iter__(self) -> Iterator[tuple[str, Feed]]:
        return iter(list(self._feeds.items()))

    def get(self, name: str) -> Feed | None:
        """The feed, if it is in use."""
        return self._feeds.get(name)

    def use(self, name: str) -> Feed:
        """Return the feed, adding it if it is not in use yet."""
        feed = self._feeds.get(name)
        if feed is None:
            feed = self._feeds[name] = Feed(self._streams_max)
        return feed

    def epoch_of(self, name: str) -> str:
        """The feed's epoch; empty if it is not known."""
        feed = self._feeds.get(name)
        return feed.epoch if feed is not None else ""

    def has(self, stream: StreamKey) -> bool:
        """Whether the stream is known to have been published."""
        feed = self._feeds.get(stream.feed)
        return feed is not None and stream in feed.streams

    def sweep(self, now: float, linger_s: float, is_used: Callable[[str], bool]) -> None:
        """Forget the feeds that have been unused for `linger_s`."""
        for name, feed in self:
            if feed.wanting or is_used(name):
                feed.unused_since = None
            elif feed.unused_since is None:
                feed.unused_since = now
            elif feed.unused_since <= now - linger_s:
                del self._feeds[name]
