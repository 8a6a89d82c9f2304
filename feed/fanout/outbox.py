"""One client's bounded outbound queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from feed.fanout.backlog import Backlog, PolicyOf
from feed.fanout.counters import Totals
from feed.fanout.encoded_ticks import EncodedTicks, WireFormat
from tickcast.wire.actions import SlowPolicy
from tickcast.wire.sequence import SequenceGap
from tickcast.wire.ticks import StreamKey

# Extra room for messages other than ticks, which can't be merged or skipped.
MESSAGES_ROOM_BYTES: Final = 64 * 1024
# Held data is written in portions of this size, with a check after each whether the sink takes
# more.
PORTION_BYTES: Final = 64 * 1024


class Sink(Protocol):
    """Where an outbox puts its bytes: a socket's transport, or a list in a test."""

    # True while the other side is not reading and nothing more should be written.
    paused: bool
    # Called when `paused` becomes True, and when `write` is replaced.
    on_pause: Callable[[], None]
    # Writes complete frames immediately.
    write: Callable[[bytes], None]

    def buffered(self) -> int:
        """Bytes written that the operating system has not accepted yet."""


class Outbox:
    """Passes frames on while the client reads, and holds them while it does not, up to a limit.

    The limit applies to the bytes held here plus those that the sink has not sent yet. Ticks over
    the limit go into a backlog, which keeps one tick per stream and merges or skips the others
    according to the client's policies. If the policy is `close`, or if other messages do not fit,
    the outbox closes permanently and calls `on_overflow` once; the connection must then end.
    `fail` closes the outbox in the same way.
    """

    __slots__ = ("_backlog", "_held", "_held_bytes", "_max_bytes", "_on_failure", "_on_overflow",
                 "_sink", "closed", "extended", "totals", "write")  # fmt: skip

    def __init__(
        self,
        sink: Sink,
        max_bytes: int,
        on_overflow: Callable[[], None],
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self._sink = sink
        self._max_bytes = max_bytes
        self._on_overflow = on_overflow
        self._on_failure = on_failure or _do_nothing
        # None while everything can be passed on at once.
        self._held: list[bytes] | None = None
        self._held_bytes = 0
        self._backlog: Backlog | None = None
        # Counts of the client's ticks, except those that its group counts for all its members.
        self.totals = Totals()
        self.closed = False
        # Whether the client understands gap notices.
        self.extended = False
        # The sink's `write` while `offer` would call it directly, otherwise None. A flush checks
        # this first, which saves a call for each client.
        self.write: Callable[[bytes], None] | None = None
        sink.on_pause = self._stop_direct_writes
        self._resume_direct_writes()

    @property
    def waiting_bytes(self) -> int:
        """Pushed bytes that have not left this process yet."""
        return self._held_bytes + self._sink.buffered()

    @property
    def is_slow(self) -> bool:
        """Whether ticks are being merged or skipped because the client does not read."""
        return self._backlog is not None

    def push(self, data: bytes) -> None:
        """Send complete frames of messages other than ticks, after everything pushed before."""
        self.totals.bytes += len(data)
        if not self.offer(data) and not self.closed:
            if self.waiting_bytes + len(data) > self._max_bytes + MESSAGES_ROOM_BYTES:
                self._overflow()
            else:
                self._hold(data)

    def offer(self, data: bytes) -> bool:
        """Send complete frames; return False if the client is too slow, then call `absorb`."""
        if self._held is None and not self._sink.paused:
            self._sink.write(data)
            return True
        if self.closed or self._backlog is not None:
            return False
        if self.waiting_bytes + len(data) > self._max_bytes:
            return False
        self._hold(data)
        return True

    def absorb(
        self, refused: Sequence[EncodedTicks], policy_of: PolicyOf, wire_format: WireFormat
    ) -> None:
        """Put ticks that `offer` refused into the backlog, and count them as not sent."""
        for each in refused:
            self.totals.sent -= each.count
            self.totals.merged -= each.merged
        for each in refused:
            if self.closed:
                break
            policy = policy_of(each.batch.key)
            if policy is SlowPolicy.CLOSE:
                self._overflow()
            elif policy is not None:
                if self._backlog is None:
                    self._backlog = Backlog(wire_format)
                    self._held = self._held or []
                    self.write = None
                self._backlog.add_batch(each.batch, policy)

    def send_gap(self, key: StreamKey, gap: SequenceGap, frame: bytes) -> None:
        """Send a gap notice, in order with the stream's ticks; `frame` is the encoded notice."""
        if self.extended and not self.closed:
            if self._backlog is not None:
                self._backlog.add_gap(key, gap)
            else:
                self.push(frame)

    def change_subscriptions(self, policy_of: PolicyOf, wire_format: WireFormat) -> None:
        """Adapt the backlog to a change of the client's subscriptions or format."""
        if self._backlog is not None:
            self._backlog.change_subscriptions(policy_of, wire_format)

    def drain(self, written_us: int) -> Totals:
        """Send held data to a client that reads again, then its backlog.

        Args:
            written_us: the time now, microseconds since the Unix epoch.

        Returns:
            Counts of the ticks sent from the backlog.
        """
        drained = Totals()
        if self._held is None or self._sink.paused:
            self._resume_direct_writes()
            return drained
        self._write_held()
        if self._held:
            return drained
        self._held = None
        while self._backlog and not self._sink.paused:
            data, part = self._backlog.pop_frames(written_us)
            self._sink.write(data)
            part.bytes = len(data)
            drained.add(part)
        if self._backlog:
            self._held = []
        else:
            self._backlog = None
            self._resume_direct_writes()
        self.totals.add(drained)
        return drained

    def close(self) -> None:
        """Drop held data and ignore everything pushed from now on."""
        self.closed = True
        # Break the reference cycle with the connection.
        self._on_overflow = self._on_failure = _do_nothing
        self.write = None
        # Not None: `offer` would write to the sink.
        self._held = []
        self._held_bytes = 0
        self._backlog = None

    def fail(self) -> None:
        """Close after a bug in serving this client, so that only its connection ends."""
        on_failure = self._on_failure
        self.close()
        on_failure()

    def _overflow(self) -> None:
        on_overflow = self._on_overflow
        self.close()
        on_overflow()

    def _hold(self, data: bytes) -> None:
        if self._held is None:
            self._held = []
        self._held.append(data)
        self._held_bytes += len(data)

    def _write_held(self) -> None:
        """Write held data in portions until the sink pauses.

        Writing everything at once would exceed the sink's limit. Under TLS this matters, because
        data that has been encrypted and passed on no longer counts in `buffered`.
        """
        held = deque(self._held or ())
        while held and not self._sink.paused:
            portion = [held.popleft()]
            size = len(portion[0])
            while held and size + len(held[0]) <= PORTION_BYTES:
                portion.append(held.popleft())
                size += len(portion[-1])
            self._held_bytes -= size
            self._sink.write(b"".join(portion))
        self._held = list(held)

    def _stop_direct_writes(self) -> None:
        self.write = None

    def _resume_direct_writes(self) -> None:
        if self._held is None and not self._sink.paused:
            self.write = self._sink.write


def _do_nothing() -> None:
    pass
