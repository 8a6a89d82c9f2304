"""All audiences of one server: found, made, joined and left.

An audience may be connected to tens of thousands of streams, and that takes time. So it is
connected in steps before a client joins it, and disconnected in steps after its last client has
left. Joining and leaving take no time: a client is in one complete audience at any moment.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator
from typing import TypeVar

from feed.audience import AnyTap, Audience, AudienceKey, ConflatedTap
from feed.outbox import Outbox
from feed.slices import Steps, batches, run_all
from feed.streams import Stream, Streams
from feed.ticks import StreamKey

Item = TypeVar("Item")


class Audiences:
    """The audiences by their keys, and which client is in which.

    Attributes:
        defer: called with steps that nothing waits for: they disconnect audiences without clients.
    """

    def __init__(self, streams: Streams) -> None:
        self.defer: Callable[[Steps], None] = run_all
        self._streams = streams
        self._pending: dict[Audience, Iterator[list[Stream]]] = {}
        self._unused: deque[Audience] = deque()
        self._is_disconnecting = False
        self._by_key: dict[AudienceKey, Audience] = {}
        self._with_wildcards: dict[Audience, None] = {}
        self._wildcards = _Wildcards()
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
        if not self._wildcards.cover(stream):
            return iter(())
        return (each for each in self._with_wildcards if each.covers(stream))

    def is_awaited(self, stream: StreamKey) -> bool:
        """Whether somebody who holds the stream has still to catch up with it."""
        return any(stream in audience.behind for audience in self._behind)

    def prepare(
        self, key: AudienceKey, outbox: Outbox, behind: Collection[StreamKey] | None = None
    ) -> Generator[None, None, Audience]:
        """Find or make the audience for a client, in steps; `move` is to follow the last one.

        Args:
            behind: streams that it is to hold, but gets from elsewhere for now. If it is not None,
                the client gets a separate audience, even where there is no such stream.
        """
        own_key = key._replace(newcomer=outbox)
        if behind is not None:
            return (yield from self._complete(own_key, behind))
        audience = yield from self._complete(key)
        if self._known(outbox, audience):
            if not audience.members and not audience.users:
                # It was made for this client, which can as well have it alone.
                self._by_key.pop(key)
                audience.key = own_key
                self._by_key[own_key] = audience
            else:
                self._drop_if_empty(audience)
                audience = yield from self._complete(own_key)
        return audience

    def _complete(
        self, key: AudienceKey, behind: Collection[StreamKey] = ()
    ) -> Generator[None, None, Audience]:
        """Connect the audience of a key to all streams that it covers."""
        while True:
            audience = self._by_key.get(key) or self._create(key, behind)
            audience.users += 1
            try:
                while self._connect_some(audience):
                    yield
            finally:
                audience.users -= 1
                if self._by_key.get(key) is not audience or self._pending.get(audience):
                    self._drop_if_empty(audience)
            if self._by_key.get(key) is audience:
                return audience

    def _connect_some(self, audience: Audience) -> bool:
        """Connect an audience to more of its streams. True if that may not be all."""
        streams = next(self._pending.get(audience, iter(())), None)
        if streams is None:
            self._pending.pop(audience, None)
            return False
        for stream in streams:
            if stream.key not in audience.behind:
                audience.connect(self._streams.tap(stream, audience))
        return True

    def _known(self, outbox: Outbox, audience: Audience) -> dict[ConflatedTap, int]:
        """How many of the ticks that are being conflated for an audience are not for a client."""
        old = self._of.get(outbox)
        if old is audience:
            return audience.known
        known: dict[ConflatedTap, int] = {}
        for tap in self._streams.waiting(audience):
            count = tap.count if old is None or tap not in old.taps else old.known.get(tap, 0)
            if count:
                known[tap] = count
        return known

    def move(self, outbox: Outbox, new: Audience | None) -> None:
        """Put a client into another audience, which `prepare` has returned, or into none."""
        if new is not None and new.key.newcomer is not None:
            new.known = self._known(outbox, new)
        old = self._of.pop(outbox, None)
        if new is not None:
            self._of[outbox] = new
        if old is new:
            return
        if old is not None:
            old.leave(outbox)
            self._drop_if_empty(old)
        if new is not None:
            new.join(outbox)
            self.unite(new)

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
        if audience is None or audience in self._pending:
            late.key = key
            self._by_key[key] = late
            return
        for outbox in late.members:
            self.move(outbox, audience)
        self._drop_if_empty(late)

    def discard(self, audience: Audience) -> None:
        """Forget an audience that was prepared, unless it has other clients."""
        self._drop_if_empty(audience)

    def postpone(self, audience: Audience, stream: Stream) -> None:
        """Have a newcomer get a stream from elsewhere for now."""
        audience.behind.add(stream.key)
        self._behind[audience] = None
        for tap in list(stream.taps.values()):
            if tap in audience.taps:
                self._streams.disconnect(audience, tap)

    def _drop_if_empty(self, audience: Audience) -> None:
        """Forget an audience without members; it is disconnected from its streams later."""
        if audience.members or audience.users:
            return
        if self._by_key.get(audience.key) is audience:
            del self._by_key[audience.key]
        if audience in self._with_wildcards:
            del self._with_wildcards[audience]
            self._wildcards.count(audience.key, -1)
        self._behind.pop(audience, None)
        self._pending.pop(audience, None)
        if audience.taps:
            self._unused.append(audience)
            if not self._is_disconnecting:
                self._is_disconnecting = True
                self.defer(self._disconnect_unused())

    def _disconnect_unused(self) -> Steps:
        try:
            while self._unused:
                audience = self._unused.popleft()
                for taps in batches(list(audience.taps)):
                    for tap in taps:
                        # Unless its stream has been closed meanwhile.
                        if tap in audience.taps:
                            self._streams.disconnect(audience, tap)
                    yield
        finally:
            self._is_disconnecting = False

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
            # From now on it is connected to every stream that is opened.
            self._with_wildcards[audience] = None
            self._wildcards.count(key, 1)
        if behind:
            self._behind[audience] = None
        subscriptions = [subscription for subscription, _ in key.wanted]
        self._pending[audience] = batches(self._streams.covered(key.feed, subscriptions))
        return audience


class _Wildcards:
    """The wildcards of all audiences: most names that clients make up match none of them."""

    def __init__(self) -> None:
        self._prefixes: dict[tuple[str, str], Counter[str]] = {}
        self._lengths: dict[tuple[str, str], Counter[int]] = {}

    def count(self, key: AudienceKey, times: int) -> None:
        """Add the wildcards of an audience, or take them off again with -1."""
        for (channel, pattern), _ in key.wanted:
            if not pattern.endswith("*"):
                continue
            place, prefix = (key.feed, channel), pattern[:-1]
            _add(self._prefixes.setdefault(place, Counter()), prefix, times)
            _add(self._lengths.setdefault(place, Counter()), len(prefix), times)

    def cover(self, stream: StreamKey) -> bool:
        """Whether one of them matches a stream."""
        place = stream.feed, stream.channel
        prefixes, symbol = self._prefixes.get(place), stream.symbol
        if not prefixes:
            return False
        return any(symbol[:length] in prefixes for length in self._lengths[place])


def _add(counts: Counter[Item], item: Item, times: int) -> None:
    counts[item] += times
    if not counts[item]:
        del counts[item]


def _audiences_of(tap: AnyTap) -> list[Audience]:
    return [audience for group in tap.audiences.values() for audience in group]
