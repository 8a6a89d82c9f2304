"""One client's way through one stream, from a point in its history up to live."""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from feed.fanout.encoded_ticks import EncodedFrames, TickBatch, WireFormat, encode_frames
from feed.fanout.streams import LiveStream
from feed.history.cache import PAGE_TICKS, HistoryCache, HistoryPage, page_start
from tickcast.wire.actions import Id
from tickcast.wire.positions import StreamPosition
from tickcast.wire.sequence import NEW_EPOCH, GapReason, History, SequenceGap, TimeLocation
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Time


class HistoryRead(NamedTuple):
    """A read from the store: the history after a number, or the location of a point in time."""

    key: StreamKey
    after: int = 0
    time: Time | None = None


class HistoryRequest:
    """The `subscribe` message that requested history, shared by the cursors of its streams."""

    __slots__ = ("failed", "id")

    def __init__(self, id_: Id = None) -> None:
        # Errors echo the message's `id`.
        self.id = id_
        # Whether the client has received the error that history can't be read. It is sent once.
        self.failed = False


class CursorState(Enum):
    """The state of a cursor that has nothing to send or read."""

    # The client has received what the hub has sent.
    CAUGHT_UP = auto()
    # The store has gone further than the hub, which will follow.
    WAITING = auto()
    # The client's numbers mean nothing in the stream's epoch. It begins at the present.
    RESTARTED = auto()


class TickSlice(NamedTuple):
    """The ticks to send next, at most one frame."""

    source: HistoryPage | TickBatch
    first_seq: int
    last_seq: int

    def encode(
        self, wire_format: WireFormat, cache: HistoryCache, written_us: int
    ) -> EncodedFrames:
        """Encode the ticks as frames."""
        if isinstance(self.source, HistoryPage):
            return cache.encode(self.source, wire_format, self.first_seq, self.last_seq, written_us)
        key, ticks, published_us = self.source
        part = slice(0, self.last_seq - self.first_seq + 1)
        return encode_frames(
            TickBatch(key, ticks[part], published_us[part]), wire_format, written_us
        )


class StreamCursor:
    """One client's progress through one stream, without gaps or duplicates.

    It ends when the client has received exactly what the hub has sent of the stream. From then on
    the client is a live subscriber. No ticks are buffered for it meanwhile: missing ticks are read
    from history, in pages that are shared with other clients, and those that were not in history
    yet when it was read are in the stream's tail.
    """

    __slots__ = (
        "_is_confirmed", "_reads_pages", "_start", "_store_position", "epoch", "request", "seq",
    )  # fmt: skip

    def __init__(
        self,
        position: StreamPosition | None = None,
        start: Time | None = None,
        request: HistoryRequest | None = None,
    ) -> None:
        """Start after a position, or at a point in time."""
        self.request = request or HistoryRequest()
        # The last tick that the client has received, or has been notified is lost.
        self.epoch, self.seq = position if position is not None and position.seq else ("", 0)
        # The point in time to start at, until its location is known.
        self._start = start
        # Whether the position is known to exist. Until then, it is only the client's claim.
        self._is_confirmed = False
        # The stream's position according to a read that has not been used yet.
        self._store_position: StreamPosition | None = None
        # Whether to read from the start of a page, so that the page can be shared.
        self._reads_pages = True

    def next_step(
        self, stream: LiveStream, cache: HistoryCache
    ) -> TickSlice | SequenceGap | HistoryRead | CursorState:
        """Return what to do next. Ticks and gaps that it returns count as sent."""
        if self._start is not None:
            return HistoryRead(stream.key, time=self._start)
        if self.epoch != stream.epoch and (step := self._change_epoch(stream)) is not None:
            return step
        if self.seq == stream.seq:
            return CursorState.CAUGHT_UP
        if self.seq > stream.seq:
            return self._ask_store(stream)
        self._is_confirmed = True
        ticks = self._from_tail(stream) or self._from_cache(stream, cache)
        if ticks is None:
            return HistoryRead(stream.key, page_start(self.seq) if self._reads_pages else self.seq)
        self.seq = ticks.last_seq
        return ticks

    def _change_epoch(self, stream: LiveStream) -> SequenceGap | HistoryRead | CursorState | None:
        """Move to the stream's epoch; ask the store if the client's epoch may be the newer one."""
        if not self.seq and self.epoch < stream.epoch:
            self.epoch = stream.epoch
            return None
        if self._is_confirmed and self.epoch < stream.epoch:
            self.epoch, self.seq = stream.epoch, 0
            return NEW_EPOCH
        return self._ask_store(stream)

    def _ask_store(self, stream: LiveStream) -> HistoryRead | CursorState:
        """Handle a client that claims ticks that the hub does not have.

        Either a server that is further ahead sent them, or they never existed. The store decides.
        """
        stored, self._store_position = self._store_position, None
        if stored is None:
            return HistoryRead(stream.key, self.seq)
        if stored.epoch == self.epoch and stored.seq >= self.seq:
            return CursorState.WAITING
        self.epoch, self.seq = stream.epoch, stream.seq
        return CursorState.RESTARTED

    def _from_tail(self, stream: LiveStream) -> TickSlice | None:
        batch = stream.tail.after(stream.key, self.seq) if stream.tail is not None else None
        if batch is None:
            return None
        return TickSlice(batch, self.seq + 1, min(stream.seq, self.seq + PAGE_TICKS))

    def _from_cache(self, stream: LiveStream, cache: HistoryCache) -> TickSlice | None:
        page = cache.find(stream.key, stream.epoch, self.seq + 1)
        if page is None:
            return None
        return TickSlice(page, self.seq + 1, min(stream.seq, page.last_seq))

    # -- results of reads

    def set_location(self, location: TimeLocation, stream: LiveStream) -> SequenceGap | None:
        """Start at the location of the point in time. Returns a gap if ticks are not retained.

        The number of missing ticks is unknown, so the gap has only an end.
        """
        self._start = None
        self._is_confirmed = True
        self._store_position = StreamPosition(location.epoch, location.seq)
        self.epoch, self.seq = location.epoch or stream.epoch, location.before
        if not location.trimmed:
            return None
        return SequenceGap(None, location.before, GapReason.RETENTION)

    def add_history(self, history: History, stream: LiveStream) -> SequenceGap | None:
        """Process a part of the history. Returns a gap if ticks turned out not to be retained.

        The ticks themselves are in the cache.
        """
        self._store_position = StreamPosition(history.epoch, history.seq)
        if self.epoch != stream.epoch or self.seq >= stream.seq:
            return None
        self._is_confirmed = True
        # A read from the start of a page may end before the tick that is needed here.
        self._reads_pages = history.complete or history.through > self.seq
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

    def _next_in(self, history: History) -> int:
        """The first number after `seq` that history has, or may have beyond this read."""
        for batch in history.batches:
            if batch.first_seq + len(batch.ticks) > self.seq + 1:
                return max(batch.first_seq, self.seq + 1)
        return history.through + 1

    def skip_history(self, stream: LiveStream) -> SequenceGap | CursorState:
        """Continue live because history can't be read. Returns what the client has missed."""
        knows_start = self._start is None
        same_epoch = self.epoch == stream.epoch or not self.seq
        before, seq = self.seq, stream.seq
        self._start = None
        self.epoch, self.seq = stream.epoch, seq
        if not knows_start:
            return SequenceGap(None, seq, GapReason.BROKER)
        if not same_epoch or before > seq:
            return CursorState.RESTARTED
        if before == seq:
            return CursorState.CAUGHT_UP
        return SequenceGap(before + 1, seq, GapReason.BROKER)
