"""Streams and the groups of clients that receive them: the objects that a tick passes.

A stream has an output for each conflation interval in use, and an output has the groups that it
serves. A group has members that all receive the same bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from msgspec.structs import replace

from feed.fanout.counters import Totals
from feed.fanout.encoded_ticks import EncodedTicks, TickBatch, WireFormat
from feed.fanout.outbox import Outbox
from tickcast.wire.actions import DeliveryOptions, SlowPolicy
from tickcast.wire.subscriptions import PatternMap, Subscription
from tickcast.wire.ticks import StreamKey, Tick

# Live ticks of a stream that are kept for clients that are reading its history, and for how long.
# Some client is always reading, but each needs only a moment's ticks.
TAIL_TICKS_MAX: Final = 2_000
TAIL_US: Final = 5_000_000


# -- streams


class RecentTicks:
    """The last live ticks of a stream, which history that was just read does not include yet.

    Without them, a client catching up with a busy stream would never finish: new ticks would
    arrive during each read.
    """

    __slots__ = ("_batches", "_count", "holders")

    def __init__(self) -> None:
        self._batches: deque[tuple[Sequence[Tick], int]] = deque()
        self._count = 0
        # The number of clients that need them.
        self.holders = 0

    def append(self, ticks: Sequence[Tick], published_us: int) -> None:
        """Add ticks; drop the oldest beyond the limits."""
        self._batches.append((ticks, published_us))
        self._count += len(ticks)
        while len(self._batches) > 1 and (
            self._count > TAIL_TICKS_MAX or published_us - self._batches[0][1] > TAIL_US
        ):
            self._count -= len(self._batches.popleft()[0])

    def clear(self) -> None:
        """Drop all ticks, because the next ones will not be contiguous with them."""
        self._batches.clear()
        self._count = 0

    @property
    def first_seq(self) -> int | None:
        """The number of the oldest tick; None if there is none."""
        return self._batches[0][0][0].seq if self._batches else None

    def after(self, key: StreamKey, seq: int) -> TickBatch | None:
        """The ticks after a number; None unless the very next tick is among them."""
        first = self.first_seq
        if first is None or first > seq + 1:
            return None
        ticks: list[Tick] = []
        published_us: list[int] = []
        for batch, us in self._batches:
            new = batch[max(0, seq + 1 - (batch[0].seq or 0)) :]
            ticks += new
            published_us += [us] * len(new)
        return TickBatch(key, ticks, published_us) if ticks else None


class LiveStream:
    """One stream from the broker."""

    __slots__ = ("epoch", "key", "latest", "number", "outputs", "published_us", "seq", "tail")

    def __init__(
        self,
        key: StreamKey,
        epoch: str,
        seq: int,
        latest: Tick | None,
        published_us: int,
        number: int = 0,
    ) -> None:
        self.key = key
        # Streams are numbered in the order of opening.
        self.number = number
        # The numbering, and the last number that was sent on or declared lost.
        self.epoch = epoch
        self.seq = seq
        # The last tick, and when it was published (0 if unknown).
        self.latest = latest
        self.published_us = published_us
        # By conflation interval in ms; 0 means every tick.
        self.outputs: dict[int, Output] = {}
        # The last ticks, while some client needs them.
        self.tail: RecentTicks | None = None

    def append(self, ticks: Sequence[Tick], published_us: int, epoch: str) -> None:
        """Record the next ticks."""
        if epoch != self.epoch:
            self.enter_epoch(epoch)
        self.seq = ticks[-1].seq or 0
        self.latest = ticks[-1]
        self.published_us = published_us
        if self.tail is not None:
            self.tail.append(ticks, published_us)

    def enter_epoch(self, epoch: str) -> None:
        """Enter a new epoch, before its first tick."""
        self.epoch, self.seq, self.latest = epoch, 0, None
        if self.tail is not None:
            self.tail.clear()

    def skip_to(self, seq: int) -> None:
        """Skip ticks up to a number, because they are lost."""
        self.seq = seq
        if self.tail is not None:
            self.tail.clear()

    def hold_tail(self) -> None:
        """Keep the last ticks until each holder has called `release_tail`."""
        if self.tail is None:
            self.tail = RecentTicks()
        self.tail.holders += 1

    def release_tail(self) -> None:
        """Undo one call of `hold_tail`."""
        if self.tail is not None:
            self.tail.holders -= 1
            if not self.tail.holders:
                self.tail = None


# -- outputs of a stream


class TickBuffer:
    """The output of a stream for groups that receive every tick."""

    __slots__ = ("groups", "key", "published_us", "ticks")

    interval_ms = 0

    def __init__(self, key: StreamKey) -> None:
        self.key = key
        # A dict instead of a set keeps the order. `SubscriberGroup.connect` maintains it.
        self.groups: dict[WireFormat, dict[SubscriberGroup, None]] = {}
        # What was published since the last flush.
        self.ticks: list[Tick] = []
        self.published_us: list[int] = []

    def add_ticks(self, ticks: Sequence[Tick], published_us: int) -> bool:
        """Add published ticks; return True if they are the first since `pop_batch`."""
        is_first = not self.ticks
        self.ticks += ticks
        self.published_us += [published_us] * len(ticks)
        return is_first

    def pop_batch(self) -> TickBatch:
        """Return all ticks added since the last call."""
        batch = TickBatch(self.key, self.ticks, self.published_us)
        self.ticks, self.published_us = [], []
        return batch


class Conflator:
    """The output of a stream for groups that receive only the latest tick of each interval."""

    __slots__ = ("_latest", "count", "groups", "key", "timer")

    def __init__(self, key: StreamKey, timer: ConflationTimer) -> None:
        self.key = key
        self.timer = timer
        self.groups: dict[WireFormat, dict[SubscriberGroup, None]] = {}
        # The number of ticks since the last `clear`.
        self.count = 0
        # For each epoch: the number of ticks, the latest one, and its time of publication. None
        # instead of an empty list, because most of a wildcard's 10,000 conflators are idle.
        self._latest: list[tuple[int, Tick, int]] | None = None

    @property
    def interval_ms(self) -> int:
        """The conflation interval, in ms: at most one tick is sent in each."""
        return self.timer.interval_ms

    def add_ticks(self, ticks: Sequence[Tick], published_us: int) -> bool:
        """Add published ticks; return True if its timer was idle until now."""
        before = 0
        if self._latest is None:
            self._latest = []
        elif self._latest and (ticks[0].seq or 0) > (self._latest[-1][1].seq or 0):
            before = self._latest.pop()[0]
        self._latest.append((before + len(ticks), ticks[-1], published_us))
        self.count += len(ticks)
        if self.count > len(ticks):
            return False
        self.timer.pending[self] = None
        return len(self.timer.pending) == 1

    def merge(self, excluded: int = 0) -> TickBatch | None:
        """Return the latest tick, with the number of ticks that it replaces.

        If a new epoch has begun meanwhile, the latest tick of the old epoch comes first.

        Args:
            excluded: how many of the ticks, counted from the first, the receiver does not need.
                The result is None if it needs none of them.
        """
        ticks, published_us = [], []
        for count, latest, latest_us in self._latest or ():
            new, excluded = count - excluded, max(0, excluded - count)
            if new > 0:
                ticks.append(replace(latest, conflated=new - 1) if new > 1 else latest)
                published_us.append(latest_us)
        return TickBatch(self.key, ticks, published_us) if ticks else None

    def clear(self) -> None:
        """Start again, after the ticks have been sent."""
        self.count = 0
        self._latest = None


class ConflationTimer:
    """The conflated streams that are sent together, once in each interval.

    The first tick after a quiet period is sent immediately. All streams share one timer, so that
    everything a client receives in an interval fits in one frame.
    """

    __slots__ = ("conflators", "due_s", "interval_ms", "pending")

    def __init__(self, interval_ms: int) -> None:
        self.interval_ms = interval_ms
        # No tick is sent before this time, on the monotonic clock.
        self.due_s = 0.0
        # The conflators that have ticks to send. A dict keeps the order and removes quickly: a
        # client may leave thousands of conflators at once.
        self.pending: dict[Conflator, None] = {}
        # The number of conflators that use it.
        self.conflators = 0

    def start_interval(self, now_s: float) -> Iterable[Conflator]:
        """Start the next interval; return the conflators that have ticks to send."""
        pending, self.pending = self.pending, {}
        self.due_s = now_s + self.interval_ms / 1000
        return pending


Output = TickBuffer | Conflator


# -- groups of clients


class Delivery(NamedTuple):
    """How to serve a subscription."""

    # Send at most one tick in this interval; 0 sends every tick.
    conflate_ms: int
    # The policy if the client is too slow.
    slow: SlowPolicy


# The cache makes equal deliveries the same object.
@lru_cache(maxsize=1024)
def choose_delivery(channel: str, options: DeliveryOptions, extended: bool) -> Delivery:
    """Resolve a client's complete options to a delivery.

    Args:
        extended: whether the client knows our extensions. One that does not would not understand
            merged or missing ticks, so it is disconnected instead.
    """
    slow = options.slow
    if slow is None and extended:
        # For prices, the latest one matters. For trades, it matters that some are missing.
        slow = SlowPolicy.SKIP if channel == "trades" else SlowPolicy.CONFLATE
    return Delivery(options.conflate_ms or 0, slow or SlowPolicy.CLOSE)


# Subscriptions, each with its delivery.
Deliveries = frozenset[tuple[Subscription, Delivery]]


class GroupKey(NamedTuple):
    """What clients must have in common to receive the same bytes."""

    feed: str
    wire_format: WireFormat
    deliveries: Deliveries
    # A client that is not in step with the others yet: it joined in the middle of a conflation
    # interval, or is still receiving the history of some streams. Until it is in step, it is alone
    # in its group. None for all other clients.
    newcomer: Outbox | None = None


class SubscriberGroup:
    """Clients with the same feed, format, subscriptions and options."""

    __slots__ = ("_only_self", "behind", "bytes", "deliveries", "excluded", "intervals", "key",
                 "members", "merged", "outputs", "pending", "preparing", "sent",
                 "wire_format")  # fmt: skip

    def __init__(self, key: GroupKey, behind: Iterable[StreamKey] = ()) -> None:
        self.key = key
        self.wire_format = key.wire_format
        self.deliveries: PatternMap[Delivery] = PatternMap(dict(key.deliveries))
        # The conflation intervals in use, in ms.
        self.intervals = {each.conflate_ms for _, each in key.deliveries} - {0}
        # A tuple, because it is iterated far more often than changed: it is one object in memory,
        # and for most clients nothing else is looked up between stream and socket.
        self.members: tuple[Outbox, ...] = ()
        # How many clients are about to join. The group is kept for them.
        self.preparing = 0
        # Where its ticks come from.
        self.outputs: dict[Output, None] = {}
        self._only_self: dict[WireFormat, dict[SubscriberGroup, None]] | None = None
        # Ticks for the next write to its members.
        self.pending: list[EncodedTicks] = []
        # For a newcomer: how many of the ticks in each conflator it does not receive, because they
        # were published before it joined.
        self.excluded: dict[Conflator, int] = {}
        # For a newcomer: the streams that it subscribes to but still receives from history.
        self.behind = set(behind)
        # What every member has received since the group was created; see `Totals`.
        self.sent = 0
        self.merged = 0
        self.bytes = 0

    @property
    def totals(self) -> Totals:
        """What every member has received since the group was created."""
        return Totals(self.sent, self.merged, bytes=self.bytes)

    @property
    def is_in_step(self) -> bool:
        """Whether a newcomer may join the group that it would share with others."""
        return not self.excluded and not self.behind

    def policy_of(self, stream: StreamKey) -> SlowPolicy | None:
        """The slow-client policy for the stream; None if the group is not subscribed to it."""
        delivery = self.deliveries.match(stream)
        return delivery.slow if delivery else None

    def connect(self, output: Output) -> None:
        """Start receiving from an output."""
        self.outputs[output] = None
        if not output.groups:
            # A wildcard covers thousands of streams, and most of them have only this group.
            # Sharing one mapping between them saves 500 bytes for each stream.
            if self._only_self is None:
                self._only_self = {self.wire_format: {self: None}}
            output.groups = self._only_self
            return
        if len(output.groups) == 1:
            ((wire_format, groups),) = output.groups.items()
            other = next(iter(groups))
            if other._only_self is output.groups:
                output.groups = {wire_format: {other: None}}
        output.groups.setdefault(self.wire_format, {})[self] = None

    def disconnect(self, output: Output) -> None:
        """Stop receiving from an output."""
        self.outputs.pop(output, None)
        if output.groups is self._only_self:
            output.groups = {}
        else:
            groups = output.groups[self.wire_format]
            del groups[self]
            if not groups:
                del output.groups[self.wire_format]
        if not self.outputs:
            # Break the reference cycle, which would need a garbage collection.
            self._only_self = None

    def pop_pending(self) -> list[EncodedTicks]:
        """Return the ticks for the next write."""
        pending, self.pending = self.pending, []
        return pending

    def join(self, member: Outbox) -> None:
        """Add a member. What it receives from now on is counted here."""
        self.members += (member,)
        member.totals.add(self.totals, -1)

    def leave(self, member: Outbox) -> None:
        """Remove a member, and add the counts of the group to its own totals."""
        index = self.members.index(member)
        self.members = self.members[:index] + self.members[index + 1 :]
        member.totals.add(self.totals)
