"""Audiences, the groups of clients that receive exactly the same bytes, and taps on streams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from msgspec.structs import replace

from feed.fanout.counters import Totals
from feed.fanout.encoded_ticks import EncodedTicks, TickBatch, WireFormat
from feed.fanout.outbox import Outbox
from tickcast.wire.actions import DeliveryOptions, SlowPolicy
from tickcast.wire.subscriptions import PatternMap, Subscription
from tickcast.wire.ticks import StreamKey, Tick


class Delivery(NamedTuple):
    """How to serve a subscription.

    Attributes:
        conflate_ms: send at most one tick in this interval, in ms; 0 sends every tick.
        slow: the policy if the client is too slow.
    """

    conflate_ms: int
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


Wanted = frozenset[tuple[Subscription, Delivery]]
"""Subscriptions, each with its delivery."""


class GroupKey(NamedTuple):
    """What clients must have in common to receive the same bytes.

    Attributes:
        newcomer: a client that is not in step with the others yet: it joined in the middle of a
            conflation interval, or is still receiving the history of some streams. It has an
            audience to itself until it is in step. None for all other clients.
    """

    feed: str
    form: WireFormat
    wanted: Wanted
    newcomer: Outbox | None = None


class SubscriberGroup:
    """Clients with the same feed, form, subscriptions and options.

    Attributes:
        members: its clients. It is a tuple because it is iterated far more often than changed: it
            is one object in memory, and for most clients nothing else is looked up between stream
            and socket.
        taps: the taps that its ticks come from.
        gathered: pieces for the next write to its members.
        known: for a newcomer, how many of the ticks that each tap is conflating it does not
            receive, because they were published before it joined.
        behind: for a newcomer, the streams that it subscribes to but still receives from history.
        intervals: the conflation intervals in use, in ms.
        users: how many clients are about to join. The audience is kept for them.
        sent, merged: what every member has received since the audience was created; see `Totals`.
    """

    __slots__ = ("_alone", "behind", "bytes", "deliveries", "form", "gathered", "intervals", "key",
                 "known", "members", "merged", "sent", "taps", "users")  # fmt: skip

    def __init__(self, key: GroupKey, behind: Iterable[StreamKey] = ()) -> None:
        self.key = key
        self.behind = set(behind)
        self.form = key.form
        self.deliveries: PatternMap[Delivery] = PatternMap(dict(key.wanted))
        self.intervals = {each.conflate_ms for _, each in key.wanted} - {0}
        self.members: tuple[Outbox, ...] = ()
        self.users = 0
        self._alone: dict[WireFormat, dict[SubscriberGroup, None]] | None = None
        self.taps: dict[AnyTap, None] = {}
        self.gathered: list[EncodedTicks] = []
        self.known: dict[Conflator, int] = {}
        self.sent = 0
        self.merged = 0
        self.bytes = 0

    @property
    def totals(self) -> Totals:
        """What every member has received since the audience was created."""
        return Totals(self.sent, self.merged, size=self.bytes)

    @property
    def is_in_step(self) -> bool:
        """Whether the audience, if it is a newcomer's, can be merged with the shared one."""
        return not self.known and not self.behind

    def covers(self, stream: StreamKey) -> bool:
        """Whether one of the audience's wildcards matches the stream."""
        return stream.feed == self.key.feed and self.deliveries.covers_by_wildcard(stream)

    def policy_of(self, stream: StreamKey) -> SlowPolicy | None:
        """The slow-client policy for the stream; None if the audience is not subscribed to it."""
        delivery = self.deliveries.match(stream)
        return delivery.slow if delivery else None

    def connect(self, tap: AnyTap) -> None:
        """Start receiving from a tap."""
        self.taps[tap] = None
        if not tap.audiences:
            # A wildcard covers thousands of streams, and most of them have only this audience.
            # Sharing one mapping between them saves 500 bytes for each stream.
            if self._alone is None:
                self._alone = {self.form: {self: None}}
            tap.audiences = self._alone
            return
        if len(tap.audiences) == 1:
            ((form, audiences),) = tap.audiences.items()
            first = next(iter(audiences))
            if first._alone is tap.audiences:
                tap.audiences = {form: {first: None}}
        tap.audiences.setdefault(self.form, {})[self] = None

    def disconnect(self, tap: AnyTap) -> None:
        """Stop receiving from a tap."""
        self.taps.pop(tap, None)
        if tap.audiences is self._alone:
            tap.audiences = {}
        else:
            audiences = tap.audiences[self.form]
            del audiences[self]
            if not audiences:
                del tap.audiences[self.form]
        if not self.taps:
            self._alone = None  # Break the reference cycle, which would need a garbage collection.

    def pop_pending(self) -> list[EncodedTicks]:
        """Return the pieces gathered since the last call."""
        gathered, self.gathered = self.gathered, []
        return gathered

    def join(self, member: Outbox) -> None:
        """Add a member. What it receives from now on is counted here."""
        self.members += (member,)
        member.totals.add(self.totals, -1)

    def leave(self, member: Outbox) -> None:
        """Remove a member, and add the counts of the audience to its own totals."""
        place = self.members.index(member)
        self.members = self.members[:place] + self.members[place + 1 :]
        member.totals.add(self.totals)


class LiveTap:
    """One stream, tick by tick, and the audiences that receive every tick.

    Attributes:
        audiences: the connected audiences, by form. `SubscriberGroup.connect` maintains it.
    """

    __slots__ = ("audiences", "key", "published_us", "ticks")

    interval_ms = 0

    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.audiences: dict[WireFormat, dict[SubscriberGroup, None]] = {}
        self.ticks: list[Tick] = []
        self.published_us: list[int] = []

    def add(self, ticks: Sequence[Tick], published_us: int) -> bool:
        """Take published ticks. Returns True if they are the first since the last `pop_pending`."""
        is_first = not self.ticks
        self.ticks += ticks
        self.published_us += [published_us] * len(ticks)
        return is_first

    def pop_pending(self) -> TickBatch:
        """Return all ticks taken since the last call."""
        chunk = TickBatch(self.key, self.ticks, self.published_us)
        self.ticks, self.published_us = [], []
        return chunk


class Conflator:
    """One stream, conflated: only the latest tick of each interval is sent.

    Attributes:
        group: the group of its interval.
        count: how many ticks were taken since the last `clear`.
    """

    __slots__ = ("_runs", "audiences", "count", "group", "key")

    def __init__(self, key: StreamKey, group: ConflationGroup) -> None:
        self.key = key
        self.group = group
        self.audiences: dict[WireFormat, dict[SubscriberGroup, None]] = {}
        self.count = 0
        # For each epoch: the number of ticks, the latest tick, and its time of publication.
        self._runs: list[tuple[int, Tick, int]] | None = None

    @property
    def interval_ms(self) -> int:
        """The conflation interval, in ms: at most one tick is sent in each."""
        return self.group.interval_ms

    def add(self, ticks: Sequence[Tick], published_us: int) -> bool:
        """Take published ticks. Returns True if its group was idle until now."""
        before = 0
        if self._runs is None:
            self._runs = []
        elif self._runs and (ticks[0].seq or 0) > (self._runs[-1][1].seq or 0):
            before = self._runs.pop()[0]
        self._runs.append((before + len(ticks), ticks[-1], published_us))
        self.count += len(ticks)
        if self.count > len(ticks):
            return False
        self.group.waiting[self] = None
        return len(self.group.waiting) == 1

    def merged(self, known: int = 0) -> TickBatch | None:
        """Return the latest tick, with the number of ticks that it replaces.

        If a new epoch has begun meanwhile, the latest tick of the old epoch comes first.

        Args:
            known: how many of the ticks taken, counted from the first, the receiver does not need.
                The result is None if it needs none of them.
        """
        ticks, published_us = [], []
        for count, latest, latest_us in self._runs or ():
            new, known = count - known, max(0, known - count)
            if new > 0:
                ticks.append(replace(latest, conflated=new - 1) if new > 1 else latest)
                published_us.append(latest_us)
        return TickBatch(self.key, ticks, published_us) if ticks else None

    def clear(self) -> None:
        """Start again, after the ticks have been sent."""
        self.count = 0
        self._runs = None

    def stop_waiting(self) -> None:
        """Remove the tap from those that its group is about to send."""
        self.group.waiting.pop(self, None)


class ConflationGroup:
    """The conflated streams that are sent together, once in each interval.

    The first tick after a quiet period is sent immediately. All streams share one timer, so that
    everything a client receives in an interval fits in one frame.

    Attributes:
        due_s: no tick is sent before this time, on the steady clock.
        waiting: the taps that have ticks to send.
        taps: how many taps the group has.
    """

    __slots__ = ("due_s", "interval_ms", "taps", "waiting")

    def __init__(self, interval_ms: int) -> None:
        self.interval_ms = interval_ms
        self.due_s = 0.0
        # A dict keeps the order and removes quickly: a client may leave thousands of taps at once.
        self.waiting: dict[Conflator, None] = {}
        self.taps = 0

    def is_due(self, now_s: float) -> bool:
        """Whether the group has ticks to send now."""
        return bool(self.waiting) and self.due_s <= now_s

    def begin_interval(self, now_s: float) -> Iterable[Conflator]:
        """Start the next interval. Returns the taps that have ticks to send."""
        waiting, self.waiting = self.waiting, {}
        self.due_s = now_s + self.interval_ms / 1000
        return waiting


AnyTap = LiveTap | Conflator
