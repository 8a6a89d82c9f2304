"""Accounting of every tick of each stream, and each stream's position.

Section 5 of the protocol sets the rule: each published tick is delivered, merged into a later one,
skipped, or part of a gap. A tick that is none of these is missing. A correct server causes no
missing ticks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

from tickcast.client.report import Report, StreamReport
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import CHANNELS, StreamKey, Tick, channel_of

STREAMS_MAX: Final = 100_000
"""Maximum number of streams to remember. Above it, the stream first seen is dropped first."""


Reason = Literal["retention", "epoch", "broker", "skipped", "missing"]


class Gap(NamedTuple):
    """Ticks of a stream, from `first_seq` to `last_seq`, that will not arrive.

    An unknown number is None. Both are None if the numbering has restarted.

    Attributes:
        reason: what the server reported: `retention` (no longer retained), `epoch` (the numbering
            has restarted), `broker` (lost on the way to the server) or `skipped` (this program was
            too slow). `missing` means that the server reported nothing, which is a server bug.
    """

    channel: str
    symbol: str
    first_seq: int | None
    last_seq: int | None
    reason: Reason


class Position(NamedTuple):
    """A position in a stream: after this number of this epoch."""

    channel: str
    symbol: str
    epoch: str
    seq: int


class StreamAccount:
    """The accounting of one stream.

    Attributes:
        epoch: identifies the numbering; empty while unknown.
        is_sure: whether the server has confirmed the epoch. Otherwise it is the feed's last known
            epoch.
        seq: the last number accounted for; None if there is no position to resume from.
        delivered, merged, skipped, gapped: numbers of ticks, by outcome.
        missing: ticks that are none of these. `repeated`: ticks that arrived a second time.
        gaps, restarts, snapshots: how many there were.
        restarted: whether the numbering has restarted and no tick of the new one has arrived yet.
        unasked: whether, after a cut, the server could not be asked for the ticks published
            meanwhile.
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
        """How many numbers `seq` has advanced by, over all runs."""
        return self._closed + (0 if self.seq is None else self.seq - self._base)

    def begin_after(self, seq: int) -> None:
        """Start a run at the number after this one."""
        self.end_run()
        self._base = self.seq = seq

    def end_run(self) -> None:
        """End the current run: there is no position to resume from."""
        self._closed = self.published
        self.seq = None
        self.restarted = self.unasked = False

    # -- ticks

    def add(self, tick: Tick) -> Iterator[Tick | Gap]:
        """Record a tick and yield the ticks and gaps for the application."""
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
        # After a restart, a stream continues with 1 or with the tick after a snapshot. A slow
        # client may not have received that tick.
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
            # The numbers of live ticks only increase, so this is a new numbering.
            yield from self.add_gap(None, None, "epoch")
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
        """Count ticks that no notice covers: as a gap if the server could not be asked."""
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

    def add_skipped(self, first_seq: int, last_seq: int) -> Iterator[Gap]:
        """Record a `skipped` notice; yield a gap for it, after one for any missing ticks."""
        lost, first_new = self._cover(first_seq, last_seq)
        self.skipped += last_seq - first_new + 1
        yield from lost
        if first_new <= last_seq:
            yield self._gap(first_new, last_seq, "skipped")

    def add_gap(self, first_seq: int | None, last_seq: int | None, reason: Reason) -> Iterator[Gap]:
        """Record a `gap` notice; yield a gap for it, after one for any missing ticks."""
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
        """Advance past a notice; return gaps for ticks missing before it, and its first new seq.

        The first new seq is `last_seq + 1` if the whole range was already accounted for.
        """
        if self._begins:
            self.begin_after(first_seq - 1)
        position = self.seq or 0
        lost = [self._lose(position + 1, first_seq - 1)] if first_seq > position + 1 else []
        first_new = min(max(first_seq, position + 1), last_seq + 1)
        self.repeated += first_new - first_seq
        self._go_on_to(max(position, last_seq))
        return lost, first_new


class SequenceAccounts:
    """The accounting of all streams of one client.

    Attributes:
        epoch: the feed's epoch that the server last reported.
        lacks_epoch: whether a numbering has begun since then.
    """

    def __init__(self, streams_max: int = STREAMS_MAX) -> None:
        self._streams_max = streams_max
        self._books: dict[tuple[str, str], StreamAccount] = {}
        self.epoch = ""
        self.lacks_epoch = False

    def book(self, channel: str, symbol: str) -> StreamAccount:
        """Return the book of a stream, creating it if necessary."""
        book = self._books.get((channel, symbol))
        if book is None:
            if len(self._books) >= self._streams_max:
                del self._books[next(iter(self._books))]
            book = self._books[channel, symbol] = StreamAccount(channel, symbol)
        return book

    def add(self, tick: Tick) -> Iterator[Tick | Gap]:
        """Record a tick and yield the ticks and gaps for the application."""
        book = self.book(channel_of(tick), tick.symbol)
        if not (book.seq or book.restarted or tick.seq is None):
            self._begin(book)
        return book.add(tick)

    def add_notice(self, notice: dict[str, Any]) -> Iterator[Gap]:
        """Record a `skipped` or `gap` notice and yield the gaps for the application."""
        book = self.book(notice["ch"], notice["S"])
        if book.seq is None:
            self._begin(book)
        if notice["T"] == "skipped":
            return book.add_skipped(notice["from"], notice["to"])
        self.lacks_epoch = self.lacks_epoch or notice["reason"] == "epoch"
        return book.add_gap(notice["from"], notice["to"], notice["reason"])

    def _begin(self, book: StreamAccount) -> None:
        book.epoch, book.is_sure = self.epoch, False
        self.lacks_epoch = True

    def epoch_of(self, channel: str, symbol: str) -> str:
        """Return the epoch of a stream; empty while unknown."""
        book = self._books.get((channel, symbol))
        return book.epoch if book else ""

    def name_epoch(self, epoch: str) -> None:
        """Set the feed's epoch as the server reported it.

        Numberings that began since it reported a different epoch may belong to either of the two,
        because notice of a restart may still be on its way. They are assigned to this epoch when
        the server reports it again.
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
        """Set the positions from a server's `positions` message."""
        for each in positions:
            for channel in CHANNELS:
                for symbol, seq in each.get(channel, {}).items():
                    self.place(channel, symbol, each["epoch"], seq)

    def place(self, channel: str, symbol: str, epoch: str, seq: int) -> None:
        """Set the position of one stream."""
        book = self.book(channel, symbol)
        book.begin_after(seq)
        book.epoch, book.is_sure = epoch, True

    def keep_positions(self, held: Iterable[Subscription]) -> None:
        """Keep the positions of subscribed streams only; others start over when resubscribed."""
        coverage = Coverage(held)
        for book in self._books.values():
            if book.seq is not None and not _covers(coverage, book):
                book.end_run()

    def insist_on_epochs(self) -> None:
        """Treat the epochs of all positions as confirmed, before sending them to the server.

        The server will report an epoch that is wrong. Until it does, the epochs must not change,
        because a cut may lose that report.
        """
        for book in self._books.values():
            book.is_sure = book.seq is not None

    def resume_unasked(self) -> None:
        """Continue all streams after a cut, without the ticks published meanwhile."""
        for book in self._books.values():
            book.unasked = True

    def positioned(
        self, held: Iterable[Subscription], besides: Iterable[Subscription] = ()
    ) -> list[StreamAccount]:
        """Return the resumable streams that `held` covers and `besides` does not."""
        held = list(held)
        coverage, known = Coverage(held), Coverage(besides)
        candidates: Iterable[StreamAccount | None] = self._books.values()
        if not any(each.is_wildcard for each in held):
            # Named streams can be looked up without a scan of all streams.
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
        """Return a snapshot of the books."""
        names = StreamReport._fields
        streams = [
            StreamReport(*(getattr(self._books[key], name) for name in names))
            for key in sorted(self._books)
        ]
        return Report(tuple(streams), reconnects)


def _covers(coverage: Coverage, book: StreamAccount) -> bool:
    return coverage.covers(StreamKey("", book.channel, book.symbol))
