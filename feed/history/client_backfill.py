"""One client that receives history: what to send it next, and which reads it waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from feed.fanout.encoded_ticks import (
    EncodedFrames,
    TickBatch,
    WireFormat,
    encode_frames,
    message_frame,
)
from feed.fanout.hub import Hub
from feed.fanout.outbox import Outbox
from feed.fanout.streams import LiveStream
from feed.history.cache import HistoryCache
from feed.history.cursor import CursorState, HistoryRead, StreamCursor, TickSlice
from tickcast.wire import messages
from tickcast.wire.errors import Fault
from tickcast.wire.sequence import NEW_EPOCH, GapReason, History, SequenceGap, TimeLocation
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Instant

# How much a client receives in one turn, before the next client's turn.
WRITE_BYTES: Final = 64 * 1024
# How many streams are read for one client at the same time.
READS_MAX: Final = 32
# How many streams a turn processes. After a short disconnection, most have nothing to send.
STREAMS_PER_TURN: Final = 100


class ClientBackfill:
    """Brings one client up to live on its streams, no faster than it reads.

    History is sent only while nothing is queued for the client, so it never fills the queue.
    """

    __slots__ = (
        "_hub", "_outbox", "_ready", "_tails", "behind", "is_paused", "is_queued", "is_waiting",
        "reading",
    )  # fmt: skip

    def __init__(self, hub: Hub, outbox: Outbox) -> None:
        self._hub = hub
        self._outbox = outbox
        # The streams that are still behind.
        self.behind: dict[StreamKey, StreamCursor] = {}
        # Those that may have something to send or to read.
        self._ready: deque[StreamKey] = deque()
        # The reads in progress for the client.
        self.reading: dict[StreamKey, HistoryRead] = {}
        # The streams whose tail the hub keeps for this client.
        self._tails: set[StreamKey] = set()
        # Whether sending is suspended because the client's subscriptions are changing.
        self.is_paused = False
        # Whether it waits for a condition that triggers no event. Check again soon.
        self.is_waiting = False
        # Whether it has a place in the queue of `Backfill`, which sets this.
        self.is_queued = False

    @property
    def has_work(self) -> bool:
        """Whether there may be something to send or to read now."""
        can_read = bool(self._ready) and len(self.reading) < READS_MAX
        can_send = not self.is_paused and self._outbox.write is not None
        return can_read and can_send and not self.is_waiting

    def add_streams(self, cursors: dict[StreamKey, StreamCursor]) -> None:
        """Add streams to catch up with."""
        self.behind.update(cursors)
        self._ready.extend(cursors)

    def drop_streams(self, keys: Iterable[StreamKey]) -> None:
        """Remove streams, which the client no longer subscribes to or has caught up with."""
        for key in list(keys):
            self.behind.pop(key, None)
            self.reading.pop(key, None)
            self._release_tail(key)

    def advance(self, cache: HistoryCache, now: Instant) -> list[HistoryRead]:
        """Send what the client can receive now. Returns the reads that must be made to continue."""
        self.is_waiting = False
        if self.is_paused:
            return []
        wire_format = self._hub.wire_format_of(self._outbox)
        if wire_format is None or self._outbox.write is None:
            # The client gets a turn when it reads again. Hold no ticks for it until then.
            for key in self._tails - self.reading.keys():
                self._release_tail(key)
            return []
        write = _Write(wire_format, now.wall_us)
        reads: list[HistoryRead] = []
        caught_up: list[StreamKey] = []
        waiting: list[StreamKey] = []
        for _ in range(STREAMS_PER_TURN):
            if not self._ready or write.size >= WRITE_BYTES or len(self.reading) >= READS_MAX:
                break
            key = self._ready.popleft()
            stream, cursor = self._hub.stream(key), self.behind.get(key)
            if cursor is None:
                continue
            if stream is None:
                # The stream is not carried now. Keep it, or the client would never receive it.
                waiting.append(key)
                continue
            outcome = self._advance_stream(cursor, stream, cache, write)
            if isinstance(outcome, HistoryRead):
                self._hold_tail(stream)
                self.reading[key] = outcome
                reads.append(outcome)
            elif outcome is CursorState.CAUGHT_UP:
                caught_up.append(key)
            else:
                (waiting if outcome is CursorState.WAITING else self._ready).append(key)
        write.send(self._hub, self._outbox)
        for key in caught_up:
            self._hub.resume_live(self._outbox, key, now)
        self.drop_streams(caught_up)
        self.is_waiting = bool(waiting)
        self._ready.extend(waiting)
        return reads

    def _advance_stream(
        self, cursor: StreamCursor, stream: LiveStream, cache: HistoryCache, write: _Write
    ) -> HistoryRead | CursorState | None:
        """Send what is available of one stream. Returns None if there may be more to send."""
        while write.size < WRITE_BYTES:
            step = cursor.next_step(stream, cache)
            if isinstance(step, TickSlice):
                write.append(step.encode(write.wire_format, cache, write.written_us))
            elif isinstance(step, SequenceGap):
                write.append_message(self._gap_frame(stream.key, step, write.wire_format))
            elif step is CursorState.RESTARTED:
                self._restart(stream, write)
            else:
                return step
        return None

    def _restart(self, stream: LiveStream, write: _Write) -> None:
        """Announce a new epoch and continue from the latest tick.

        What the client knows of the stream is no longer valid.
        """
        write.append_message(self._gap_frame(stream.key, NEW_EPOCH, write.wire_format))
        if stream.latest is not None:
            latest = replace(stream.latest, snap=True)
            batch = TickBatch(stream.key, [latest], [stream.published_us])
            write.append(encode_frames(batch, write.wire_format, write.written_us))
        elif stream.seq:
            gap = SequenceGap(1, stream.seq, GapReason.RETENTION)
            write.append_message(self._gap_frame(stream.key, gap, write.wire_format))

    def _gap_frame(self, key: StreamKey, gap: SequenceGap, wire_format: WireFormat) -> bytes:
        """Count a gap; return the notice that announces it."""
        self._hub.counters.add_gap(gap.reason.value, gap.ticks)
        return message_frame(messages.gap(key, gap), wire_format.encoding)

    # -- results of reads

    def finish_read(self, read: HistoryRead, result: History | TimeLocation) -> None:
        """Process the result of a read. The ticks themselves are in the cache."""
        key = read.key
        stream, cursor = self._hub.stream(key), self.behind.get(key)
        if cursor is None or self.reading.get(key) != read:
            return
        del self.reading[key]
        if stream is None:
            self._ready.append(key)
            return
        if isinstance(result, History):
            gap = cursor.add_history(result, stream)
        else:
            gap = cursor.set_location(result, stream)
        wire_format = self._hub.wire_format_of(self._outbox)
        if gap is not None and wire_format is not None:
            self._outbox.push(self._gap_frame(key, gap, wire_format))
        self._ready.appendleft(key)

    def skip_history(self, read: HistoryRead, fault: Fault) -> None:
        """Report that history can't be read, and continue with the stream live.

        A gap announces the missed ticks. The error is sent once for each `subscribe`, no matter how
        many streams it names.
        """
        key = read.key
        stream, cursor = self._hub.stream(key), self.behind.get(key)
        if stream is None or cursor is None or self.reading.get(key) != read:
            return
        del self.reading[key]
        missed = cursor.skip_history(stream)
        wire_format = self._hub.wire_format_of(self._outbox)
        if wire_format is not None:
            write = _Write(wire_format, 0)
            if not cursor.request.failed:
                cursor.request.failed = True
                detail = f"the history of {key.channel} {key.symbol} can't be read"
                error = messages.error(fault, detail, cursor.request.id)
                write.append_message(message_frame(error, wire_format.encoding))
            if isinstance(missed, SequenceGap):
                write.append_message(self._gap_frame(key, missed, wire_format))
            elif missed is CursorState.RESTARTED:
                self._restart(stream, write)
            write.send(self._hub, self._outbox)
        self._ready.appendleft(key)

    def fail(self) -> None:
        """Disconnect the client after a bug in serving it."""
        self._outbox.fail()

    def expected_ticks(self, read: HistoryRead) -> int | None:
        """How many ticks a read of history is expected to find; None if the hub does not know."""
        stream = self._hub.stream(read.key)
        if stream is None or read.after >= stream.seq:
            return None
        return stream.seq - read.after

    # -- tails

    def _hold_tail(self, stream: LiveStream) -> None:
        if stream.key not in self._tails:
            self._tails.add(stream.key)
            stream.hold_tail()

    def _release_tail(self, key: StreamKey) -> None:
        if key in self._tails:
            self._tails.discard(key)
            if (stream := self._hub.stream(key)) is not None:
                stream.release_tail()


class _Write:
    """The data for one write to the client."""

    def __init__(self, wire_format: WireFormat, written_us: int) -> None:
        self.wire_format = wire_format
        self.written_us = written_us
        self._parts: list[bytes] = []
        self.size = self._frames = self._ticks = 0

    def append(self, encoded: EncodedFrames) -> None:
        """Append frames of ticks."""
        self._parts.append(encoded.data)
        self.size += len(encoded.data)
        self._frames += encoded.frames
        self._ticks += encoded.ticks

    def append_message(self, frame: bytes) -> None:
        """Append the frame of another message, which no counter counts."""
        self._parts.append(frame)
        self.size += len(frame)

    def send(self, hub: Hub, outbox: Outbox) -> None:
        """Send everything."""
        if self._parts:
            hub.send_history(outbox, b"".join(self._parts), self._frames, self._ticks)
