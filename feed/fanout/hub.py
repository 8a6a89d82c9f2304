"""The fan-out: which client gets which stream, and the frames that clients share.

Each tick is encoded once per form in use. At a flush, an audience joins the new ticks of its
streams into one frame, and each of its members gets one write.

The code is synchronous and uses no sockets or clocks.
"""

from __future__ import annotations

from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    KeysView,
    Sequence,
)

from feed.fanout.counters import Counters, Totals
from feed.fanout.encoded_ticks import EncodedTicks, WireFormat, encode_pieces, message_frame
from feed.fanout.gathering import PendingFlush
from feed.fanout.lags import Arrivals
from feed.fanout.outbox import Outbox
from feed.fanout.streams import LiveStream, LiveStreams
from feed.fanout.subscriber_group import (
    ConflationGroup,
    Conflator,
    GroupKey,
    LiveTap,
    SubscriberGroup,
    Wanted,
)
from feed.fanout.subscriber_groups import SubscriberGroups
from feed.fanout.writes import FlushWriter
from feed.transport.slices import Steps
from tickcast.wire import messages as protocol
from tickcast.wire.sequence import GapReason, SequenceGap
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import StreamKey, Tick
from tickcast.wire.times import Instant


class Hub:
    """All streams and audiences of one server.

    Attributes:
        arrivals: measures the delay of incoming ticks.
        writes: writes encoded ticks to clients.
    """

    def __init__(self, counters: Counters | None = None) -> None:
        self.counters = counters or Counters()
        self.arrivals = Arrivals(self.counters)
        self.writes = FlushWriter(self.counters)
        self._streams = LiveStreams()
        self._audiences = SubscriberGroups(self._streams)
        self._dirty: list[LiveTap] = []

    # -- streams, opened and closed by `feed.ingest.upstream`

    def open_stream(
        self,
        key: StreamKey,
        latest: Tick | None = None,
        published_us: int = 0,
        *,
        epoch: str = "",
        seq: int = 0,
    ) -> None:
        """Start carrying a stream whose last tick has the number `seq`.

        Audiences whose wildcards cover the stream receive it from now on.
        """
        self._audiences.connect(self._streams.open(key, epoch, seq, latest, published_us))

    def close_stream(self, key: StreamKey) -> None:
        """Stop carrying a stream; clients that hold it receive no further ticks."""
        stream = self._streams.close(key)
        if stream is not None:
            self._audiences.disconnect(stream)

    def is_open(self, key: StreamKey) -> bool:
        """Whether the stream is carried."""
        return key in self._streams

    def stream(self, key: StreamKey) -> LiveStream | None:
        """The stream, if it is carried."""
        return self._streams.get(key)

    def is_wanted(self, key: StreamKey) -> bool:
        """Whether some client holds the stream."""
        stream = self._streams.get(key)
        return stream is not None and (bool(stream.taps) or self._audiences.is_awaited(key))

    def is_named(self, key: StreamKey) -> bool:
        """Whether some client holds the stream by its name, not only by a wildcard.

        A client that is still catching up with the stream counts too, even if it holds it by a
        wildcard.
        """
        stream = self._streams.get(key)
        return stream is not None and (
            any(
                audience.deliveries.names(key)
                for tap in stream.taps.values()
                for audiences in tap.audiences.values()
                for audience in audiences
            )
            or self._audiences.is_awaited(key)
        )

    def covers(self, key: StreamKey) -> bool:
        """Whether some client's wildcard matches the stream, carried or not."""
        return any(True for _ in self._audiences.covering(key))

    def has_clients(self, feed: str) -> bool:
        """Whether some client holds a subscription in the feed."""
        return self._audiences.has_feed(feed)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many streams are carried, and how many audiences there are."""
        return len(self._streams), len(self._audiences)

    # -- clients

    def prepare(
        self,
        outbox: Outbox,
        feed: str,
        form: WireFormat,
        wanted: Wanted,
        behind: Collection[StreamKey] | None = None,
    ) -> Generator[None, None, SubscriberGroup | None]:
        """Prepare a client's new subscriptions in steps.

        Nothing changes for the client yet. Call `switch` or `discard` right after the last step.

        Args:
            behind: streams that the client must not receive until `catch_up` is called for them.
                None if there are no such streams and none can be added.
        """
        if not wanted:
            return None
        key = GroupKey(feed, form, wanted)
        return (yield from self._audiences.prepare(key, outbox, behind))

    def switch(self, outbox: Outbox, new: SubscriberGroup | None, now: Instant) -> None:
        """Replace a client's subscriptions with those that were prepared.

        Ticks published before this call go to the previous subscribers. Ticks that are being
        conflated for the client are sent at once if the conflation of their stream changes.
        """
        self.flush(now)
        old = self._audiences.of(outbox)
        if old is not None and old is not new:
            self._settle(outbox, old, new, now)
        self._audiences.move(outbox, new)
        if new is not None:
            outbox.follow(new.policy_of, new.form)
        elif old is not None:
            outbox.follow(_nothing, old.form)

    def served_interval(self, asked_ms: int) -> int:
        """The conflation interval in ms that a client gets for the one it asks for."""
        return self._streams.served_interval(asked_ms)

    def discard(self, prepared: SubscriberGroup | None) -> None:
        """Discard prepared subscriptions that will not be used."""
        if prepared is not None:
            self._audiences.discard(prepared)

    def postpone(self, prepared: SubscriberGroup, stream: LiveStream) -> None:
        """Withhold a stream from a prepared audience's client until `catch_up` is called."""
        self._audiences.postpone(prepared, stream)

    def defer_by(self, defer: Callable[[Steps], None]) -> None:
        """Pass work that nothing waits for to `defer`, instead of doing it at once."""
        self._audiences.defer = defer

    def catch_up(self, outbox: Outbox, key: StreamKey, now: Instant) -> None:
        """Send a stream live to a client that has received all of its past."""
        audience = self._audiences.of(outbox)
        if audience is not None and key in audience.behind:
            if self._dirty:
                self.flush(now)
            self._audiences.catch_up(audience, key)

    def remove(self, outbox: Outbox) -> None:
        """Forget a client."""
        self._audiences.move(outbox, None)

    def totals(self, outbox: Outbox) -> Totals:
        """Counts of a client's ticks so far: sent, merged and skipped."""
        totals = Totals()
        totals.add(outbox.totals)
        audience = self._audiences.of(outbox)
        if audience is not None:
            totals.add(audience.totals)
        return totals

    def newly_covered(
        self,
        feed: str,
        subscriptions: Iterable[Subscription],
        besides: Iterable[Subscription] = (),
    ) -> Iterator[LiveStream]:
        """Yield carried streams that `subscriptions` cover and `besides` do not."""
        known = Coverage(besides)
        for stream in self._streams.covered(feed, subscriptions):
            if not known.covers(stream.key):
                yield stream

    @property
    def opened(self) -> int:
        """Number of streams opened so far."""
        return self._streams.opened

    def opened_since(self, number: int) -> list[LiveStream]:
        """The streams opened after the first `number` ones, latest first."""
        return self._streams.opened_since(number)

    def keys(self) -> KeysView[StreamKey]:
        """Keys of the carried streams."""
        return self._streams.keys()

    def send(self, outbox: Outbox, pieces: Sequence[EncodedTicks]) -> None:
        """Send ticks of streams that a client holds to this client only."""
        audience = self._audiences.of(outbox)
        if audience is not None and pieces:
            self.writes.to_member(outbox, pieces, audience)

    def form_of(self, outbox: Outbox) -> WireFormat | None:
        """The form in which a client receives ticks; None if it holds no subscription."""
        audience = self._audiences.of(outbox)
        return audience.form if audience else None

    def drain(self, outbox: Outbox, now: Instant) -> None:
        """Resume sending to a client that reads again."""
        released = outbox.drain(now.wall_us)
        self.counters.ticks_out += released.sent
        self.counters.slow_merged += released.merged
        self.counters.slow_skipped += released.skipped

    # -- the flow

    def publish(
        self, key: StreamKey, ticks: Sequence[Tick], published_us: int = 0, epoch: str = ""
    ) -> bool:
        """Take the next ticks of a stream; return whether a flush is needed."""
        stream = self._streams.get(key)
        if stream is None or not ticks:
            return False
        self.counters.ticks_in += len(ticks)
        stream.append(ticks, published_us, epoch)
        if not stream.taps:
            return False
        due = False
        for tap in stream.taps.values():
            is_first = tap.add(ticks, published_us)
            due = due or is_first
            if isinstance(tap, LiveTap):
                self.arrivals.add((published_us, len(ticks)))
                if is_first:
                    self._dirty.append(tap)
        return due

    def announce(self, key: StreamKey, gap: SequenceGap, now: Instant, epoch: str) -> None:
        """Send a gap notice to the clients that hold a stream, after the ticks before the gap.

        Args:
            epoch: the stream's epoch from now on.
        """
        stream = self._streams.get(key)
        if stream is None:
            return
        self.flush(now)
        for tap in list(stream.taps.values()):
            if isinstance(tap, Conflator):
                # Ticks from both sides of a gap can't be merged into one.
                tap.stop_waiting()
                gathering = PendingFlush(now)
                gathering.add_conflated(tap)
                self._send_gathered(gathering)
            for form, audiences in tap.audiences.items():
                frame = message_frame(protocol.gap(key, gap), form.encoding)
                for audience in audiences:
                    for outbox in audience.members:
                        outbox.send_gap(key, gap, frame)
        if epoch != stream.epoch:
            stream.enter(epoch)
        if gap.reason is not GapReason.EPOCH:
            stream.skip_to(gap.last_seq or stream.seq)
        self.counters.add_gap(gap.reason.value, gap.ticks)

    def flush(self, now: Instant) -> None:
        """Send everything published since the last flush, and conflated ticks that are due."""
        dirty, self._dirty = self._dirty, []
        groups = self._streams.due_groups(now.monotonic_s)
        if len(dirty) == 1 and not groups:
            # The usual case at low rates: there is only one stream, so nothing has to be gathered.
            chunk = dirty[0].pop_pending()
            self.writes.to_audiences(
                (encode_pieces(chunk, form, now.wall_us), form, audiences)
                for form, audiences in dirty[0].audiences.items()
            )
        elif dirty or groups:
            self._flush_many(dirty, groups, now)
        self.arrivals.flush(now)

    def _flush_many(
        self, dirty: Sequence[LiveTap], groups: Sequence[ConflationGroup], now: Instant
    ) -> None:
        gathering = PendingFlush(now)
        for tap in dirty:
            gathering.add(tap, tap.pop_pending())
        for group in groups:
            for conflated in group.begin_interval(now.monotonic_s):
                gathering.add_conflated(conflated)
        self._send_gathered(gathering)

    def _send_gathered(self, gathering: PendingFlush) -> None:
        self.writes.to_audiences(gathering.letters())
        for audience in gathering.settled:
            self._audiences.unite(audience)

    def due_s(self) -> float | None:
        """When conflated ticks next need a flush, on the steady clock."""
        return self._streams.due_s()

    def _settle(
        self, outbox: Outbox, old: SubscriberGroup, new: SubscriberGroup | None, now: Instant
    ) -> None:
        """Send a client the ticks being conflated on taps that it leaves."""
        chunks = [
            chunk
            for tap in self._streams.waiting(old)
            if (new is None or tap not in new.taps)
            and (chunk := tap.merged(old.known.get(tap, 0))) is not None
        ]
        if chunks:
            pieces = [p for chunk in chunks for p in encode_pieces(chunk, old.form, now.wall_us)]
            self.writes.to_member(outbox, pieces, old)


def _nothing(stream: StreamKey) -> None:
    """The policy of a client that holds no stream."""
