"""A store, the faults on the way from it, and the hub that it feeds: all without I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from feed.fanout.hub import Hub
from feed.history.cache import HistoryCache
from tests.builders import T0, trades
from tickcast.wire.sequence import (
    Batch,
    History,
    SequenceEvent,
    SequenceGap,
    SequenceTracker,
    TimeLocation,
)
from tickcast.wire.ticks import Bar, StreamKey, Tick, Trade
from tickcast.wire.times import Instant, Time

PAGE_BATCHES = 2


@dataclass
class Stored:
    """One stream in the store: its position, and the retained batches."""

    epoch: str = ""
    seq: int = 0
    batches: list[Batch] = field(default_factory=list)


class Store:
    """A model of Redis: numbers, bounded history, and an epoch that may be lost."""

    def __init__(self) -> None:
        self.generation = 1
        self.streams: dict[StreamKey, Stored] = {}

    @property
    def epoch(self) -> str:
        return f"e{self.generation:04}"

    def publish(self, key: StreamKey, count: int) -> Batch:
        stored = self.stream(key)
        if stored.epoch != self.epoch:
            self.streams[key] = stored = Stored(self.epoch)
        ticks: list[Tick] = list(trades(count, key.symbol, stored.seq + 1))
        for tick in ticks:
            tick.time = time_of(tick.seq or 0)
        if key.channel != "trades":
            ticks = [as_bar(tick) for tick in ticks if isinstance(tick, Trade)]
        stored.seq += count
        batch = Batch(self.epoch, ticks, published_us=1)
        stored.batches.append(batch)
        return batch

    def stream(self, key: StreamKey) -> Stored:
        return self.streams.get(key, Stored())

    def history(self, key: StreamKey, after: int) -> History:
        stored = self.stream(key)
        found = [each for each in stored.batches if (each.ticks[-1].seq or 0) > after]
        page = found[:PAGE_BATCHES]
        complete = len(page) == len(found)
        through = stored.seq if complete else page[-1].ticks[-1].seq or 0
        return History(stored.epoch, stored.seq, page, max(after, through), complete)

    def locate(self, key: StreamKey, time: Time) -> TimeLocation:
        stored = self.stream(key)
        wanted = max(1, time - T0)
        oldest = stored.batches[0].first_seq if stored.batches else stored.seq + 1
        if wanted > stored.seq:
            return TimeLocation(stored.epoch, stored.seq, stored.seq, trimmed=False)
        return TimeLocation(
            stored.epoch, stored.seq, max(wanted, oldest) - 1, trimmed=wanted < oldest
        )


class World:
    """The store, the trackers of a server, and its hub."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.cache = HistoryCache(max_bytes=400_000)
        self.now = Instant(0.0, Time(0))
        self.store = Store()
        self.trackers: dict[StreamKey, SequenceTracker] = {}
        self.pending_histories: dict[StreamKey, History] = {}

    def open(self, key: StreamKey) -> None:
        stored = self.store.stream(key)
        epoch = stored.epoch or self.store.epoch
        latest = stored.batches[-1].ticks[-1] if stored.batches else None
        self.hub.open_stream(key, latest, 1, epoch=epoch, seq=stored.seq)
        tracker = self.trackers[key] = SequenceTracker()
        self.deliver(key, tracker.start_after(epoch, stored.seq))

    def publish(self, key: StreamKey, count: int, arrives: bool) -> None:
        batch = self.store.publish(key, count)
        if arrives:
            self.deliver(key, self.trackers[key].add_batch(batch))

    def deliver(self, key: StreamKey, events: list[SequenceEvent]) -> None:
        for event in events:
            if isinstance(event, SequenceGap):
                self.hub.announce(key, event, self.now, self.trackers[key].epoch)
            else:
                self.hub.publish(key, event.ticks, event.published_us, event.epoch)

    def compare_with_store(self, key: StreamKey) -> None:
        """Compare a tracker with the store, as after a new connection."""
        tracker, stored = self.trackers[key], self.store.stream(key)
        if (stored.epoch, stored.seq) > (tracker.epoch, tracker.seq):
            tracker.behind = True

    def start_repair(self, key: StreamKey) -> None:
        """Read history for a tracker that is behind; the answer may take a while."""
        tracker = self.trackers[key]
        if tracker.behind and key not in self.pending_histories:
            after = tracker.begin_repair()
            history = self.store.history(key, after)
            if history.epoch != tracker.epoch and after:
                history = self.store.history(key, 0)
            self.pending_histories[key] = history

    def finish_repair(self, key: StreamKey) -> None:
        history = self.pending_histories.pop(key, None)
        if history is not None:
            self.deliver(key, self.trackers[key].repair(history))

    def repair_all(self) -> None:
        for key, tracker in self.trackers.items():
            self.finish_repair(key)
            self.compare_with_store(key)
            for _ in range(100):
                self.start_repair(key)
                self.finish_repair(key)
            assert not tracker.behind

    def pass_time(self, ms: float) -> None:
        monotonic_s = self.now.monotonic_s + ms / 1000
        self.now = Instant(monotonic_s, Time(int(monotonic_s * 1e9)))
        self.hub.flush(self.now)


def time_of(seq: int) -> Time:
    return Time(T0 + seq)


def as_bar(tick: Trade) -> Bar:
    return Bar(
        symbol=tick.symbol, open=1, high=1, low=1, close=1, volume=1, trade_count=1, vwap=1,
        time=tick.time, timeframe="1s", seq=tick.seq,
    )  # fmt: skip
