"""A client's books: what it got of each stream, what it did not, and where it stands.

The rule they hold is section 5 of the protocol: each published tick is delivered, merged into a
later one, skipped, or in a gap. What is none of these is missing, and a correct server has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

from clients.report import Report, StreamReport
from feed.ticks import CHANNELS, Coverage, StreamKey, Subscription, Tick, channel_of

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


class Position(NamedTuple):
    """Where a stream stands: after this number of this epoch."""

    channel: str
    symbol: str
    epoch: str
    seq: int


class Book:
    """One stream.

    Attributes:
        epoch: the numbering; empty while nothing is known of it.
        is_sure: whether the epoch was told; else it is the one that the feed was in lately.
        seq: the last number accounted for; None while there is none to go on from.
        delivered, merged, skipped, gapped: ticks, by what became of them.
        missing: ticks that are none of these. `repeated`: ticks that came a second time.
        gaps, restarts, snapshots: how many there were.
        restarted: the numbering has, and nothing of the new one has come yet.
        unasked: after a cut, the server could not be asked for what was published meanwhile.
    """

    __slots__ = (
        "_base", "_closed", "channel", "delivered", "epoch", "gapped", "gaps", "is_sure", "merged",
        "missing", "repeated", "restarted", "restarts", "seq", "skipped", "snapshots", "symbol",
        "unasked",
    )  # fmt: skip

    def __init__(self, channel: str, symbol: str) -> None:
        self.channel = channel
        self.symbol = symbol
        self.epoch = ""
        self.is_sure = False
        self.seq: int | None = None
        self.delivered = self.merged = self.skipped = self.gapped = 0
        self.missing = self.repeated = self.gaps = self.restarts = self.snapshots = 0
        self.restarted = self.unasked = False
        self._base = self._closed = 0

    @property
    def published(self) -> int:
        """How many numbers `seq` has gone through, over all runs."""
        return self._closed + (0 if self.seq is None else self.seq - self._base)

    def begin_after(self, seq: int) -> None:
        """Begin a run with the number after this one."""
        self.end_run()
        self._base = self.seq = seq

    def end_run(self) -> None:
        """There is nothing to go on from any more."""
        self._closed = self.published
        self.seq = None
        self.restarted = self.unasked = False

    # -- ticks

    def take(self, tick: Tick) -> Iterator[Tick | Gap]:
        """Enter a tick; yields what the application is to see."""
        if tick.seq is None:
            yield from self._take_unnumbered()
            yield tick
        elif not tick.snap:
            yield from self._take_numbered(tick, tick.seq)
        else:
            self.snapshots += 1
            if self._begins:
                self.begin_after(tick.seq)
            if tick.seq >= (self.seq or 0):
                yield tick

    @property
    def _begins(self) -> bool:
        # After a restart a stream goes on with 1, or with the tick after a snapshot. A slow client
        # may not have got that one.
        return self.seq is None or self.restarted

    def _take_unnumbered(self) -> Iterator[Gap]:
        self.delivered += 1
        if self.unasked:
            self.unasked = False
            self.gaps += 1
            yield self._gap(None, None, "retention")

    def _take_numbered(self, tick: Tick, seq: int) -> Iterator[Tick | Gap]:
        first_seq = seq - tick.conflated
        if self.unasked and seq <= (self.seq or 0):
            # Live ticks only go up: this is another numbering.
            yield from self.take_gap(None, None, "epoch")
        if self._begins:
            self.begin_after(first_seq - 1)
        position = self.seq or 0
        if seq <= position:
            self.repeated += 1
            return
        if first_seq > position + 1:
            yield self._lose(position + 1, first_seq - 1)
            position = first_seq - 1
        self.repeated += position - first_seq + 1
        self.delivered += 1
        self.merged += seq - position - 1
        self._go_on_to(seq)
        yield tick

    def _go_on_to(self, seq: int) -> None:
        self.seq, self.unasked = seq, False

    def _lose(self, first_seq: int, last_seq: int) -> Gap:
        """Nobody has told of it, unless nobody was asked."""
        count = last_seq - first_seq + 1
        if self.unasked:
            self.gapped += count
            self.gaps += 1
            return self._gap(first_seq, last_seq, "retention")
        self.missing += count
        return self._gap(first_seq, last_seq, "missing")

    def _gap(self, first_seq: int | None, last_seq: int | None, reason: Reason) -> Gap:
        return Gap(self.channel, self.symbol, first_seq, last_seq, reason)

    # -- notices

    def take_skipped(self, first_seq: int, last_seq: int) -> Iterator[Gap]:
        """Enter a `skipped` notice; yields it, and before it what is missing."""
        lost, first_new = self._cover(first_seq, last_seq)
        self.skipped += last_seq - first_new + 1
        yield from lost
        if first_new <= last_seq:
            yield self._gap(first_new, last_seq, "skipped")

    def take_gap(
        self, first_seq: int | None, last_seq: int | None, reason: Reason
    ) -> Iterator[Gap]:
        """Enter a `gap` notice; yields it, and before it what is missing."""
        self.gaps += 1
        if reason == "epoch":
            self.restarts += 1
            self.begin_after(0)
            self.epoch, self.is_sure, self.restarted = "", False, True
            yield self._gap(None, None, reason)
            return
        if first_seq is None and last_seq is not None and self._begins:
            self.begin_after(last_seq)
        if first_seq is None or last_seq is None:
            yield self._gap(first_seq, last_seq, reason)
            return
        lost, first_new = self._cover(first_seq, last_seq)
        self.gapped += last_seq - first_new + 1
        yield from lost
        if first_new <= last_seq:
            yield self._gap(first_new, last_seq, reason)

    def _cover(self, first_seq: int, last_seq: int) -> tuple[list[Gap], int]:
        """Go on behind a notice; returns what is missing before it, and what it begins with.

        That is behind its end where all of it was accounted for already.
        """
        if self._begins:
            self.begin_after(first_seq - 1)
        position = self.seq or 0
        lost = [self._lose(position + 1, first_seq - 1)] if first_seq > position + 1 else []
        first_new = min(max(first_seq, position + 1), last_seq + 1)
        self.repeated += first_new - first_seq
        self._go_on_to(max(position, last_seq))
        return lost, first_new


class Books:
    """The books of all streams of one client.

    Attributes:
        epoch: the feed's, as far as was heard.
        lacks_epoch: a numbering has begun since.
    """

    def __init__(self, streams_max: int = STREAMS_MAX) -> None:
        self._streams_max = streams_max
        self._books: dict[tuple[str, str], Book] = {}
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
        book = self.book(channel_of(tick), tick.symbol)
        if not (book.seq or book.restarted or tick.seq is None):
            self._begin(book)
        return book.take(tick)

    def take_notice(self, notice: dict[str, Any]) -> Iterator[Gap]:
        """Enter a `skipped` or `gap` notice; yields the gaps that the application is to see."""
        book = self.book(notice["ch"], notice["S"])
        if book.seq is None:
            self._begin(book)
        if notice["T"] == "skipped":
            return book.take_skipped(notice["from"], notice["to"])
        self.lacks_epoch = self.lacks_epoch or notice["reason"] == "epoch"
        return book.take_gap(notice["from"], notice["to"], notice["reason"])

    def _begin(self, book: Book) -> None:
        book.epoch, book.is_sure = self.epoch, False
        self.lacks_epoch = True

    def epoch_of(self, channel: str, symbol: str) -> str:
        """The epoch that a stream is in; empty while it is not known."""
        book = self._books.get((channel, symbol))
        return book.epoch if book else ""

    def name_epoch(self, epoch: str) -> None:
        """The server has told the feed's epoch.

        Numbers that have begun since it told another one may belong to either: notice of a restart
        may be on its way. They are taken to be of this epoch when it is told once more.
        """
        self.epoch = epoch
        for book in self._books.values():
            if book.is_sure or book.seq is None:
                continue
            if book.epoch in ("", epoch):
                book.epoch, book.is_sure = epoch, True
            else:
                book.epoch, self.lacks_epoch = "", True

    def stand_at(self, positions: Iterable[dict[str, Any]]) -> None:
        """Go on from what the server has told in `positions`."""
        for each in positions:
            for channel in CHANNELS:
                for symbol, seq in each.get(channel, {}).items():
                    self.place(channel, symbol, each["epoch"], seq)

    def place(self, channel: str, symbol: str, epoch: str, seq: int) -> None:
        """Go on from here with one stream."""
        book = self.book(channel, symbol)
        book.begin_after(seq)
        book.epoch, book.is_sure = epoch, True

    def keep_positions(self, held: Iterable[Subscription]) -> None:
        """Streams that are held no longer begin anew when they are subscribed again."""
        coverage = Coverage(held)
        for book in self._books.values():
            if book.seq is not None and not _covers(coverage, book):
                book.end_run()

    def insist_on_epochs(self) -> None:
        """Positions are about to be told to the server, which will say where an epoch is wrong.

        Until it does, no other is to be believed: its word may be cut off.
        """
        for book in self._books.values():
            book.is_sure = book.seq is not None

    def resume_unasked(self) -> None:
        """All streams go on behind a cut, and what was published meanwhile will not come."""
        for book in self._books.values():
            book.unasked = True

    def positioned(
        self, held: Iterable[Subscription], besides: Iterable[Subscription] = ()
    ) -> list[Book]:
        """The streams under some subscriptions, but not under others, that can be resumed."""
        held = list(held)
        coverage, known = Coverage(held), Coverage(besides)
        candidates: Iterable[Book | None] = self._books.values()
        if not any(each.is_wildcard for each in held):
            # Do not look through all streams for a few that are named.
            candidates = [self._books.get((each.channel, each.pattern)) for each in held]
        return [
            book
            for book in candidates
            if book is not None
            and book.seq is not None
            and _covers(coverage, book)
            and not _covers(known, book)
        ]

    def report(self, reconnects: int) -> Report:
        """The books as they are now."""
        names = StreamReport._fields
        streams = [
            StreamReport(*(getattr(self._books[key], name) for name in names))
            for key in sorted(self._books)
        ]
        return Report(tuple(streams), reconnects)


def _covers(coverage: Coverage, book: Book) -> bool:
    return coverage.covers(StreamKey("", book.channel, book.symbol))
