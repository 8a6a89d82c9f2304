"""The fan-out: which client gets which stream, and the frames that clients share.

Each tick is encoded once for each wire format in use. At a flush, the new ticks of a group's
streams are joined into one frame, and each of its members gets one write.

The code is synchronous and uses no sockets or clocks.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterable, Sequence
from typing import Final

from feed.fanout.counters import Counters, Totals
from feed.fanout.encoded_ticks import (
    EncodedTicks,
    TickBatch,
    WireFormat,
    encode_batch,
    message_frame,
    pack_frames,
)
from feed.fanout.outbox import Outbox
from feed.fanout.registry import LiveStreams, SubscriberGroups
from feed.fanout.streams import (
    ConflationTimer,
    Conflator,
    Deliveries,
    GroupKey,
    LiveStream,
    Output,
    SubscriberGroup,
    TickBuffer,
)
from tickcast.wire import messages
from tickcast.wire.sequence import GapReason, SequenceGap
from tickcast.wire.ticks import StreamKey, Tick
from tickcast.wire.times import Instant

# After this time without ticks, their delay says nothing about the present.
_LAG_VALID_S: Final = 1.0

logger = logging.getLogger("tickcast.hub")


class Hub:
    """All streams and subscriber groups of one server."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.streams = LiveStreams()
        self.groups = SubscriberGroups(self.streams)
        # The buffers with ticks that were published since the last flush.
        self._unsent: list[TickBuffer] = []
        # When the batches since the last flush were published (0 if unknown), with their number of
        # ticks. Every batch adds a pair, so this is a plain list.
        self._published: list[tuple[int, int]] = []
        # The delay of the last flush that sent ticks, and its time on the monotonic clock.
        self._lag_us = 0
        self._lag_at_s = 0.0

    # -- streams, opened and closed by `feed.ingest.upstream`

    def open_stream(
        self,
        key: StreamKey,
        latest: Tick | None = None,
        published_us: int = 0,
        *,
        epoch: str = "",
        seq: int = 0,
    ) -> None:
        """Start carrying a stream whose last tick has the number `seq`.

        Groups whose wildcards cover the stream receive it from now on.
        """
        self.groups.connect_stream(self.streams.add_stream(key, epoch, seq, latest, published_us))

    def close_stream(self, key: StreamKey) -> None:
        """Stop carrying a stream; clients that hold it receive no further ticks."""
        stream = self.streams.remove_stream(key)
        if stream is not None:
            self.groups.disconnect_stream(stream)

    def is_open(self, key: StreamKey) -> bool:
        """Whether the stream is carried."""
        return key in self.streams.by_key

    def stream(self, key: StreamKey) -> LiveStream | None:
        """The stream, if it is carried."""
        return self.streams.by_key.get(key)

    def is_wanted(self, key: StreamKey) -> bool:
        """Whether some client holds the stream."""
        stream = self.streams.by_key.get(key)
        return stream is not None and (bool(stream.outputs) or self.groups.is_awaited(key))

    def is_named(self, key: StreamKey) -> bool:
        """Whether some client holds the stream by its name, not only by a wildcard.

        A client that is still catching up with the stream counts too, even if it holds it by a
        wildcard.
        """
        stream = self.streams.by_key.get(key)
        return stream is not None and (
            any(
                group.deliveries.names(key)
                for output in stream.outputs.values()
                for groups in output.groups.values()
                for group in groups
            )
            or self.groups.is_awaited(key)
        )

    # -- clients

    def prepare(
        self,
        outbox: Outbox,
        feed: str,
        wire_format: WireFormat,
        deliveries: Deliveries,
        behind: Collection[StreamKey] | None = None,
    ) -> Generator[None, None, SubscriberGroup | None]:
        """Prepare a client's new subscriptions in steps.

        Nothing changes for the client yet. Call `switch` or `groups.discard` right after the last
        step.

        Args:
            behind: streams that the client must not receive until `resume_live` is called for
                them. None if there are no such streams and none can be added.
        """
        if not deliveries:
            return None
        key = GroupKey(feed, wire_format, deliveries)
        return (yield from self.groups.prepare(key, outbox, behind))

    def switch(self, outbox: Outbox, new: SubscriberGroup | None, now: Instant) -> None:
        """Replace a client's subscriptions with those that were prepared.

        Ticks published before this call go to the previous subscribers. Ticks that are being
        conflated for the client are sent at once if the conflation of their stream changes.
        """
        self.flush(now)
        old = self.groups.group_of(outbox)
        if old is not None and old is not new:
            self._send_conflated(outbox, old, new, now)
        self.groups.move(outbox, new)
        if new is not None:
            outbox.change_subscriptions(new.policy_of, new.wire_format)
        elif old is not None:
            outbox.change_subscriptions(lambda _: None, old.wire_format)

    def _send_conflated(
        self, outbox: Outbox, old: SubscriberGroup, new: SubscriberGroup | None, now: Instant
    ) -> None:
        """Send a client the ticks in the conflators that it leaves."""
        encoded: list[EncodedTicks] = []
        for conflator in self.groups.pending_conflators(old):
            if new is None or conflator not in new.outputs:
                batch = conflator.merge(old.excluded.get(conflator, 0))
                if batch is not None:
                    encoded += encode_batch(batch, old.wire_format, now.wall_us)
        self.send(outbox, encoded)

    def resume_live(self, outbox: Outbox, key: StreamKey, now: Instant) -> None:
        """Send a stream live to a client that has received all of its past."""
        group = self.groups.group_of(outbox)
        if group is not None and key in group.behind:
            if self._unsent:
                self.flush(now)
            self.groups.resume_live(group, key)

    def remove(self, outbox: Outbox) -> None:
        """Forget a client."""
        self.groups.move(outbox, None)

    def totals(self, outbox: Outbox) -> Totals:
        """Counts of a client's ticks so far: sent, merged and skipped."""
        totals = Totals()
        totals.add(outbox.totals)
        group = self.groups.group_of(outbox)
        if group is not None:
            totals.add(group.totals)
        return totals

    def wire_format_of(self, outbox: Outbox) -> WireFormat | None:
        """The format in which a client receives ticks; None if it holds no subscription."""
        group = self.groups.group_of(outbox)
        return group.wire_format if group else None

    def drain(self, outbox: Outbox, now: Instant) -> None:
        """Resume sending to a client that reads again."""
        drained = outbox.drain(now.wall_us)
        self.counters.ticks_out += drained.sent
        self.counters.slow_merged += drained.merged
        self.counters.slow_skipped += drained.skipped

    # -- from the broker to the outboxes

    def publish(
        self, key: StreamKey, ticks: Sequence[Tick], published_us: int = 0, epoch: str = ""
    ) -> bool:
        """Accept the next ticks of a stream; return whether a flush is needed."""
        stream = self.streams.by_key.get(key)
        if stream is None or not ticks:
            return False
        self.counters.ticks_in += len(ticks)
        stream.append(ticks, published_us, epoch)
        needs_flush = False
        for output in stream.outputs.values():
            is_first = output.add_ticks(ticks, published_us)
            needs_flush = needs_flush or is_first
            if isinstance(output, TickBuffer):
                self._published.append((published_us, len(ticks)))
                if is_first:
                    self._unsent.append(output)
        return needs_flush

    def announce(self, key: StreamKey, gap: SequenceGap, now: Instant, epoch: str) -> None:
        """Send a gap notice to the clients that hold a stream, after the ticks before the gap.

        Args:
            epoch: the stream's epoch from now on.
        """
        stream = self.streams.by_key.get(key)
        if stream is None:
            return
        self.flush(now)
        for output in list(stream.outputs.values()):
            if isinstance(output, Conflator):
                # Ticks from both sides of a gap can't be merged into one.
                output.timer.pending.pop(output, None)
                flush = _Flush(now)
                flush.add_conflated(output)
                self._write_flush(flush)
            for wire_format, groups in output.groups.items():
                frame = message_frame(messages.gap(key, gap), wire_format.encoding)
                for group in groups:
                    for outbox in group.members:
                        outbox.send_gap(key, gap, frame)
        if epoch != stream.epoch:
            stream.enter_epoch(epoch)
        if gap.reason is not GapReason.EPOCH:
            stream.skip_to(gap.last_seq or stream.seq)
        self.counters.add_gap(gap.reason.value, gap.ticks)

    def flush(self, now: Instant) -> None:
        """Send everything published since the last flush, and conflated ticks that are due."""
        unsent, self._unsent = self._unsent, []
        timers = [
            each
            for each in self.groups.timers.values()
            if each.pending and each.due_s <= now.monotonic_s
        ]
        if len(unsent) == 1 and not timers:
            # The usual case at low rates: there is only one stream, so nothing has to be joined.
            batch = unsent[0].pop_batch()
            self._write(
                (encode_batch(batch, wire_format, now.wall_us), wire_format, groups)
                for wire_format, groups in unsent[0].groups.items()
            )
        elif unsent or timers:
            self._flush_many(unsent, timers, now)
        if self._published:
            self._measure_lag(now)

    def _flush_many(
        self, unsent: Sequence[TickBuffer], timers: Sequence[ConflationTimer], now: Instant
    ) -> None:
        flush = _Flush(now)
        for buffer in unsent:
            flush.add_batch(buffer, buffer.pop_batch())
        for timer in timers:
            for conflator in timer.start_interval(now.monotonic_s):
                flush.add_conflated(conflator)
        self._write_flush(flush)

    def _write_flush(self, flush: _Flush) -> None:
        self._write((each.pop_pending(), each.wire_format, (each,)) for each in flush.groups)
        for group in flush.in_step:
            self.groups.merge_newcomer(group)

    def _write(
        self, writes: Iterable[tuple[Sequence[EncodedTicks], WireFormat, Iterable[SubscriberGroup]]]
    ) -> None:
        """Write once to each member of the groups. This is the server's innermost loop.

        Ticks that an outbox refuses go to its `absorb`. They are counted when the client receives
        them, or as not sent.
        """
        ticks_out = conflated = frames_out = bytes_out = 0
        failed: list[Outbox] = []
        for encoded, wire_format, groups in writes:
            data, frames, sent, merged = pack_frames(encoded, wire_format.encoding)
            written = 0
            for group in groups:
                group.sent += sent
                group.merged += merged
                group.bytes += len(data)
                for outbox in group.members:
                    # This costs nothing unless it raises (zero-cost exceptions of Python 3.11).
                    # Without it, a bug in serving one client would make later ones miss ticks.
                    try:
                        if (write := outbox.write) is not None:
                            write(data)
                            written += 1
                        elif outbox.offer(data):
                            written += 1
                        else:
                            outbox.totals.bytes -= len(data)
                            outbox.absorb(encoded, group.policy_of, wire_format)
                    except Exception:
                        logger.exception("a bug in writing to a client, whose connection ends")
                        failed.append(outbox)
            ticks_out += written * sent
            conflated += written * merged
            frames_out += written * frames
            bytes_out += written * len(data)
        self.counters.add_sent(ticks_out, conflated, frames_out, bytes_out)
        # Not in the loop: a callback must not change the groups that it iterates over.
        for outbox in failed:
            outbox.fail()

    def due_s(self) -> float | None:
        """When conflated ticks next need a flush, on the monotonic clock; None if never."""
        timers = self.groups.timers.values()
        return min((each.due_s for each in timers if each.pending), default=None)

    # -- to one client

    def send(self, outbox: Outbox, encoded: Sequence[EncodedTicks]) -> None:
        """Send ticks of streams that a client holds to this client only."""
        group = self.groups.group_of(outbox)
        if group is None or not encoded:
            return
        data, frames, sent, merged = pack_frames(encoded, group.wire_format.encoding)
        outbox.totals.add(Totals(sent, merged))
        if outbox.offer(data):
            outbox.totals.bytes += len(data)
            self.counters.add_sent(sent, merged, frames, len(data))
        else:
            outbox.absorb(encoded, group.policy_of, group.wire_format)

    def send_history(self, outbox: Outbox, data: bytes, frames: int, ticks: int) -> None:
        """Send frames of ticks from history, made for one client or shared."""
        self.counters.history_out += ticks
        self._push_ticks(outbox, data, frames, ticks)

    def send_replay(self, outbox: Outbox, data: bytes, frames: int, ticks: int) -> None:
        """Send frames of ticks from a tape."""
        self.counters.replayed_out += ticks
        self._push_ticks(outbox, data, frames, ticks)

    def _push_ticks(self, outbox: Outbox, data: bytes, frames: int, ticks: int) -> None:
        outbox.totals.add(Totals(ticks))
        outbox.push(data)
        self.counters.add_sent(ticks, 0, frames, len(data))

    # -- delay

    def _measure_lag(self, now: Instant) -> None:
        """Record the delay of all batches that have just been sent."""
        lag_us = 0
        for published_us, ticks in self._published:
            if published_us:
                lag_us = max(0, now.wall_us - published_us)
                self.counters.lag_s.observe(lag_us / 1e6, ticks)
        self._lag_at_s, self._lag_us = now.monotonic_s, lag_us
        self.counters.flush_ticks.observe(sum([ticks for _, ticks in self._published]))
        self._published.clear()

    def lag_ms(self, now: Instant) -> int:
        """The delay of the last ticks since publication; 0 if none were sent in the last second."""
        return self._lag_us // 1000 if now.monotonic_s - self._lag_at_s <= _LAG_VALID_S else 0


class _Flush:
    """The ticks of one flush, collected by group, so that each group gets them in one write.

    They wait in `SubscriberGroup.pending`.
    """

    __slots__ = ("_written_us", "groups", "in_step")

    def __init__(self, now: Instant) -> None:
        self._written_us = now.wall_us
        # The groups that get ticks, in the order of their first tick.
        self.groups: list[SubscriberGroup] = []
        # Newcomers' groups that the flush has brought in step in all conflation intervals.
        self.in_step: list[SubscriberGroup] = []

    def add_batch(self, output: Output, batch: TickBatch) -> None:
        """Add ticks for every group of an output."""
        touched = self.groups
        for wire_format, groups in output.groups.items():
            encoded = encode_batch(batch, wire_format, self._written_us)
            for group in groups:
                if not group.pending:
                    touched.append(group)
                group.pending += encoded

    def add_conflated(self, conflator: Conflator) -> None:
        """Add the latest tick for every group of a conflator.

        For a group that joined during the interval, the tick replaces fewer ticks.
        """
        newcomers = [
            (group, group.excluded[conflator])
            for groups in conflator.groups.values()
            for group in groups
            if conflator in group.excluded
        ]
        for group, _ in newcomers:
            del conflator.groups[group.wire_format][group]
        batch = conflator.merge()
        if batch is not None:
            self.add_batch(conflator, batch)
        for group, excluded in newcomers:
            conflator.groups[group.wire_format][group] = None
            del group.excluded[conflator]
            if not group.excluded:
                self.in_step.append(group)
            if (batch := conflator.merge(excluded)) is not None:
                if not group.pending:
                    self.groups.append(group)
                group.pending += encode_batch(batch, group.wire_format, self._written_us)
        conflator.clear()
