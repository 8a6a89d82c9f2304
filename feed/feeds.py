"""The feeds that clients use: their epochs, and the streams that are known to exist in them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from feed.ticks import CHANNELS, StreamKey, Subscription, is_symbol

logger = logging.getLogger("tickcast.upstream")


class Feed:
    """What is known of one feed.

    Attributes:
        epoch: its epoch, empty until it was asked for.
        streams: the streams known to exist in it; all of them once `listed`.
        listed: whether the directory was read, which only wildcards need.
        wanting: clients that are waiting for streams of it.
        wanted: the wildcards that those clients will hold.
        unused_since: when its last client left, on the loop's clock.
    """

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        self.epoch = ""
        self.streams: set[StreamKey] = set()
        self.listed = False
        self.wanting = 0
        self.wanted: Counter[Subscription] = Counter()
        self.unused_since: float | None = None

    def learn(self, listed: Iterable[StreamKey]) -> set[StreamKey]:
        """Add to the streams that are known, up to the bound; returns the new ones."""
        valid = {key for key in listed if key.channel in CHANNELS and is_symbol(key.symbol)}
        new = valid - self.streams
        room = self._streams_max - len(self.streams)
        if len(new) > room:
            logger.warning("a feed has more than symbols_max streams: %d left out", len(new) - room)
            new = set(sorted(new)[:room])
        self.streams |= new
        return new


class Feeds:
    """All feeds that clients use, or have used lately."""

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        self._feeds: dict[str, Feed] = {}

    def __iter__(self) -> Iterator[tuple[str, Feed]]:
        return iter(list(self._feeds.items()))

    def get(self, name: str) -> Feed | None:
        """The feed, if clients use it."""
        return self._feeds.get(name)

    def use(self, name: str) -> Feed:
        """The feed, from now on in use."""
        feed = self._feeds.get(name)
        if feed is None:
            feed = self._feeds[name] = Feed(self._streams_max)
        return feed

    def epoch_of(self, name: str) -> str:
        """The feed's epoch, empty where it is not known."""
        feed = self._feeds.get(name)
        return feed.epoch if feed is not None else ""

    def has(self, stream: StreamKey) -> bool:
        """Whether the stream is known to have been published."""
        feed = self._feeds.get(stream.feed)
        return feed is not None and stream in feed.streams

    def sweep(self, now: float, linger_s: float, is_used: Callable[[str], bool]) -> None:
        """Forget the feeds that nobody has used for so long."""
        for name, feed in self:
            if feed.wanting or is_used(name):
                feed.unused_since = None
            elif feed.unused_since is None:
                feed.unused_since = now
            elif feed.unused_since <= now - linger_s:
                del self._feeds[name]
