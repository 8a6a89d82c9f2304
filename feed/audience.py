"""Clients that get exactly the same bytes, and the taps on streams that they take them from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from feed.closest import PatternMap
from feed.counters import Totals
from feed.delivery import Delivery, SlowPolicy
from feed.outbox import Outbox
from feed.pieces import Chunk, Form, Piece
from feed.ticks import StreamKey, Subscription, Tick

Wanted = frozenset[tuple[Subscription, Delivery]]
"""Subscriptions, and how each is to be served."""


class AudienceKey(NamedTuple):
    """What clients must have in common to get the same bytes.

    Attributes:
        newcomer: a client that is not in step with the others yet, and stays by itself until it is:
            it came in the middle of an interval of conflation, or is still being sent the past of
            some streams. None for all the others.
    """

    feed: str
    form: Form
    wanted: Wanted
    newcomer: Outbox | None = None


class Audience:
    """Clients with the same feed, form, subscriptions and options.

    Attributes:
        members: a tuple, being gone through far more often than changed: it is one object in
            memory, and for most clients nothing else is looked up between stream and socket.
        taps: where its ticks come from.
        gathered: what its members get with the next write.
        known: for a newcomer, how many of the ticks that a tap is conflating are not for it: they
            were published before it came.
        behind: for a newcomer, the streams that it holds but gets from elsewhere for now.
        intervals: those at which it has streams conflated, in ms.
        users: clients that are about to join: it is kept for them.
        sent, merged: what every member has got since the audience began, as `Totals` has it.
    """

    __slots__ = ("_alone", "behind", "bytes", "deliveries", "form", "gathered", "intervals", "key",
                 "known", "members", "merged", "sent", "taps", "users")  # fmt: skip

    def __init__(self, key: AudienceKey, behind: Iterable[StreamKey] = ()) -> None:
        self.key = key
        self.behind = set(behind)
        self.form = key.form
        self.deliveries: PatternMap[Delivery] = PatternMap(dict(key.wanted))
        self.intervals = {each.conflate_ms for _, each in key.wanted} - {0}
        self.members: tuple[Outbox, ...] = ()
        self.users = 0
        self._alone: dict[Form, dict[Audience, None]] | None = None
        self.taps: dict[AnyTap, None] = {}
        self.gathered: list[Piece] = []
        self.known: dict[ConflatedTap, int] = {}
        self.sent = 0
        self.merged = 0
        self.bytes = 0

    @property
    def totals(self) -> Totals:
        """What every member has got since the audience began."""
        return Totals(self.sent, self.merged, size=self.bytes)

    @property
    def is_in_step(self) -> bool:
        """Whether nothing sets a newcomer apart any more."""
        return not self.known and not self.behind

    def covers(self, stream: StreamKey) -> bool:
        """Whether one of its wildcards matches the stream."""
        return stream.feed == self.key.feed and self.deliveries.covers_by_wildcard(stream)

    def policy_of(self, stream: StreamKey) -> SlowPolicy | None:
        """What a slow member gets of the stream; None if the audience does not hold it."""
        delivery = self.deliveries.of(stream)
        return delivery.slow if delivery else None

    def connect(self, tap: AnyTap) -> None:
        """Take what the tap gives from now on."""
        self.taps[tap] = None
        if not tap.audiences:
            # Of thousands of streams that a wildcard covers, most are taken by one audience alone.
            # Sharing one mapping saves 500 bytes for each of them.
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
        """Take no more from the tap."""
        self.taps.pop(tap, None)
        if tap.audiences is self._alone:
            tap.audiences = {}
        else:
            audiences = tap.audiences[self.form]
            del audiences[self]
            if not audiences:
                del tap.audiences[self.form]
        if not self.taps:
            self._alone = None  # Or the two would keep each other until the next collection.

    def take(self) -> list[Piece]:
        """What was gathered since the last call."""
        gathered, self.gathered = self.gathered, []
        return gathered

    def join(self, member: Outbox) -> None:
        """Add a member: what it gets from now on is counted here."""
        self.members += (member,)
        member.totals.add(self.totals, -1)

    def leave(self, member: Outbox) -> None:
        """Remove a member; its totals are its own again."""
        place = self.members.index(member)
        self.members = self.members[:place] + self.members[place + 1 :]
        member.totals.add(self.totals)


class Tap:
    """One stream, tick by tick, and the audiences that take it so.

    Attributes:
        audiences: by the form in which they want it; changed by `Audience.connect` alone.
    """

    __slots__ = ("audiences", "key", "published_us", "ticks")

    interval_ms = 0

    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.audiences: dict[Form, dict[Audience, None]] = {}
        self.ticks: list[Tick] = []
        self.published_us: list[int] = []

    def take(self, ticks: Sequence[Tick], published_us: int) -> bool:
        """Take what was published. True if it is the first since the last `give`."""
        is_first = not self.ticks
        self.ticks += ticks
        self.published_us += [published_us] * len(ticks)
        return is_first

    def give(self) -> Chunk:
        """All that was taken since the last call."""
        chunk = Chunk(self.key, self.ticks, self.published_us)
        self.ticks, self.published_us = [], []
        return chunk


class ConflatedTap:
    """One stream, of which only the latest tick of each interval is given out.

    Attributes:
        group: the interval it goes by.
        count: ticks taken since the last `clear`.
    """

    __slots__ = ("_runs", "audiences", "count", "group", "key")

    def __init__(self, key: StreamKey, group: Group) -> None:
        self.key = key
        self.group = group
        self.audiences: dict[Form, dict[Audience, None]] = {}
        self.count = 0
        # For each epoch: how many ticks, the latest, and when that was published.
        self._runs: list[tuple[int, Tick, int]] | None = None

    @property
    def interval_ms(self) -> int:
        """At most one tick is given out in so many ms."""
        return self.group.interval_ms

    def take(self, ticks: Sequence[Tick], published_us: int) -> bool:
        """Take what was published. True if its group has been idle until now."""
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

    def merged(self, known: int = 0) -> Chunk | None:
        """The latest tick, for somebody who knows so many of those taken; None if it knows all.

        Where a new epoch has begun meanwhile, the latest of the old one comes first.
        """
        ticks, published_us = [], []
        for count, latest, latest_us in self._runs or ():
            new, known = count - known, max(0, known - count)
            if new > 0:
                ticks.append(replace(latest, conflated=new - 1) if new > 1 else latest)
                published_us.append(latest_us)
        return Chunk(self.key, ticks, published_us) if ticks else None

    def clear(self) -> None:
        """Begin anew, what was taken having been given out."""
        self.count = 0
        self._runs = None

    def stop_waiting(self) -> None:
        """Have the group not wait to give out what was taken."""
        self.group.waiting.pop(self, None)


class Group:
    """The streams that are given out together, once in an interval.

    The first tick after a quiet time goes out at once. It is one timer for all, so that what a
    client gets in an interval travels in one frame.

    Attributes:
        due_s: not before this moment are ticks given out, on the steady clock.
        waiting: the taps that have something to give.
        taps: how many there are.
    """

    __slots__ = ("due_s", "interval_ms", "taps", "waiting")

    def __init__(self, interval_ms: int) -> None:
        self.interval_ms = interval_ms
        self.due_s = 0.0
        # In order, and quick to leave: a client may leave thousands of taps at once.
        self.waiting: dict[ConflatedTap, None] = {}
        self.taps = 0

    def is_due(self, now_s: float) -> bool:
        """Whether something is to be given out by now."""
        return bool(self.waiting) and self.due_s <= now_s

    def begin_interval(self, now_s: float) -> Iterable[ConflatedTap]:
        """The taps whose turn it is; the next turn is an interval later."""
        waiting, self.waiting = self.waiting, {}
        self.due_s = now_s + self.interval_ms / 1000
        return waiting


AnyTap = Tap | ConflatedTap
