"""The streams that a server carries, the group of each client, and what connects them.

Connecting a group to tens of thousands of streams takes time. It is therefore connected in steps
before a client joins it, and disconnected in steps after its last client has left. Joining and
leaving are immediate, so a client is in exactly one complete group at any time.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from typing import Final

from feed.fanout.outbox import Outbox
from feed.fanout.streams import (
    ConflationTimer,
    Conflator,
    GroupKey,
    LiveStream,
    Output,
    SubscriberGroup,
    TickBuffer,
)
from feed.transport.loop_time import Steps, batches, run_all
from tickcast.wire.actions import CONFLATE_MAX_MS
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import StreamKey, Tick

# The number of different conflation intervals that are served exactly. Each needs memory for every
# stream that uses it: 1 to 6 MiB for 10,000 streams. Others are rounded up to one of a few.
INTERVALS_MAX: Final = 16
_COARSE_MS: Final = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000)
# Sorts after every character that a symbol may contain.
_AFTER_SYMBOLS: Final = "\x7f"


class LiveStreams:
    """The streams that a server carries, by key."""

    def __init__(self) -> None:
        # The number of streams opened so far.
        self.opened = 0
        self.by_key: dict[StreamKey, LiveStream] = {}
        # The sorted symbols of each feed and channel, so that a prefix selects a range.
        self._symbols: dict[tuple[str, str], list[str]] = {}

    def add_stream(
        self, key: StreamKey, epoch: str, seq: int, latest: Tick | None, published_us: int
    ) -> LiveStream:
        """Start carrying a stream."""
        if self.by_key.pop(key, None) is None:
            insort(self._symbols.setdefault((key.feed, key.channel), []), key.symbol)
        self.opened += 1
        stream = LiveStream(key, epoch, seq, latest, published_us, self.opened)
        self.by_key[key] = stream
        return stream

    def remove_stream(self, key: StreamKey) -> LiveStream | None:
        """Stop carrying a stream; return it if it was carried."""
        stream = self.by_key.pop(key, None)
        if stream is not None:
            symbols = self._symbols[key.feed, key.channel]
            del symbols[bisect_left(symbols, key.symbol)]
            if not symbols:
                del self._symbols[key.feed, key.channel]
        return stream

    def covered(
        self, feed: str, subscriptions: Iterable[Subscription], held: Iterable[Subscription] = ()
    ) -> Iterator[LiveStream]:
        """Yield each carried stream that `subscriptions` cover and `held` do not, once.

        Streams may be opened and closed during the iteration. Those opened meanwhile may be left
        out; see `opened_since`.
        """
        coverage, known = Coverage(subscriptions), Coverage(held)
        for key in self._covered_keys(feed, coverage):
            stream = self.by_key.get(key)
            if stream is not None and not known.covers(key):
                yield stream

    def _covered_keys(self, feed: str, coverage: Coverage) -> Iterator[StreamKey]:
        for channel, symbol in coverage.named:
            key = StreamKey(feed, channel, symbol)
            if not coverage.covers_by_wildcard(key):
                yield key
        for channel, prefix in coverage.wildcard_prefixes():
            symbols = self._symbols.get((feed, channel), [])
            start = bisect_left(symbols, prefix)
            for symbol in symbols[start : bisect_left(symbols, prefix + _AFTER_SYMBOLS, start)]:
                yield StreamKey(feed, channel, symbol)

    def opened_since(self, number: int) -> list[LiveStream]:
        """The streams opened after the stream with this number, latest first."""
        found: list[LiveStream] = []
        for stream in reversed(self.by_key.values()):
            if stream.number <= number:
                break
            found.append(stream)
        return found


class SubscriberGroups:
    """The groups by key, the group of each client, and the outputs that groups are connected to."""

    def __init__(self, streams: LiveStreams) -> None:
        # Called with steps that nothing waits for: they disconnect groups without clients.
        self.defer: Callable[[Steps], None] = run_all
        self._streams = streams
        self._by_key: dict[GroupKey, SubscriberGroup] = {}
        self._by_client: dict[Outbox, SubscriberGroup] = {}
        # The groups by their wildcards. Clients may make up many names that match none of them, so
        # a lookup must not take longer with more groups.
        self._by_wildcard: dict[StreamKey, dict[SubscriberGroup, None]] = {}
        # The groups that still have to be connected, and the streams that remain for each.
        self._connecting: dict[SubscriberGroup, Iterator[list[LiveStream]]] = {}
        # The groups without clients that still have to be disconnected.
        self._unused: deque[SubscriberGroup] = deque()
        # The groups of newcomers that still receive some streams from history.
        self._behind: dict[SubscriberGroup, None] = {}
        # The timers in use, by conflation interval in ms.
        self.timers: dict[int, ConflationTimer] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def group_of(self, outbox: Outbox) -> SubscriberGroup | None:
        """The group of a client; None if it has none."""
        return self._by_client.get(outbox)

    def has_feed(self, feed: str) -> bool:
        """Whether some client holds a subscription in the feed."""
        return any(key.feed == feed for key in self._by_key)

    def covers(self, stream: StreamKey) -> bool:
        """Whether some client's wildcard matches the stream, carried or not."""
        return bool(self._covering(stream))

    def is_awaited(self, stream: StreamKey) -> bool:
        """Whether a client that subscribes to the stream still receives it from history."""
        return any(stream in group.behind for group in self._behind)

    # -- finding and creating the group of a client

    def prepare(
        self, key: GroupKey, outbox: Outbox, behind: Collection[StreamKey] | None = None
    ) -> Generator[None, None, SubscriberGroup]:
        """Find or create the group for a client, in steps. Call `move` after the last step.

        Args:
            behind: subscribed streams that the client receives from history for now. Unless it is
                None, the client gets a separate group, even if there are no such streams.
        """
        own_key = key._replace(newcomer=outbox)
        if behind is not None:
            return (yield from self._complete(own_key, behind))
        group = yield from self._complete(key)
        if self._excluded_ticks(outbox, group):
            if not group.members and not group.preparing:
                # It was created for this client, so make it the client's separate group.
                self._by_key.pop(key)
                group.key = own_key
                self._by_key[own_key] = group
            else:
                self.discard(group)
                group = yield from self._complete(own_key)
        return group

    def _complete(
        self, key: GroupKey, behind: Collection[StreamKey] = ()
    ) -> Generator[None, None, SubscriberGroup]:
        """Find or create the group of a key, and connect it to all streams that it covers."""
        while True:
            group = self._by_key.get(key) or self._create(key, behind)
            group.preparing += 1
            try:
                while self._connect_next(group):
                    yield
            finally:
                group.preparing -= 1
                if self._by_key.get(key) is not group or self._connecting.get(group):
                    self.discard(group)
            if self._by_key.get(key) is group:
                return group

    def _create(self, key: GroupKey, behind: Collection[StreamKey]) -> SubscriberGroup:
        group = self._by_key[key] = SubscriberGroup(key, behind)
        # From now on, `connect_stream` connects it to every new stream that its wildcards match.
        for wildcard in _wildcards_of(group):
            self._by_wildcard.setdefault(wildcard, {})[group] = None
        if behind:
            self._behind[group] = None
        subscriptions = [subscription for subscription, _ in key.deliveries]
        self._connecting[group] = batches(self._streams.covered(key.feed, subscriptions))
        return group

    def _connect_next(self, group: SubscriberGroup) -> bool:
        """Connect a group to the next batch of its streams; return False if none were left."""
        streams = next(self._connecting.get(group, iter(())), None)
        if streams is None:
            self._connecting.pop(group, None)
            return False
        for stream in streams:
            if stream.key not in group.behind:
                group.connect(self._output_for(stream, group))
        return True

    def _excluded_ticks(self, outbox: Outbox, group: SubscriberGroup) -> dict[Conflator, int]:
        """How many of the ticks in each conflator must be left out for a client."""
        old = self._by_client.get(outbox)
        if old is group:
            return group.excluded
        excluded: dict[Conflator, int] = {}
        for conflator in self.pending_conflators(group):
            if old is not None and conflator in old.outputs:
                count = old.excluded.get(conflator, 0)
            else:
                count = conflator.count
            if count:
                excluded[conflator] = count
        return excluded

    # -- moving clients between groups

    def move(self, outbox: Outbox, new: SubscriberGroup | None) -> None:
        """Move a client to a group that `prepare` has returned. None removes the client."""
        if new is not None and new.key.newcomer is not None:
            new.excluded = self._excluded_ticks(outbox, new)
        old = self._by_client.pop(outbox, None)
        if new is not None:
            self._by_client[outbox] = new
        if old is new:
            return
        if old is not None:
            old.leave(outbox)
            self.discard(old)
        if new is not None:
            new.join(outbox)
            self.merge_newcomer(new)

    def withhold(self, group: SubscriberGroup, stream: LiveStream) -> None:
        """Withhold a stream from a prepared group's client until `resume_live` is called."""
        group.behind.add(stream.key)
        self._behind[group] = None
        for output in list(stream.outputs.values()):
            if output in group.outputs:
                self._disconnect(group, output)

    def resume_live(self, group: SubscriberGroup, key: StreamKey) -> None:
        """Connect a newcomer to a stream that it has caught up with."""
        group.behind.discard(key)
        stream = self._streams.by_key.get(key)
        if stream is not None:
            output = self._output_for(stream, group)
            group.connect(output)
            if isinstance(output, Conflator) and output.count:
                group.excluded[output] = output.count
        if not group.behind:
            self._behind.pop(group, None)
        self.merge_newcomer(group)

    def merge_newcomer(self, group: SubscriberGroup) -> None:
        """Merge a newcomer's group into the shared one if the newcomer is in step."""
        if group.key.newcomer is None or not group.is_in_step:
            return
        self._by_key.pop(group.key, None)
        key = group.key._replace(newcomer=None)
        shared = self._by_key.get(key)
        if shared is None or shared in self._connecting:
            group.key = key
            self._by_key[key] = group
            return
        for outbox in group.members:
            self.move(outbox, shared)
        self.discard(group)

    def discard(self, group: SubscriberGroup) -> None:
        """Remove a group, unless it has clients. It is disconnected from its streams later."""
        if group.members or group.preparing:
            return
        if self._by_key.get(group.key) is group:
            del self._by_key[group.key]
        for wildcard in _wildcards_of(group):
            if groups := self._by_wildcard.get(wildcard):
                groups.pop(group, None)
                if not groups:
                    del self._by_wildcard[wildcard]
        self._behind.pop(group, None)
        self._connecting.pop(group, None)
        if group.outputs:
            self._unused.append(group)
            if len(self._unused) == 1:
                self.defer(self._disconnect_unused())

    def _disconnect_unused(self) -> Steps:
        while self._unused:
            group = self._unused.popleft()
            for outputs in batches(list(group.outputs)):
                for output in outputs:
                    # The stream may have been closed meanwhile.
                    if output in group.outputs:
                        self._disconnect(group, output)
                yield

    # -- streams and their outputs

    def _covering(self, stream: StreamKey) -> dict[SubscriberGroup, None]:
        """The groups with a wildcard that matches the stream, whether or not it is carried."""
        feed, channel, symbol = stream
        found: dict[SubscriberGroup, None] = {}
        if self._by_wildcard:
            for length in range(len(symbol) + 1):
                found.update(self._by_wildcard.get(StreamKey(feed, channel, symbol[:length]), {}))
        return found

    def connect_stream(self, stream: LiveStream) -> None:
        """Connect a new stream to the groups whose wildcards match it."""
        for group in self._covering(stream.key):
            if stream.key not in group.behind:
                group.connect(self._output_for(stream, group))

    def disconnect_stream(self, stream: LiveStream) -> None:
        """Disconnect all groups from a stream."""
        for output in list(stream.outputs.values()):
            for group in [each for groups in output.groups.values() for each in groups]:
                self._disconnect(group, output)

    def _output_for(self, stream: LiveStream, group: SubscriberGroup) -> Output:
        """Return the stream's output with the group's conflation, creating it if needed."""
        delivery = group.deliveries.match(stream.key)
        interval_ms = delivery.conflate_ms if delivery else 0
        output = stream.outputs.get(interval_ms)
        if output is None:
            if interval_ms:
                timer = self.timers.setdefault(interval_ms, ConflationTimer(interval_ms))
                timer.conflators += 1
                output = Conflator(stream.key, timer)
            else:
                output = TickBuffer(stream.key)
            stream.outputs[interval_ms] = output
        return output

    def _disconnect(self, group: SubscriberGroup, output: Output) -> None:
        """Disconnect a group from an output, and remove the output if it has no other group."""
        group.disconnect(output)
        if isinstance(output, Conflator):
            group.excluded.pop(output, None)
        if output.groups:
            return
        stream = self._streams.by_key.get(output.key)
        if stream is not None and stream.outputs.get(output.interval_ms) is output:
            del stream.outputs[output.interval_ms]
        if isinstance(output, Conflator):
            timer = output.timer
            timer.conflators -= 1
            timer.pending.pop(output, None)
            if not timer.conflators:
                self.timers.pop(timer.interval_ms, None)

    # -- conflation

    def served_interval(self, requested_ms: int) -> int:
        """The conflation interval in ms that a client gets for the one it requests."""
        is_known = not requested_ms or requested_ms in self.timers
        if is_known or len(self.timers) < INTERVALS_MAX:
            return requested_ms
        return next((each for each in _COARSE_MS if each >= requested_ms), CONFLATE_MAX_MS)

    def pending_conflators(self, group: SubscriberGroup) -> Iterator[Conflator]:
        """The conflators of a group that hold ticks until the end of their interval."""
        for interval_ms in group.intervals:
            timer = self.timers.get(interval_ms)
            if timer is not None:
                yield from [each for each in timer.pending if each in group.outputs]


def _wildcards_of(group: SubscriberGroup) -> Iterator[StreamKey]:
    """The wildcards of a group as keys, with the prefix in place of the symbol."""
    if group.deliveries.has_wildcards:
        for (channel, pattern), _ in group.key.deliveries:
            if pattern.endswith("*"):
                yield StreamKey(group.key.feed, channel, pattern[:-1])
