"""The streams that a server carries, and the taps that connect them to audiences."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator, KeysView, Sequence
from typing import Final

from feed.fanout.encoded_ticks import TickBatch
from feed.fanout.subscriber_group import (
    AnyTap,
    ConflationGroup,
    Conflator,
    LiveTap,
    SubscriberGroup,
)
from tickcast.wire.actions import CONFLATE_MAX_MS
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import StreamKey, Tick

TAIL_TICKS_MAX: Final = 2_000
"""Live ticks of a stream kept for clients that are reading its history."""
TAIL_US: Final = 5_000_000
"""How long they are kept. Some client is always reading, but each needs only a moment's ticks."""
_AFTER_SYMBOLS: Final = "\x7f"
"""Sorts after every character that a symbol may contain."""


INTERVALS_MAX: Final = 16
"""The number of different intervals that are served exactly.

Each interval needs memory for every stream that uses it: 1 to 6 MiB for 10,000 streams.
"""
_COARSE_MS: Final = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 60_000)


class RecentTicks:
    """The last live ticks of a stream, which history that was just read does not include yet.

    Without the tail, a client catching up with a busy stream would never finish: new ticks would
    arrive during each read.

    Attributes:
        holders: number of clients that need it.
    """

    __slots__ = ("_batches", "_count", "holders")

    def __init__(self) -> None:
        self._batches: deque[tuple[Sequence[Tick], int]] = deque()
        self._count = 0
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
        """Forget all ticks, because the next ones will not be contiguous with them."""
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
    """One stream from the broker.

    Attributes:
        number: sequence number of the stream, in the order of opening.
        epoch, seq: the numbering, and the last number that was sent on or declared lost.
        latest, published_us: its last tick, and when that was published (0 if unknown).
        taps: its taps by conflation interval in ms; 0 means every tick.
        tail: its last ticks, while some client needs them.
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
        self.tail: RecentTicks | None = None

    def append(self, ticks: Sequence[Tick], published_us: int, epoch: str) -> None:
        """Take the next ticks."""
        if epoch != self.epoch:
            self.enter(epoch)
        self.seq = ticks[-1].seq or 0
        self.latest = ticks[-1]
        self.published_us = published_us
        if self.tail is not None:
            self.tail.append(ticks, published_us)

    def enter(self, epoch: str) -> None:
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


class LiveStreams:
    """All streams by key, and the groups of conflated taps.

    Attributes:
        opened: number of streams opened so far.
    """

    def __init__(self) -> None:
        self.opened = 0
        self._streams: dict[StreamKey, LiveStream] = {}
        # The sorted symbols of each feed and channel, so that a prefix selects a range.
        self._symbols: dict[tuple[str, str], list[str]] = {}
        self._groups: dict[int, ConflationGroup] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def __contains__(self, key: StreamKey) -> bool:
        return key in self._streams

    def get(self, key: StreamKey) -> LiveStream | None:
        """The stream, if it is carried."""
        return self._streams.get(key)

    def open(
        self, key: StreamKey, epoch: str, seq: int, latest: Tick | None, published_us: int
    ) -> LiveStream:
        """Start carrying a stream."""
        if self._streams.pop(key, None) is None:
            insort(self._symbols.setdefault((key.feed, key.channel), []), key.symbol)
        self.opened += 1
        stream = LiveStream(key, epoch, seq, latest, published_us, self.opened)
        self._streams[key] = stream
        return stream

    def close(self, key: StreamKey) -> LiveStream | None:
        """Stop carrying a stream; return it if it was carried."""
        stream = self._streams.pop(key, None)
        if stream is not None:
            symbols = self._symbols[key.feed, key.channel]
            del symbols[bisect_left(symbols, key.symbol)]
            if not symbols:
                del self._symbols[key.feed, key.channel]
        return stream

    def keys(self) -> KeysView[StreamKey]:
        """Keys of the carried streams."""
        return self._streams.keys()

    def covered(self, feed: str, subscriptions: Iterable[Subscription]) -> Iterator[LiveStream]:
        """Yield each carried stream that the subscriptions cover, once.

        Streams may be opened and closed during the iteration. Those opened meanwhile may be left
        out; see `opened_since`.
        """
        coverage = Coverage(subscriptions)
        for key in coverage.named_streams(feed):
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

    def opened_since(self, number: int) -> list[LiveStream]:
        """The streams opened after the stream with this number, latest first."""
        found: list[LiveStream] = []
        for stream in reversed(self._streams.values()):
            if stream.number <= number:
                break
            found.append(stream)
        return found

    # -- taps

    def tap(self, stream: LiveStream, audience: SubscriberGroup) -> AnyTap:
        """Return the tap for a stream with the audience's conflation, creating it if needed."""
        delivery = audience.deliveries.match(stream.key)
        interval_ms = delivery.conflate_ms if delivery else 0
        tap = stream.taps.get(interval_ms)
        if tap is None:
            if interval_ms:
                group = self._groups.setdefault(interval_ms, ConflationGroup(interval_ms))
                group.taps += 1
                tap = Conflator(stream.key, group)
            else:
                tap = LiveTap(stream.key)
            stream.taps[interval_ms] = tap
        return tap

    def disconnect(self, audience: SubscriberGroup, tap: AnyTap) -> None:
        """Disconnect an audience from a tap, and drop the tap if it was the last one."""
        audience.disconnect(tap)
        if isinstance(tap, Conflator):
            audience.known.pop(tap, None)
        if tap.audiences:
            return
        stream = self._streams.get(tap.key)
        if stream is not None and stream.taps.get(tap.interval_ms) is tap:
            del stream.taps[tap.interval_ms]
        if isinstance(tap, Conflator):
            tap.group.taps -= 1
            tap.stop_waiting()
            if not tap.group.taps:
                self._groups.pop(tap.interval_ms, None)

    # -- conflation

    def served_interval(self, asked_ms: int) -> int:
        """The conflation interval in ms that a client gets for the one it asks for."""
        if not asked_ms or asked_ms in self._groups or len(self._groups) < INTERVALS_MAX:
            return asked_ms
        return coarse_conflate_ms(asked_ms)

    def waiting(self, audience: SubscriberGroup) -> Iterator[Conflator]:
        """The taps of an audience that hold ticks until the end of their interval."""
        for interval_ms in audience.intervals:
            group = self._groups.get(interval_ms)
            if group is not None:
                yield from [tap for tap in group.waiting if tap in audience.taps]

    def due_groups(self, now_s: float) -> list[ConflationGroup]:
        """The groups whose ticks are due by now, on the steady clock."""
        return [group for group in self._groups.values() if group.is_due(now_s)]

    def due_s(self) -> float | None:
        """When the next group is due, on the steady clock; None if no group holds ticks."""
        return min((group.due_s for group in self._groups.values() if group.waiting), default=None)


def coarse_conflate_ms(asked_ms: int) -> int:
    """Round an interval up to one of a few, if too many different ones are already in use."""
    return next((each for each in _COARSE_MS if each >= asked_ms), CONFLATE_MAX_MS)
