"""All audiences of one server: finding, creating, joining and leaving them.

Connecting an audience to tens of thousands of streams takes time. It is therefore connected in
steps before a client joins it, and disconnected in steps after its last client has left. Joining
and leaving are immediate, so a client is in exactly one complete audience at any time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator
from typing import TypeVar

from feed.fanout.outbox import Outbox
from feed.fanout.streams import LiveStream, LiveStreams
from feed.fanout.subscriber_group import AnyTap, Conflator, GroupKey, SubscriberGroup
from feed.transport.slices import Steps, batches, run_all
from tickcast.wire.ticks import StreamKey

Item = TypeVar("Item")


class SubscriberGroups:
    """The audiences by key, and the audience of each client.

    Attributes:
        defer: called with background steps that disconnect audiences without clients.
    """

    def __init__(self, streams: LiveStreams) -> None:
        self.defer: Callable[[Steps], None] = run_all
        self._streams = streams
        self._pending: dict[SubscriberGroup, Iterator[list[LiveStream]]] = {}
        self._unused: deque[SubscriberGroup] = deque()
        self._is_disconnecting = False
        self._by_key: dict[GroupKey, SubscriberGroup] = {}
        self._with_wildcards: dict[SubscriberGroup, None] = {}
        self._wildcards = _Wildcards()
        self._behind: dict[SubscriberGroup, None] = {}
        self._of: dict[Outbox, SubscriberGroup] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def of(self, outbox: Outbox) -> SubscriberGroup | None:
        """The audience of a client; None if it has none."""
        return self._of.get(outbox)

    def has_feed(self, feed: str) -> bool:
        """Whether the feed has any audience."""
        return any(key.feed == feed for key in self._by_key)

    def covering(self, stream: StreamKey) -> Iterator[SubscriberGroup]:
        """The audiences with a wildcard that matches the stream, whether or not it is carried."""
        if not self._wildcards.cover(stream):
            return iter(())
        return (each for each in self._with_wildcards if each.covers(stream))

    def is_awaited(self, stream: StreamKey) -> bool:
        """Whether a client that subscribes to the stream still has to catch up with it."""
        return any(stream in audience.behind for audience in self._behind)

    def prepare(
        self, key: GroupKey, outbox: Outbox, behind: Collection[StreamKey] | None = None
    ) -> Generator[None, None, SubscriberGroup]:
        """Find or create the audience for a client, in steps. Call `move` after the last step.

        Args:
            behind: subscribed streams that the client receives from history for now. Unless it is
                None, the client gets a separate audience, even if there are no such streams.
        """
        own_key = key._replace(newcomer=outbox)
        if behind is not None:
            return (yield from self._complete(own_key, behind))
        audience = yield from self._complete(key)
        if self._known(outbox, audience):
            if not audience.members and not audience.users:
                # It was created for this client, so make it the client's separate audience.
                self._by_key.pop(key)
                audience.key = own_key
                self._by_key[own_key] = audience
            else:
                self._drop_if_empty(audience)
                audience = yield from self._complete(own_key)
        return audience

    def _complete(
        self, key: GroupKey, behind: Collection[StreamKey] = ()
    ) -> Generator[None, None, SubscriberGroup]:
        """Find or create the audience of a key, and connect it to all streams that it covers."""
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

    def _connect_some(self, audience: SubscriberGroup) -> bool:
        """Connect an audience to the next batch of its streams. Returns False if none were left."""
        streams = next(self._pending.get(audience, iter(())), None)
        if streams is None:
            self._pending.pop(audience, None)
            return False
        for stream in streams:
            if stream.key not in audience.behind:
                audience.connect(self._streams.tap(stream, audience))
        return True

    def _known(self, outbox: Outbox, audience: SubscriberGroup) -> dict[Conflator, int]:
        """How many of the ticks that each tap is conflating must be left out for a client."""
        old = self._of.get(outbox)
        if old is audience:
            return audience.known
        known: dict[Conflator, int] = {}
        for tap in self._streams.waiting(audience):
            count = tap.count if old is None or tap not in old.taps else old.known.get(tap, 0)
            if count:
                known[tap] = count
        return known

    def move(self, outbox: Outbox, new: SubscriberGroup | None) -> None:
        """Move a client to an audience that `prepare` has returned. None removes the client."""
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

    def catch_up(self, audience: SubscriberGroup, stream: StreamKey) -> None:
        """Connect a newcomer to a stream that it has caught up with."""
        audience.behind.discard(stream)
        carried = self._streams.get(stream)
        if carried is not None:
            tap = self._streams.tap(carried, audience)
            audience.connect(tap)
            if isinstance(tap, Conflator) and tap.count:
                audience.known[tap] = tap.count
        if not audience.behind:
            self._behind.pop(audience, None)
        self.unite(audience)

    def unite(self, late: SubscriberGroup) -> None:
        """Merge a newcomer's audience into the shared one if the newcomer is in step."""
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

    def discard(self, audience: SubscriberGroup) -> None:
        """Discard a prepared audience, unless it has clients."""
        self._drop_if_empty(audience)

    def postpone(self, audience: SubscriberGroup, stream: LiveStream) -> None:
        """Disconnect a newcomer from a stream that it receives from history for now."""
        audience.behind.add(stream.key)
        self._behind[audience] = None
        for tap in list(stream.taps.values()):
            if tap in audience.taps:
                self._streams.disconnect(audience, tap)

    def _drop_if_empty(self, audience: SubscriberGroup) -> None:
        """Remove an audience without members. It is disconnected from its streams later."""
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
                        # The stream may have been closed meanwhile.
                        if tap in audience.taps:
                            self._streams.disconnect(audience, tap)
                    yield
        finally:
            self._is_disconnecting = False

    def connect(self, stream: LiveStream) -> None:
        """Connect a new stream to the audiences whose wildcards match it."""
        for audience in self.covering(stream.key):
            if stream.key not in audience.behind:
                audience.connect(self._streams.tap(stream, audience))

    def disconnect(self, stream: LiveStream) -> None:
        """Disconnect all audiences from a stream."""
        for tap in list(stream.taps.values()):
            for audience in _audiences_of(tap):
                self._streams.disconnect(audience, tap)

    def _create(self, key: GroupKey, behind: Collection[StreamKey] = ()) -> SubscriberGroup:
        audience = self._by_key[key] = SubscriberGroup(key, behind)
        if audience.deliveries.has_wildcards:
            # From now on, `connect` connects it to every matching stream that is opened.
            self._with_wildcards[audience] = None
            self._wildcards.count(key, 1)
        if behind:
            self._behind[audience] = None
        subscriptions = [subscription for subscription, _ in key.wanted]
        self._pending[audience] = batches(self._streams.covered(key.feed, subscriptions))
        return audience


class _Wildcards:
    """An index of the wildcards of all audiences.

    It quickly rejects names that match none, such as most names that clients make up.
    """

    def __init__(self) -> None:
        self._prefixes: dict[tuple[str, str], Counter[str]] = {}
        self._lengths: dict[tuple[str, str], Counter[int]] = {}

    def count(self, key: GroupKey, times: int) -> None:
        """Add the wildcards of an audience; with -1, remove them."""
        for (channel, pattern), _ in key.wanted:
            if not pattern.endswith("*"):
                continue
            place, prefix = (key.feed, channel), pattern[:-1]
            _add(self._prefixes.setdefault(place, Counter()), prefix, times)
            _add(self._lengths.setdefault(place, Counter()), len(prefix), times)

    def cover(self, stream: StreamKey) -> bool:
        """Whether any wildcard matches a stream."""
        place = stream.feed, stream.channel
        prefixes, symbol = self._prefixes.get(place), stream.symbol
        if not prefixes:
            return False
        return any(symbol[:length] in prefixes for length in self._lengths[place])


def _add(counts: Counter[Item], item: Item, times: int) -> None:
    counts[item] += times
    if not counts[item]:
        del counts[item]


def _audiences_of(tap: AnyTap) -> list[SubscriberGroup]:
    return [audience for group in tap.audiences.values() for audience in group]
