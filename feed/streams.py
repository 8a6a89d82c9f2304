"""The streams that one server carries, and the taps through which audiences take them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator, KeysView, Sequence
from typing import Final

from feed.audience import AnyTap, Audience, ConflatedTap, Group, Tap
from feed.delivery import INTERVALS_MAX, coarse_conflate_ms
from feed.pieces import Chunk
from feed.ticks import Coverage, StreamKey, Subscription, Tick

TAIL_TICKS_MAX: Final = 2_000
"""Live ticks of a stream kept for those who are reading its history."""
TAIL_US: Final = 5_000_000
"""How long they are kept: some client or other is always reading, and each needs but a moment's."""
_AFTER_SYMBOLS: Final = "\x7f"
"""Sorts behind every character that a symbol may have."""


class Tail:
    """The last live ticks of a stream: what history, just read, does not reach to yet.

    Without it, a client that catches up with a busy stream would forever read what came while it
    was reading.

    Attributes:
        holders: how many clients need it.
    """

    __slots__ = ("_batches", "_count", "holders")

    def __init__(self) -> None:
        self._batches: deque[tuple[Sequence[Tick], int]] = deque()
        self._count = 0
        self.holders = 0

    def take(self, ticks: Sequence[Tick], published_us: int) -> None:
        """Take the next ticks; the oldest go where they would be too many."""
        self._batches.append((ticks, published_us))
        self._count += len(ticks)
        while len(self._batches) > 1 and (
            self._count > TAIL_TICKS_MAX or published_us - self._batches[0][1] > TAIL_US
        ):
            self._count -= len(self._batches.popleft()[0])

    def clear(self) -> None:
        """Forget all: what comes next does not follow it."""
        self._batches.clear()
        self._count = 0

    @property
    def first_seq(self) -> int | None:
        """The number of the oldest tick in it."""
        return self._batches[0][0][0].seq if self._batches else None

    def after(self, key: StreamKey, seq: int) -> Chunk | None:
        """The ticks that follow a number; None unless the next one is among them."""
        first = self.first_seq
        if first is None or first > seq + 1:
            return None
        ticks: list[Tick] = []
        published_us: list[int] = []
        for batch, us in self._batches:
            new = batch[max(0, seq + 1 - (batch[0].seq or 0)) :]
            ticks += new
            published_us += [us] * len(new)
        return Chunk(key, ticks, published_us) if ticks else None


class Stream:
    """One stream that the broker feeds.

    Attributes:
        number: counts the streams in the order in which they were opened.
        epoch, seq: the numbering, and the last number that was handed on or declared lost.
        latest: its last tick, and `published_us`, when that was published (0 if unknown).
        taps: the ways in which clients take it, by interval in ms; 0 is every tick.
        tail: its last ticks, while somebody needs them.
    """

    __slots__ = ("epoch", "key", "latest", "number", "published_us", "seq", "tail", "taps")

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
        self.number = number
        self.epoch = epoch
        self.seq = seq
        self.latest = latest
        self.published_us = published_us
        self.taps: dict[int, AnyTap] = {}
        self.tail: Tail | None = None

    def take(self, ticks: Sequence[Tick], published_us: int, epoch: str) -> None:
        """Take the next ticks."""
        if epoch != self.epoch:
            self.enter(epoch)
        self.seq = ticks[-1].seq or 0
        self.latest = ticks[-1]
        self.published_us = published_us
        if self.tail is not None:
            self.tail.take(ticks, published_us)

    def enter(self, epoch: str) -> None:
        """Go on in another numbering, whose first tick is still to come."""
        self.epoch, self.seq, self.latest = epoch, 0, None
        if self.tail is not None:
            self.tail.clear()

    def skip_to(self, seq: int) -> None:
        """Ticks up to this number will not come."""
        self.seq = seq
        if self.tail is not None:
            self.tail.clear()

    def hold_tail(self) -> None:
        """Keep the last ticks from now on, until as many have released it."""
        if self.tail is None:
            self.tail = Tail()
        self.tail.holders += 1

    def release_tail(self) -> None:
        """One holder fewer."""
        if self.tail is not None:
            self.tail.holders -= 1
            if not self.tail.holders:
                self.tail = None


class Streams:
    """All streams by their keys, and the groups that conflated ones go by.

    Attributes:
        opened: how many streams were opened so far.
    """

    def __init__(self) -> None:
        self.opened = 0
        self._streams: dict[StreamKey, Stream] = {}
        # The symbols of each feed and channel in order, so that a prefix is a range of them.
        self._symbols: dict[tuple[str, str], list[str]] = {}
        self._groups: dict[int, Group] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, key: StreamKey) -> bool:
        return key in self._streams

    def get(self, key: StreamKey) -> Stream | None:
        """The stream, if it is carried."""
        return self._streams.get(key)

    def open(
        self, key: StreamKey, epoch: str, seq: int, latest: Tick | None, published_us: int
    ) -> Stream:
        """Carry a stream from now on."""
        if self._streams.pop(key, None) is None:
            insort(self._symbols.setdefault((key.feed, key.channel), []), key.symbol)
        self.opened += 1
        stream = Stream(key, epoch, seq, latest, published_us, self.opened)
        self._streams[key] = stream
        return stream

    def close(self, key: StreamKey) -> Stream | None:
        """Carry a stream no longer; returns it if it was carried."""
        stream = self._streams.pop(key, None)
        if stream is not None:
            symbols = self._symbols[key.feed, key.channel]
            del symbols[bisect_left(symbols, key.symbol)]
            if not symbols:
                del self._symbols[key.feed, key.channel]
        return stream

    def keys(self) -> KeysView[StreamKey]:
        """The streams that are carried."""
        return self._streams.keys()

    def covered(self, feed: str, subscriptions: Iterable[Subscription]) -> Iterator[Stream]:
        """Every carried stream that the subscriptions cover, once each.

        Streams may be opened and closed between two of them. Those that are opened meanwhile may be
        left out: see `opened_since`.
        """
        coverage = Coverage(subscriptions)
        for key in coverage.named_in(feed):
            stream = self._streams.get(key)
            if stream is not None and not coverage.covers_by_wildcard(key):
                yield stream
        for channel, prefix in coverage.prefixes():
            symbols = self._symbols.get((feed, channel), [])
            first = bisect_left(symbols, prefix)
            for symbol in symbols[first : bisect_left(symbols, prefix + _AFTER_SYMBOLS, first)]:
                stream = self._streams.get(StreamKey(feed, channel, symbol))
                if stream is not None:
                    yield stream

    def opened_since(self, number: int) -> list[Stream]:
        """The streams that were opened after one with this number, the latest first."""
        found: list[Stream] = []
        for stream in reversed(self._streams.values()):
            if stream.number <= number:
                break
            found.append(stream)
        return found

    # -- taps

    def tap(self, stream: Stream, audience: Audience) -> AnyTap:
        """The tap that gives a stream as the audience wants it."""
        delivery = audience.deliveries.of(stream.key)
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
            tap.stop_waiting()
            if not tap.group.taps:
                self._groups.pop(tap.interval_ms, None)

    # -- conflation

    def served_interval(self, asked_ms: int) -> int:
        """The interval in ms that a client gets for the one it asks for."""
        if not asked_ms or asked_ms in self._groups or len(self._groups) < INTERVALS_MAX:
            return asked_ms
        return coarse_conflate_ms(asked_ms)

    def waiting(self, audience: Audience) -> Iterator[ConflatedTap]:
        """The taps of an audience that have something to give at the end of their interval."""
        for interval_ms in audience.intervals:
            group = self._groups.get(interval_ms)
            if group is not None:
                yield from [tap for tap in group.waiting if tap in audience.taps]

    def due_groups(self, now_s: float) -> list[Group]:
        """The groups that have something to give out by now, on the steady clock."""
        return [group for group in self._groups.values() if group.is_due(now_s)]

    def due_s(self) -> float | None:
        """When the next group is due, on the steady clock; None if none has anything to give."""
        return min((group.due_s for group in self._groups.values() if group.waiting), default=None)
