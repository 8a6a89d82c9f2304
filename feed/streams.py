"""The streams that one server carries, and the taps through which audiences take them."""

from __future__ import annotations

from collections.abc import Iterable

from feed.audience import AnyTap, Audience, ConflatedTap, Group, Tap
from feed.ticks import Coverage, StreamKey, Subscription, Tick


class Stream:
    """One stream that the broker feeds.

    Attributes:
        latest: its last tick, and `published_us`, when that was published (0 if unknown).
        taps: the ways in which clients take it, by interval in ms; 0 is every tick.
    """

    __slots__ = ("key", "latest", "published_us", "taps")

    def __init__(self, key: StreamKey, latest: Tick | None, published_us: int) -> None:
        self.key = key
        self.latest = latest
        self.published_us = published_us
        self.taps: dict[int, AnyTap] = {}


class Streams:
    """All streams by their keys, and the groups that conflated ones go by."""

    def __init__(self) -> None:
        self._streams: dict[StreamKey, Stream] = {}
        self._groups: dict[int, Group] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, key: StreamKey) -> bool:
        return key in self._streams

    def get(self, key: StreamKey) -> Stream | None:
        """The stream, if it is carried."""
        return self._streams.get(key)

    def open(self, key: StreamKey, latest: Tick | None, published_us: int) -> Stream:
        """Carry a stream from now on."""
        stream = self._streams[key] = Stream(key, latest, published_us)
        return stream

    def close(self, key: StreamKey) -> Stream | None:
        """Carry a stream no longer; returns it if it was carried."""
        return self._streams.pop(key, None)

    def covered(self, feed: str, subscriptions: Iterable[Subscription]) -> dict[Stream, None]:
        """Every carried stream that the subscriptions cover, once each."""
        coverage = Coverage(sorted(subscriptions))
        named = coverage.named_in(feed)
        found = {self._streams[key]: None for key in named if key in self._streams}
        if coverage.has_wildcards:
            for key, stream in self._streams.items():
                if key.feed == feed and coverage.covers_by_wildcard(key):
                    found[stream] = None
        return found

    # -- taps

    def tap(self, stream: Stream, audience: Audience) -> AnyTap:
        """The tap that gives a stream as the audience wants it."""
        delivery = audience.deliveries.delivery_of(stream.key)
        interval_ms = delivery.conflate_ms if delivery else 0
        tap = stream.taps.get(interval_ms)
        if tap is None:
            if interval_ms:
                group = self._groups.setdefault(interval_ms, Group(interval_ms))
                group.taps += 1
                tap = ConflatedTap(stream.key, group)
            else:
                tap = Tap(stream.key)
            stream.taps[interval_ms] = tap
        return tap

    def disconnect(self, audience: Audience, tap: AnyTap) -> None:
        """Take an audience off a tap, and let go of a tap without any."""
        audience.disconnect(tap)
        if isinstance(tap, ConflatedTap):
            audience.known.pop(tap, None)
        if tap.audiences:
            return
        stream = self._streams.get(tap.key)
        if stream is not None and stream.taps.get(tap.interval_ms) is tap:
            del stream.taps[tap.interval_ms]
        if isinstance(tap, ConflatedTap):
            tap.group.taps -= 1
            if tap in tap.group.waiting:
                tap.group.waiting.remove(tap)
            if not tap.group.taps:
                self._groups.pop(tap.interval_ms, None)

    # -- conflation

    def due_groups(self, now_s: float) -> list[Group]:
        """The groups that have something to give out by now, on the steady clock."""
        return [group for group in self._groups.values() if group.is_due(now_s)]

    def due_s(self) -> float | None:
        """When the next group is due, on the steady clock; None if none has anything to give."""
        return min((group.due_s for group in self._groups.values() if group.waiting), default=None)
