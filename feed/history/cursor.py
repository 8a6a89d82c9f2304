"""Bring a client from a point in a stream's history up to live, without gaps or duplicates.

A `StreamCursor` tracks one client's progress through one stream. It ends when the client has
received exactly what the hub has forwarded of the stream. From then on the client is a live
subscriber. No ticks are buffered for the client meanwhile. Missing ticks are read from history, in
pages that are shared with other clients. Ticks that were not in history yet when it was read are in
the stream's tail.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from feed.fanout.encoded_ticks import TickBatch, WireFormat
from feed.fanout.streams import LiveStream
from feed.history.pages import (
    BLOCK_TICKS,
    EncodedPage,
    HistoryCache,
    HistoryPage,
    block_start,
    to_letter,
)
from tickcast.wire.actions import Id
from tickcast.wire.positions import StreamPosition
from tickcast.wire.sequence import NEW_EPOCH, GapReason, History, SequenceGap, TimeLocation
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Time


class HistoryRequest(NamedTuple):
    """A read from the store: history after a sequence number, or the place of a point in time."""

    key: StreamKey
    after: int = 0
    time: Time | None = None


class PastRequest:
    """The `subscribe` message that asked for history.

    Attributes:
        id: the message's `id`, which errors echo.
        failed: whether the error that history can't be read was sent. It is sent only once.
    """

    __slots__ = ("failed", "id")

    def __init__(self, id_: Id = None) -> None:
        self.id = id_
        self.failed = False


class CursorState(Enum):
    """The state of a catch-up that has nothing to send or read."""

    JOIN = "up to date"
    WAIT = "the store has gone further than the hub, which will follow"
    RESTART = "its numbering is not this one: begin at the present"


class TickSlice(NamedTuple):
    """The ticks to send next, at most one frame."""

    source: HistoryPage | TickBatch
    first_seq: int
    last_seq: int

    def letter(self, form: WireFormat, written_us: int) -> EncodedPage:
        """Encode the ticks as frames."""
        if isinstance(self.source, HistoryPage):
            return self.source.letter(form, self.first_seq, self.last_seq, written_us)
        key, ticks, published_us = self.source
        part = slice(0, self.last_seq - self.first_seq + 1)
        return to_letter(TickBatch(key, ticks[part], published_us[part]), form, written_us)


class StreamCursor:
    """One client's progress through one stream.

    Attributes:
        epoch, seq: the last tick that the client has received, or has been notified is lost.
        origin: the message that asked for it.
    """

    __slots__ = ("_head", "_is_sure", "_shares", "_start", "epoch", "origin", "seq")

    def __init__(
        self,
        position: StreamPosition | None = None,
        start: Time | None = None,
        origin: PastRequest | None = None,
    ) -> None:
        """Start after a position, or at a point in time."""
        self.origin = origin or PastRequest()
        self.epoch, self.seq = position if position is not None and position.seq else ("", 0)
        self._start = start
        self._is_sure = False
        self._head: StreamPosition | None = None
        self._shares = True

    def next(
        self, stream: LiveStream, blocks: HistoryCache
    ) -> TickSlice | SequenceGap | HistoryRequest | CursorState:
        """Return the next step. Ticks and gaps that it returns count as sent."""
        if self._start is not None:
            return HistoryRequest(stream.key, time=self._start)
        if self.epoch != stream.epoch and (step := self._cross_epochs(stream)) is not None:
            return step
        if self.seq == stream.seq:
            return CursorState.JOIN
        if self.seq > stream.seq:
            return self._look_ahead(stream)
        self._is_sure = True
        stretch = self._from_tail(stream) or self._from_blocks(stream, blocks)
        if stretch is None:
            return HistoryRequest(stream.key, block_start(self.seq) if self._shares else self.seq)
        self.seq = stretch.last_seq
        return stretch

    def _cross_epochs(
        self, stream: LiveStream
    ) -> SequenceGap | HistoryRequest | CursorState | None:
        """Move to the stream's epoch; ask the store if the client's epoch may be the newer one."""
        if not self.seq and self.epoch < stream.epoch:
            self.epoch = stream.epoch
            return None
        if self._is_sure and self.epoch < stream.epoch:
            self.epoch, self.seq = stream.epoch, 0
            return NEW_EPOCH
        return self._look_ahead(stream)

    def _look_ahead(self, stream: LiveStream) -> HistoryRequest | CursorState:
        """Handle a client that claims ticks that the hub does not have.

        Either a server that is further ahead sent them, or they never existed. The store decides.
        """
        head, self._head = self._head, None
        if head is None:
            return HistoryRequest(stream.key, self.seq)
        if head.epoch == self.epoch and head.seq >= self.seq:
            return CursorState.WAIT
        self.epoch, self.seq = stream.epoch, stream.seq
        return CursorState.RESTART

    def _from_tail(self, stream: LiveStream) -> TickSlice | None:
        chunk = stream.tail.after(stream.key, self.seq) if stream.tail is not None else None
        if chunk is None:
            return None
        return TickSlice(chunk, self.seq + 1, min(stream.seq, self.seq + BLOCK_TICKS))

    def _from_blocks(self, stream: LiveStream, blocks: HistoryCache) -> TickSlice | None:
        block = blocks.find(stream.key, stream.epoch, self.seq + 1)
        if block is None:
            return None
        return TickSlice(block, self.seq + 1, min(stream.seq, block.last_seq))

    # -- results of reads

    def set_place(self, place: TimeLocation, stream: LiveStream) -> SequenceGap | None:
        """Start at the place of the point in time. Returns a gap if ticks are no longer retained.

        The number of missing ticks is unknown, so the gap has only an end.
        """
        self._start = None
        self._is_sure = True
        self._head = StreamPosition(place.epoch, place.seq)
        self.epoch, self.seq = place.epoch or stream.epoch, place.before
        return SequenceGap(None, place.before, GapReason.RETENTION) if place.trimmed else None

    def add_history(self, history: History, stream: LiveStream) -> SequenceGap | None:
        """Process a page of history. Returns a gap if ticks turned out not to be retained.

        The ticks themselves are in the blocks.
        """
        self._head = StreamPosition(history.epoch, history.seq)
        if self.epoch != stream.epoch or self.seq >= stream.seq:
            return None
        self._is_sure = True
        # A page from the start of a block can be shared, but may end before the tick needed here.
        self._shares = history.complete or history.through > self.seq
        next_seq = stream.seq + 1
        if history.epoch == self.epoch:
            next_seq = min(next_seq, self._next_in(history))
        if stream.tail is not None and stream.tail.first_seq is not None:
            next_seq = min(next_seq, stream.tail.first_seq)
        if next_seq <= self.seq + 1:
            return None
        gap = SequenceGap(self.seq + 1, next_seq - 1, GapReason.RETENTION)
        self.seq = next_seq - 1
        return gap

    def skip_history(self, stream: LiveStream) -> SequenceGap | CursorState:
        """Continue live because history can't be read. Returns what to tell the client about it."""
        knows_start = self._start is None
        same_epoch = self.epoch == stream.epoch or not self.seq
        before, seq = self.seq, stream.seq
        self._start = None
        self.epoch, self.seq = stream.epoch, seq
        if not knows_start:
            return SequenceGap(None, seq, GapReason.BROKER)
        if not same_epoch or before > seq:
            return CursorState.RESTART
        return SequenceGap(before + 1, seq, GapReason.BROKER) if before < seq else CursorState.JOIN

    def _next_in(self, history: History) -> int:
        """The first sequence number after `seq` that history has, or may have beyond this page."""
        for batch in history.batches:
            if batch.first_seq + len(batch.ticks) > self.seq + 1:
                return max(batch.first_seq, self.seq + 1)
        return history.through + 1
