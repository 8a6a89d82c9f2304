"""The fan-out: which client gets which stream, and the frames they share.

A tick is encoded once for each form that someone wants; an audience joins what its streams saw
since the last flush into one frame; and each of its members gets one write.

Plain synchronous code: nothing here waits, and no socket or clock is involved.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from feed import protocol
from feed.audience import AnyTap, Audience, AudienceKey, ConflatedTap, Group, Tap, Wanted
from feed.audiences import Audiences
from feed.batch import Gap, GapReason
from feed.counters import Counters, Totals
from feed.outbox import Outbox
from feed.pieces import Chunk, Form, Piece, encode_pieces, message_frame, pack_frames
from feed.streams import Stream, Streams
from feed.ticks import StreamKey, Subscription, Tick
from feed.times import Moment


class Hub:
    """All streams and audiences of one server."""

    def __init__(self, counters: Counters | None = None) -> None:
        self.counters = counters or Counters()
        self._streams = Streams()
        self._audiences = Audiences(self._streams)
        self._dirty: list[Tap] = []
        self._arrivals: list[tuple[int, int]] = []
        self._lag = (0.0, 0)

    # -- streams, opened and closed by whoever feeds the hub

    def open_stream(
        self,
        key: StreamKey,
        latest: Tick | None = None,
        published_us: int = 0,
        *,
        epoch: str = "",
        seq: int = 0,
    ) -> None:
        """Start carrying a stream, which stands at `seq`.

        Audiences whose wildcards cover it get it from now on.
        """
        self._audiences.connect(self._streams.open(key, epoch, seq, latest, published_us))

    def close_stream(self, key: StreamKey) -> None:
        """Stop carrying a stream; clients that hold it simply see no more ticks of it."""
        stream = self._streams.close(key)
        if stream is not None:
            self._audiences.disconnect(stream)

    def is_open(self, key: StreamKey) -> bool:
        """Whether the stream is carried."""
        return key in self._streams

    def stream(self, key: StreamKey) -> Stream | None:
        """The stream, if it is carried."""
        return self._streams.get(key)

    def is_wanted(self, key: StreamKey) -> bool:
        """Whether some client holds the stream."""
        stream = self._streams.get(key)
        return stream is not None and (bool(stream.taps) or self._audiences.is_awaited(key))

    def is_named(self, key: StreamKey) -> bool:
        """Whether some client holds the stream by its name, not only by a wildcard."""
        stream = self._streams.get(key)
        return stream is not None and any(
            audience.deliveries.names(key)
            for tap in stream.taps.values()
            for audiences in tap.audiences.values()
            for audience in audiences
        )

    def covers(self, key: StreamKey) -> bool:
        """Whether some client's wildcard matches the stream, carried or not."""
        return any(True for _ in self._audiences.covering(key))

    def has_clients(self, feed: str) -> bool:
        """Whether some client holds a subscription in the feed."""
        return self._audiences.has_feed(feed)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many streams are carried, and how many audiences there are."""
        return len(self._streams), len(self._audiences)

    # -- clients

    def subscribe(
        self,
        outbox: Outbox,
        feed: str,
        form: Form,
        wanted: Wanted,
        now: Moment,
        behind: Collection[StreamKey] = (),
    ) -> None:
        """Make these the client's subscriptions, in place of those it had.

        Ticks published before this call are sent to the subscribers of before it. What was being
        conflated for the client goes out at once where it is conflated otherwise from now on.

        Args:
            behind: streams that the client is not to get until `catch_up` is called for them.
        """
        self.flush(now)
        old = self._audiences.of(outbox)
        key = AudienceKey(feed, form, wanted)
        new = self._audiences.find(key, outbox, behind) if wanted else None
        if old is not None and old is not new:
            self._settle(outbox, old, new, now)
        self._audiences.move(outbox, new)
        outbox.follow(new.policy_of if new else _nothing, form)

    def catch_up(self, outbox: Outbox, key: StreamKey, now: Moment) -> None:
        """The client has got all of a stream so far: from now on it gets it like the others."""
        audience = self._audiences.of(outbox)
        if audience is not None and key in audience.behind:
            if self._dirty:
                self.flush(now)
            self._audiences.catch_up(audience, key)

    def remove(self, outbox: Outbox) -> None:
        """Forget a client."""
        self._audiences.move(outbox, None)

    def totals(self, outbox: Outbox) -> Totals:
        """What has become of a client's ticks so far."""
        totals = Totals()
        totals.add(outbox.totals)
        audience = self._audiences.of(outbox)
        if audience is not None:
            totals.add(audience.totals)
        return totals

    def newly_covered(
        self,
        feed: str,
        subscriptions: Iterable[Subscription],
        besides: Iterable[Subscription] = (),
    ) -> list[Stream]:
        """Every carried stream that the subscriptions cover, and `besides` do not."""
        known = self._streams.covered(feed, besides)
        return [each for each in self._streams.covered(feed, subscriptions) if each not in known]

    def send(self, outbox: Outbox, chunks: Sequence[Chunk], now: Moment) -> None:
        """Send ticks to one client alone, of streams that it holds."""
        audience = self._audiences.of(outbox)
        if audience is not None and chunks:
            form = audience.form
            pieces = [
                piece for chunk in chunks for piece in encode_pieces(chunk, form, now.wall_us)
            ]
            self._send_pieces(outbox, pieces, audience)

    def form_of(self, outbox: Outbox) -> Form | None:
        """How a client wants its ticks; None if it holds no subscription."""
        audience = self._audiences.of(outbox)
        return audience.form if audience else None

    def drain(self, outbox: Outbox, now: Moment) -> None:
        """A client reads again."""
        released = outbox.drain(now.wall_us)
        self.counters.ticks_out += released.sent
        self.counters.slow_merged += released.merged
        self.counters.slow_skipped += released.skipped

    # -- the flow

    def publish(
        self, key: StreamKey, ticks: Sequence[Tick], published_us: int = 0, epoch: str = ""
    ) -> bool:
        """Take the next ticks of a stream. True if that makes a flush necessary."""
        stream = self._streams.get(key)
        if stream is None or not ticks:
            return False
        self.counters.ticks_in += len(ticks)
        stream.take(ticks, published_us, epoch)
        if not stream.taps:
            return False
        due = False
        for tap in stream.taps.values():
            is_first = tap.take(ticks, published_us)
            due = due or is_first
            if isinstance(tap, Tap):
                self._arrivals.append((published_us, len(ticks)))
                if is_first:
                    self._dirty.append(tap)
        return due

    def announce(self, key: StreamKey, gap: Gap, now: Moment, epoch: str) -> None:
        """Tell everybody who holds a stream what can't be had of it, after what came before.

        Args:
            epoch: the one that the stream is in from now on.
        """
        stream = self._streams.get(key)
        if stream is None:
            return
        self.flush(now)
        for tap in list(stream.taps.values()):
            if isinstance(tap, ConflatedTap):
                # Ticks from both sides of a gap can't be merged into one.
                tap.stop_waiting()
                self._give_conflated([tap], now)
            for form, audiences in tap.audiences.items():
                frame = message_frame(protocol.gap(key, gap), form.encoding)
                for audience in audiences:
                    for outbox in audience.members:
                        outbox.tell(key, gap, frame)
        if epoch != stream.epoch:
            stream.enter(epoch)
        if gap.reason is not GapReason.EPOCH:
            stream.skip_to(gap.last_seq or stream.seq)
        self.counters.add_gap(gap.reason.value, gap.ticks)

    def flush(self, now: Moment) -> None:
        """Send everything published since the last flush, and what is conflated if it is due."""
        dirty, self._dirty = self._dirty, []
        groups = self._streams.due_groups(now.steady_s)
        if len(dirty) == 1 and not groups:
            # While little flows it is mostly so, and nothing has to be gathered.
            chunk = dirty[0].give()
            self._deliver(
                (encode_pieces(chunk, form, now.wall_us), form, audiences)
                for form, audiences in dirty[0].audiences.items()
            )
        elif dirty or groups:
            self._flush_many(dirty, groups, now)
        self._note_lag(now)

    def _flush_many(self, dirty: Sequence[Tap], groups: Sequence[Group], now: Moment) -> None:
        touched: list[Audience] = []
        for tap in dirty:
            self._gather(tap, tap.give(), now, touched)
        conflated = [tap for group in groups for tap in group.begin_interval(now.steady_s)]
        self._give_conflated(conflated, now, touched)

    def _give_conflated(
        self, taps: Iterable[ConflatedTap], now: Moment, touched: list[Audience] | None = None
    ) -> None:
        """Deliver what conflated taps have, together with what was gathered before."""
        touched = [] if touched is None else touched
        settled: list[Audience] = []
        for tap in taps:
            self._gather_conflated(tap, now, touched, settled)
        self._deliver((audience.take(), audience.form, (audience,)) for audience in touched)
        for audience in settled:
            self._audiences.unite(audience)

    def due_s(self) -> float | None:
        """When the next flush is due for the sake of what is conflated, on the steady clock."""
        return self._streams.due_s()

    def _gather(self, tap: AnyTap, chunk: Chunk, now: Moment, touched: list[Audience]) -> None:
        """Let every audience of a tap have a chunk with its next write."""
        for form, audiences in tap.audiences.items():
            pieces = encode_pieces(chunk, form, now.wall_us)
            for audience in audiences:
                if not audience.gathered:
                    touched.append(audience)
                audience.gathered += pieces

    def _gather_conflated(
        self, tap: ConflatedTap, now: Moment, touched: list[Audience], settled: list[Audience]
    ) -> None:
        """The same for one tick, which counts for less in audiences that came late."""
        late: list[tuple[Audience, int]] = []
        for audiences in tap.audiences.values():
            late += [(each, each.known[tap]) for each in audiences if tap in each.known]
        for audience, _ in late:
            del tap.audiences[audience.form][audience]
        whole = tap.merged()
        if whole is not None:
            self._gather(tap, whole, now, touched)
        for audience, known in late:
            tap.audiences[audience.form][audience] = None
            del audience.known[tap]
            if not audience.known:
                settled.append(audience)
            if (own := tap.merged(known)) is not None:
                if not audience.gathered:
                    touched.append(audience)
                audience.gathered += encode_pieces(own, audience.form, now.wall_us)
        tap.clear()

    def _deliver(self, letters: Iterable[tuple[Sequence[Piece], Form, Iterable[Audience]]]) -> None:
        """One write for each member of the audiences: the innermost loop of all."""
        ticks_out = conflated = frames_out = bytes_out = 0
        for pieces, form, audiences in letters:
            data, frames, sent, merged = pack_frames(pieces, form.encoding)
            taken = 0
            for audience in audiences:
                audience.sent += sent
                audience.merged += merged
                audience.bytes += len(data)
                for outbox in audience.members:
                    if (write := outbox.write) is not None:
                        write(data)
                        taken += 1
                    elif outbox.offer(data):
                        taken += 1
                    else:
                        outbox.totals.bytes -= len(data)
                        outbox.absorb(pieces, audience.policy_of, form)
            ticks_out += taken * sent
            conflated += taken * merged
            frames_out += taken * frames
            bytes_out += taken * len(data)
        self.counters.add_sent(ticks_out, conflated, frames_out, bytes_out)

    def send_frames(self, outbox: Outbox, data: bytes, frames: int, ticks: int) -> None:
        """Send one client frames of ticks from history, made for it or shared."""
        self.counters.history_out += ticks
        self._send_made(outbox, data, frames, ticks)

    def send_replayed(self, outbox: Outbox, data: bytes, frames: int, ticks: int) -> None:
        """Send one client frames of ticks from a tape."""
        self.counters.replayed_out += ticks
        self._send_made(outbox, data, frames, ticks)

    def _send_made(self, outbox: Outbox, data: bytes, frames: int, ticks: int) -> None:
        outbox.totals.add(Totals(ticks))
        outbox.push(data)
        self.counters.add_sent(ticks, 0, frames, len(data))

    def _send_pieces(self, outbox: Outbox, pieces: list[Piece], audience: Audience) -> None:
        """Pieces for one member alone."""
        data, frames, sent, merged = pack_frames(pieces, audience.form.encoding)
        outbox.totals.add(Totals(sent, merged))
        if outbox.offer(data):
            outbox.totals.bytes += len(data)
            self.counters.add_sent(sent, merged, frames, len(data))
        else:
            outbox.absorb(pieces, audience.policy_of, audience.form)

    def lag_ms(self, now: Moment) -> int:
        """How long the ticks sent in the last second have been on their way from the publisher."""
        at_s, lag_us = self._lag
        return lag_us // 1000 if now.steady_s - at_s <= 1 else 0

    def _note_lag(self, now: Moment) -> None:
        if not self._arrivals:
            return
        lags = self.counters.lag_s
        lag_us = 0
        for published_us, ticks in self._arrivals:
            if published_us:
                lag_us = max(0, now.wall_us - published_us)
                lags.observe(lag_us / 1e6, ticks)
        self._lag = (now.steady_s, lag_us)
        self.counters.flush_ticks.observe(sum([ticks for _, ticks in self._arrivals]))
        self._arrivals.clear()

    def _settle(self, outbox: Outbox, old: Audience, new: Audience | None, now: Moment) -> None:
        """Give a client what was being conflated for it, where that is not going on."""
        chunks = [
            chunk
            for tap in old.taps
            if isinstance(tap, ConflatedTap)
            and (new is None or tap not in new.taps)
            and (chunk := tap.merged(old.known.get(tap, 0))) is not None
        ]
        if chunks:
            pieces = [p for chunk in chunks for p in encode_pieces(chunk, old.form, now.wall_us)]
            self._send_pieces(outbox, pieces, old)


def _nothing(stream: StreamKey) -> None:
    """The policy of a client that holds no stream."""
