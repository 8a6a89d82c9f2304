"""A client's books: what it got of each stream, what it did not, and where it stands.

The rule they hold is section 5 of the protocol: each published tick is delivered, merged into a
later one, skipped, or in a gap. What is none of these is missing, and a correct server has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

from feed.ticks import Coverage, StreamKey, Subscription, Tick, channel_of

STREAMS_MAX: Final = 100_000
"""Streams that are remembered; beyond it those go first that were first heard of."""


Reason = Literal["retention", "epoch", "broker", "skipped", "missing"]


class Gap(NamedTuple):
    """Ticks of a stream, from `first_seq` to `last_seq`, that will not come.

    Either number is None where it is not known; both are where the numbering has restarted.

    Attributes:
        reason: as the server says it: `retention` (not kept any more), `epoch` (the numbering has
            restarted), `broker` (lost on the way to the server), `skipped` (this program was too
            slow); or `missing`: the server has not said a word, which would be a fault of it.
    """

    channel: str
    symbol: str
    first_seq: int | None
    last_seq: int | None
    reason: Reason


class Book:
    """One stream.

    Attributes:
        epoch: the numbering; empty until it is known.
        seq: the last number accounted for; None while there is none to go on from.
        published: how many numbers `seq` has gone through, over all epochs.
        delivered, merged, skipped, gapped: ticks, by what became of them.
        missing: ticks that are none of these. `repeated`: ticks that came a second time.
        gaps, restarts, snapshots: how many there were.
        touched: when its last tick came, as a count of all ticks.
        overlaps: the server was not told of `seq`: what is known already may come again.
    """

    __slots__ = (
        "channel", "delivered", "epoch", "gapped", "gaps", "merged", "missing", "overlaps",
        "published", "repeated", "restarted", "restarts", "seq", "skipped", "snapshots", "symbol",
        "touched",
    )  # fmt: skip

    def __init__(self, channel: str, symbol: str) -> None:
        self.channel = channel
        self.symbol = symbol
        self.epoch = ""
        self.seq: int | None = None
        self.published = self.delivered = self.merged = self.skipped = self.gapped = 0
        self.missing = self.repeated = self.gaps = self.restarts = self.snapshots = 0
        self.touched = 0
        self.restarted = self.overlaps = False

    def stand_at(self, epoch: str, seq: int) -> None:
        """Go on from here."""
        self.epoch, self.seq, self.overlaps = epoch, seq, False

    def take(self, tick: Tick) -> Iterator[Tick | Gap]:
        """Enter a tick; yields what the application is to see."""
        if tick.seq is None:
            self.delivered += 1
            yield tick
        elif tick.snap:
            yield from self._take_snapshot(tick, tick.seq)
        else:
            yield from self._take_numbered(tick, tick.seq)

    def _take_snapshot(self, tick: Tick, seq: int) -> Iterator[Tick]:
        self.snapshots += 1
        if self.seq is None or self.restarted:
            self.seq, self.restarted = seq, False
            yield tick
        elif seq >= self.seq:
            yield tick

    def _take_numbered(self, tick: Tick, seq: int) -> Iterator[Tick | Gap]:
        first_seq = seq - tick.conflated
        position = first_seq - 1 if self.seq is None else self.seq
        if seq <= position:
            self.repeated += not self.overlaps
            return
        if first_seq > position + 1:
            lost = self._lose(position + 1, first_seq - 1)
            position = first_seq - 1
            yield lost
        elif first_seq <= position and not self.overlaps:
            self.repeated += position - first_seq + 1
        self.published += seq - position
        self.delivered += 1
        self.merged += seq - position - 1
        self.seq, self.restarted, self.overlaps = seq, False, False
        yield tick

    def _lose(self, first_seq: int, last_seq: int) -> Gap:
        """Nobody has told of it, unless nobody was asked."""
        count = last_seq - first_seq + 1
        self.published += count
        if self.overlaps:
            self.gapped += count
            self.gaps += 1
            return Gap(self.channel, self.symbol, first_seq, last_seq, "retention")
        self.missing += count
        return Gap(self.channel, self.symbol, first_seq, last_seq, "missing")

    def take_skipped(self, first_seq: int, last_seq: int) -> Iterator[Gap]:
        """Enter a `skipped` notice; yields it, and before it what is missing."""
        for lost, count in self._cover(first_seq, last_seq):
            self.skipped += count
            yield from self._tell(lost, count, last_seq, "skipped")

    def take_gap(
        self, first_seq: int | None, last_seq: int | None, reason: Reason
    ) -> Iterator[Gap]:
        """Enter a `gap` notice; yields it, and before it what is missing."""
        self.gaps += 1
        if reason == "epoch":
            self.restarts += 1
            self.epoch, self.seq, self.restarted, self.overlaps = "", 0, True, False
            yield Gap(self.channel, self.symbol, None, None, reason)
        elif first_seq is None or last_seq is None:
            if last_seq is not None and (self.seq is None or last_seq > self.seq):
                self.seq = last_seq
            yield Gap(self.channel, self.symbol, first_seq, last_seq, reason)
        else:
            for lost, count in self._cover(first_seq, last_seq):
                self.gapped += count
                yield from self._tell(lost, count, last_seq, reason)

    def _tell(self, lost: Gap | None, count: int, last_seq: int, reason: Reason) -> Iterator[Gap]:
        if lost is not None:
            yield lost
        if count:
            yield Gap(self.channel, self.symbol, last_seq - count + 1, last_seq, reason)

    def _cover(self, first_seq: int, last_seq: int) -> Iterator[tuple[Gap | None, int]]:
        """How many numbers a notice covers that were not accounted for, and what it leaves out."""
        position = first_seq - 1 if self.seq is None else self.seq
        lost = self._lose(position + 1, first_seq - 1) if first_seq > position + 1 else None
        position = max(position, first_seq - 1)
        count = max(0, last_seq - position)
        self.published += count
        self.seq = max(position, last_seq)
        yield lost, count


class StreamReport(NamedTuple):
    """The books of one stream; the numbers are those of `Book`."""

    channel: str
    symbol: str
    epoch: str
    seq: int | None
    published: int
    delivered: int
    merged: int
    skipped: int
    gapped: int
    missing: int
    repeated: int
    gaps: int
    restarts: int
    snapshots: int


class Report(NamedTuple):
    """The books of all streams that a client has heard of, sorted, and how often it came back."""

    streams: tuple[StreamReport, ...]
    reconnects: int

    def total(self, name: str) -> int:
        """The sum of one column, such as `delivered`, over all streams."""
        return sum(getattr(stream, name) for stream in self.streams)

    @property
    def balanced(self) -> bool:
        """Whether every tick is accounted for, once."""
        return not (self.total("missing") or self.total("repeated")) and all(
            each.published == each.delivered + each.merged + each.skipped + each.gapped
            for each in self.streams
            if each.seq is not None
        )


class Books:
    """The books of all streams of one client.

    Attributes:
        epoch: the feed's, as far as was heard.
        lacks_epoch: a numbering has begun since.
    """

    def __init__(self, streams_max: int = STREAMS_MAX) -> None:
        self._streams_max = streams_max
        self._books: dict[tuple[str, str], Book] = {}
        self._ticks = 0
        self.epoch = ""
        self.lacks_epoch = False

    def book(self, channel: str, symbol: str) -> Book:
        """The book of a stream, a new one if need be."""
        book = self._books.get((channel, symbol))
        if book is None:
            if len(self._books) >= self._streams_max:
                del self._books[next(iter(self._books))]
            book = self._books[channel, symbol] = Book(channel, symbol)
        return book

    def take(self, tick: Tick) -> Iterator[Tick | Gap]:
        """Enter a tick; yields what the application is to see."""
        self._ticks += 1
        book = self.book(channel_of(tick), tick.symbol)
        book.touched = self._ticks
        if not book.seq:
            book.epoch, self.lacks_epoch = "", True
        return book.take(tick)

    def take_notice(self, notice: dict[str, Any]) -> Iterator[Gap]:
        """Enter a `skipped` or `gap` notice; yields the gaps that the application is to see."""
        book = self.book(notice["ch"], notice["S"])
        if notice["T"] == "skipped":
            return book.take_skipped(notice["from"], notice["to"])
        if notice["reason"] == "epoch":
            self.lacks_epoch = True
        return book.take_gap(notice["from"], notice["to"], notice["reason"])

    def name_epoch(self, epoch: str) -> None:
        """The feed is in this epoch: so are the streams whose numbering has begun lately."""
        self.epoch = epoch
        for book in self._books.values():
            if book.seq is not None and not book.epoch:
                book.epoch = epoch

    def keep_positions(self, held: Iterable[Subscription]) -> None:
        """Streams that are held no longer begin anew when they are subscribed again."""
        coverage = Coverage(held)
        for book in self._books.values():
            if not coverage.covers(StreamKey("", book.channel, book.symbol)):
                book.seq = None

    def positioned(self, held: Iterable[Subscription]) -> list[Book]:
        """The streams under some subscriptions that can be resumed, the liveliest first."""
        coverage = Coverage(held)
        found = [
            book
            for book in self._books.values()
            if book.seq is not None and coverage.covers(StreamKey("", book.channel, book.symbol))
        ]
        return sorted(found, key=lambda book: book.touched, reverse=True)

    def report(self, reconnects: int) -> Report:
        """The books as they are now."""
        names = StreamReport._fields
        streams = [
            StreamReport(*(getattr(self._books[key], name) for name in names))
            for key in sorted(self._books)
        ]
        return Report(tuple(streams), reconnects)
