"""A client that is receiving history: what to send it next, and which reads it waits for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from feed.fanout.encoded_ticks import TickBatch, WireFormat, message_frame
from feed.fanout.hub import Hub
from feed.fanout.outbox import Outbox
from feed.fanout.streams import LiveStream
from feed.history.cursor import CursorState, HistoryRequest, StreamCursor, TickSlice
from feed.history.pages import EncodedPage, HistoryCache, to_letter
from tickcast.wire import messages as protocol
from tickcast.wire.errors import Fault
from tickcast.wire.sequence import NEW_EPOCH, GapReason, History, SequenceGap, TimeLocation
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Instant

WRITE_BYTES: Final = 64 * 1024
"""How much a client receives in one turn, before the next client's turn."""
READS_MAX: Final = 32
"""The number of streams that are read for one client at the same time."""
STREAMS_PER_TURN: Final = 100
"""The number of streams that one call of `advance` processes.

After a short disconnection, most streams have nothing to send.
"""


class ClientBackfill:
    """Brings one client up to live on its streams, no faster than it reads.

    History is sent only while nothing is queued for the client, so it never fills the queue.

    Attributes:
        behind: the catch-up of each stream that is still behind.
        reading: the reads in progress for the client, by stream.
        paused: whether sending is suspended because the client's subscriptions are changing.
        waiting: whether it waits for a condition that triggers no event. Check again soon.
        queued: whether the client is queued for a turn. The caller sets it.
    """

    __slots__ = ("_hub", "_outbox", "_ready", "_tails", "behind", "paused", "queued", "reading",
                 "waiting")  # fmt: skip

    def __init__(self, hub: Hub, outbox: Outbox) -> None:
        self._hub = hub
        self._outbox = outbox
        self._ready: deque[StreamKey] = deque()
        self._tails: set[StreamKey] = set()
        self.behind: dict[StreamKey, StreamCursor] = {}
        self.reading: dict[StreamKey, HistoryRequest] = {}
        self.paused = False
        self.waiting = False
        self.queued = False

    @property
    def has_work(self) -> bool:
        """Whether there may be something to send or to read now."""
        can_read = bool(self._ready) and len(self.reading) < READS_MAX
        can_send = not self.paused and self._outbox.write is not None
        return can_read and can_send and not self.waiting

    def add(self, catch_ups: dict[StreamKey, StreamCursor]) -> None:
        """Add streams to catch up with."""
        self.behind.update(catch_ups)
        self._ready.extend(catch_ups)

    def drop(self, keys: Iterable[StreamKey]) -> None:
        """Remove streams, which the client no longer subscribes to or has caught up with."""
        for key in list(keys):
            self.behind.pop(key, None)
            self.reading.pop(key, None)
            self._release_tail(key)

    def advance(self, blocks: HistoryCache, now: Instant) -> list[HistoryRequest]:
        """Send what the client can take now. Returns the reads that must be made to continue."""
        self.waiting = False
        if self.paused:
            return []
        form = self._hub.wire_format_of(self._outbox)
        if form is None or self._outbox.write is None:
            # The client gets a turn when it reads again. Hold no ticks for it until then.
            for key in self._tails - self.reading.keys():
                self._release_tail(key)
            return []
        parcel = _Parcel(form, now.wall_us)
        requests: list[HistoryRequest] = []
        joining: list[StreamKey] = []
        waiting: list[StreamKey] = []
        for _ in range(STREAMS_PER_TURN):
            if not self._ready or parcel.size >= WRITE_BYTES or len(self.reading) >= READS_MAX:
                break
            key = self._ready.popleft()
            stream, catch_up = self._hub.stream(key), self.behind.get(key)
            if catch_up is None:
                continue
            if stream is None:
                # The stream is not carried now. Keep it, or the client would never receive it.
                waiting.append(key)
                continue
            outcome = self._work_off(catch_up, stream, blocks, parcel)
            if isinstance(outcome, HistoryRequest):
                self._hold_tail(stream)
                self.reading[key] = outcome
                requests.append(outcome)
            elif outcome is CursorState.JOIN:
                joining.append(key)
            else:
                (waiting if outcome is CursorState.WAIT else self._ready).append(key)
        self._send(parcel, joining, now)
        self.waiting = bool(waiting)
        self._ready.extend(waiting)
        return requests

    def _work_off(
        self, catch_up: StreamCursor, stream: LiveStream, blocks: HistoryCache, parcel: _Parcel
    ) -> HistoryRequest | CursorState | None:
        """Send what is available of one stream. Returns None if there may be more to send."""
        while parcel.size < WRITE_BYTES:
            step = catch_up.next(stream, blocks)
            if isinstance(step, TickSlice):
                parcel.add(step.letter(parcel.form, parcel.written_us))
            elif isinstance(step, SequenceGap):
                self._tell(stream.key, step, parcel)
            elif step is CursorState.RESTART:
                self._restart(stream, parcel)
            else:
                return step
        return None

    def _restart(self, stream: LiveStream, parcel: _Parcel) -> None:
        """Announce a new epoch and continue from the latest tick.

        What the client knows of the stream is no longer valid.
        """
        self._tell(stream.key, NEW_EPOCH, parcel)
        if stream.latest is not None:
            latest = replace(stream.latest, snap=True)
            chunk = TickBatch(stream.key, [latest], [stream.published_us])
            parcel.add(to_letter(chunk, parcel.form, parcel.written_us))
        elif stream.seq:
            self._tell(stream.key, SequenceGap(1, stream.seq, GapReason.RETENTION), parcel)

    def _send(self, parcel: _Parcel, joining: Iterable[StreamKey], now: Instant) -> None:
        if parcel.size:
            self._hub.send_history(
                self._outbox, b"".join(parcel.parts), parcel.frames, parcel.ticks
            )
        for key in joining:
            self._hub.resume_live(self._outbox, key, now)
        self.drop(joining)

    def receive(self, request: HistoryRequest, answer: History | TimeLocation) -> None:
        """Process the result of a read. The ticks themselves are in the blocks."""
        key = request.key
        stream, catch_up = self._hub.stream(key), self.behind.get(key)
        if catch_up is None or self.reading.get(key) != request:
            return
        del self.reading[key]
        if stream is None:
            self._ready.append(key)
            return
        gap = (
            catch_up.add_history(answer, stream)
            if isinstance(answer, History)
            else catch_up.set_place(answer, stream)
        )
        form = self._hub.wire_format_of(self._outbox)
        if gap is not None and form is not None:
            parcel = _Parcel(form, 0)
            self._tell(key, gap, parcel)
            self._outbox.push(b"".join(parcel.parts))
        self._ready.appendleft(key)

    def skip_history(self, request: HistoryRequest, fault: Fault) -> None:
        """Report that history can't be read, and continue with the stream live.

        A gap announces the missed ticks. The error is sent once for each `subscribe`, no matter how
        many streams it names.
        """
        key = request.key
        stream, catch_up = self._hub.stream(key), self.behind.get(key)
        form = self._hub.wire_format_of(self._outbox)
        if stream is None or catch_up is None or self.reading.get(key) != request:
            return
        del self.reading[key]
        missed = catch_up.skip_history(stream)
        if form is not None:
            parcel = _Parcel(form, 0)
            if not catch_up.origin.failed:
                catch_up.origin.failed = True
                detail = f"the history of {key.channel} {key.symbol} can't be read"
                error = protocol.error(fault, detail, catch_up.origin.id)
                parcel.add(EncodedPage(message_frame(error, form.encoding), 0, 0))
            if isinstance(missed, SequenceGap):
                self._tell(key, missed, parcel)
            elif missed is CursorState.RESTART:
                self._restart(stream, parcel)
            self._hub.send_history(
                self._outbox, b"".join(parcel.parts), parcel.frames, parcel.ticks
            )
        self._ready.appendleft(key)

    def fail(self) -> None:
        """Disconnect the client after a bug in serving it."""
        self._outbox.fail()

    def _tell(self, key: StreamKey, gap: SequenceGap, parcel: _Parcel) -> None:
        parcel.add(EncodedPage(message_frame(protocol.gap(key, gap), parcel.form.encoding), 0, 0))
        self._hub.counters.add_gap(gap.reason.value, gap.ticks)

    def ticks_after(self, request: HistoryRequest) -> int | None:
        """How many ticks a read of history is expected to find; None if the hub does not know."""
        stream = self._hub.stream(request.key)
        if stream is None or request.after >= stream.seq:
            return None
        return stream.seq - request.after

    def _hold_tail(self, stream: LiveStream) -> None:
        if stream.key not in self._tails:
            self._tails.add(stream.key)
            stream.hold_tail()

    def _release_tail(self, key: StreamKey) -> None:
        if key in self._tails:
            self._tails.discard(key)
            if (stream := self._hub.stream(key)) is not None:
                stream.release_tail()


class _Parcel:
    """The data for one write to a client."""

    def __init__(self, form: WireFormat, written_us: int) -> None:
        self.form = form
        self.written_us = written_us
        self.parts: list[bytes] = []
        self.size = self.frames = self.ticks = 0

    def add(self, letter: EncodedPage) -> None:
        self.parts.append(letter.data)
        self.size += len(letter.data)
        self.frames += letter.frames
        self.ticks += letter.ticks
