"""All audiences of one server: found, made, joined and let go of."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from feed.audience import AnyTap, Audience, AudienceKey, ConflatedTap
from feed.outbox import Outbox
from feed.streams import Stream, Streams
from feed.ticks import StreamKey


class Audiences:
    """The audiences by their keys, and which client is in which."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._by_key: dict[AudienceKey, Audience] = {}
        self._with_wildcards: dict[Audience, None] = {}
        self._behind: dict[Audience, None] = {}
        self._of: dict[Outbox, Audience] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, outbox: Outbox) -> Audience | None:
        """The audience that a client is in."""
        return self._of.get(outbox)

    def has_feed(self, feed: str) -> bool:
        """Whether some audience is in the feed."""
        return any(key.feed == feed for key in self._by_key)

    def covering(self, stream: StreamKey) -> Iterator[Audience]:
        """Those with a wildcard that matches the stream, carried or not."""
        return (each for each in self._with_wildcards if each.covers(stream))

    def is_awaited(self, stream: StreamKey) -> bool:
        """Whether somebody who holds the stream has still to catch up with it."""
        return any(stream in audience.behind for audience in self._behind)

    def find(
        self, key: AudienceKey, outbox: Outbox, behind: Collection[StreamKey] = ()
    ) -> Audience:
        """The audience for a client, wherever it is now; it is not moved yet.

        Args:
            behind: streams that it is to hold, but gets from elsewhere for now.
        """
        old = self._of.get(outbox)
        audience = self._by_key.get(key) or self._create(key)
        known = {
            tap: tap.count if old is None or tap not in old.taps else old.known.get(tap, 0)
            for tap in audience.taps
            if isinstance(tap, ConflatedTap) and tap.key not in behind
        }
        known = {tap: count for tap, count in known.items() if count}
        if not known and not behind:
            return audience
        own_key = key._replace(newcomer=outbox)
        own = self._by_key.get(own_key) or self._create(own_key, behind)
        own.known = known
        self.drop_if_empty(audience)
        return own

    def move(self, outbox: Outbox, new: Audience | None) -> None:
        """Put a client into another audience, or into none."""
        old = self._of.pop(outbox, None)
        if new is not None:
            self._of[outbox] = new
        if old is new:
            return
        if old is not None:
            old.leave(outbox)
            self.drop_if_empty(old)
        if new is not None:
            new.join(outbox)

    def catch_up(self, audience: Audience, stream: StreamKey) -> None:
        """A newcomer takes a stream like everybody else from now on."""
        audience.behind.discard(stream)
        carried = self._streams.get(stream)
        if carried is not None:
            tap = self._streams.tap(carried, audience)
            audience.connect(tap)
            if isinstance(tap, ConflatedTap) and tap.count:
                audience.known[tap] = tap.count
        if not audience.behind:
            self._behind.pop(audience, None)
        self.unite(audience)

    def unite(self, late: Audience) -> None:
        """Where nothing sets a newcomer apart any more, it joins those who were there before."""
        if late.key.newcomer is None or not late.is_in_step:
            return
        self._by_key.pop(late.key, None)
        key = late.key._replace(newcomer=None)
        audience = self._by_key.get(key)
        if audience is None:
            late.key = key
            self._by_key[key] = late
            return
        for outbox in late.members:
            self.move(outbox, audience)
        self.drop_if_empty(late)

    def drop_if_empty(self, audience: Audience) -> None:
        """Let go of an audience without members."""
        if not audience.members:
            self._by_key.pop(audience.key, None)
            self._with_wildcards.pop(audience, None)
            self._behind.pop(audience, None)
            for tap in list(audience.taps):
                self._streams.disconnect(audience, tap)

    def connect(self, stream: Stream) -> None:
        """Have the wildcards that match a new stream take it."""
        for audience in self.covering(stream.key):
            if stream.key not in audience.behind:
                audience.connect(self._streams.tap(stream, audience))

    def disconnect(self, stream: Stream) -> None:
        """Have nobody take a stream any more."""
        for tap in list(stream.taps.values()):
            for audience in _audiences_of(tap):
                self._streams.disconnect(audience, tap)

    def _create(self, key: AudienceKey, behind: Collection[StreamKey] = ()) -> Audience:
        audience = self._by_key[key] = Audience(key, behind)
        if audience.deliveries.has_wildcards:
            self._with_wildcards[audience] = None
        if behind:
            self._behind[audience] = None
        subscriptions = [subscription for subscription, _ in key.wanted]
        for stream in self._streams.covered(key.feed, subscriptions):
            if stream.key not in audience.behind:
                audience.connect(self._streams.tap(stream, audience))
        return audience


def _audiences_of(tap: AnyTap) -> list[Audience]:
    return [audience for group in tap.audiences.values() for audience in group]
