"""Where each stream of a `subscribe` begins: in the past, at a snapshot, or with the next tick."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from msgspec.structs import replace

from feed.fanout.encoded_ticks import EncodedTicks, TickBatch, WireFormat, encode_batch
from feed.fanout.hub import Hub
from feed.fanout.streams import LiveStream, SubscriberGroup
from feed.history.cursor import HistoryRequest, StreamCursor
from feed.transport.loop_time import Steps, batches
from tickcast.wire.actions import Subscribe
from tickcast.wire.positions import build_positions
from tickcast.wire.subscriptions import Coverage, Subscription
from tickcast.wire.ticks import StreamKey, Tick

_key_of = attrgetter("key")


class StartingPoints:
    """The streams that a client did not hold before, collected in steps.

    `collect` does the long part of the work. Then `complete` adds what has changed meanwhile; the
    reply must follow without interruption.
    """

    def __init__(self, hub: Hub, feed: str, request: Subscribe) -> None:
        self._hub = hub
        self._feed = feed
        self._request = request
        self._requested: Iterable[Subscription] = ()
        self._held: Iterable[Subscription] = ()
        self._history_request = HistoryRequest(request.id)
        # The streams that begin at the present.
        self._live: list[LiveStream] = []
        # For each of `_live`: its latest tick and the encoded snapshot, if one is requested.
        self._snapshots: list[tuple[Tick | None, list[EncodedTicks]]] = []
        # The same streams as in `_live`, sorted by key.
        self._sorted: list[LiveStream] = []
        # The number of streams opened when `collect` began.
        self._opened = 0
        # The streams whose history the client requested.
        self.behind: dict[StreamKey, StreamCursor] = {}

    @property
    def live_count(self) -> int:
        """Number of streams that begin at the present."""
        return len(self._live)

    def collect(
        self,
        requested: Iterable[Subscription],
        held: Iterable[Subscription],
        wire_format: WireFormat,
        written_us: int,
    ) -> Steps:
        """Find the streams and encode their snapshots, in steps.

        Args:
            requested, held: the subscriptions in the request and those that the client holds,
                reduced to what it may see.
        """
        self._requested, self._held = tuple(requested), tuple(held)
        self._opened = self._hub.streams.opened
        streams = self._hub.streams.covered(self._feed, self._requested, self._held)
        for batch in batches(streams):
            for stream in batch:
                if self._begins_live(stream) and self._request.snapshot:
                    self._snapshots.append(_snapshot(stream, wire_format, written_us))
            yield
        if self._request.positions:
            self._sorted = sorted(self._live, key=_key_of)
            yield

    def complete(
        self, group: SubscriberGroup | None, wire_format: WireFormat, written_us: int
    ) -> None:
        """Add streams that were opened during `collect`, and update the snapshots.

        Args:
            group: the group prepared for the client.
        """
        requested, held = Coverage(self._requested), Coverage(self._held)
        collected = len(self._sorted)
        for stream in self._hub.streams.opened_since(self._opened):
            key = stream.key
            if key.feed != self._feed or not requested.covers(key) or held.covers(key):
                continue
            if self._begins_live(stream):
                self._snapshots.append((None, []))
                self._sorted.append(stream)
            elif group is not None:
                self._hub.groups.withhold(group, stream)
        if len(self._sorted) > collected:
            self._sorted.sort(key=_key_of)
        if self._request.snapshot:
            for index, stream in enumerate(self._live):
                if self._snapshots[index][0] is not stream.latest:
                    self._snapshots[index] = _snapshot(stream, wire_format, written_us)

    def positions(self) -> list[dict[str, Any]] | None:
        """Positions of the streams that begin at the present, as in `resume`, if requested."""
        if not self._request.positions:
            return None
        return build_positions(
            (stream.key, (stream.epoch, stream.seq)) for stream in self._sorted if stream.seq
        )

    def snapshot(self) -> list[EncodedTicks]:
        """The latest tick of each stream that has one, marked as a snapshot."""
        return [each for _, encoded in self._snapshots for each in encoded]

    def _begins_live(self, stream: LiveStream) -> bool:
        """Record where a stream begins; return True if that is the present."""
        request = self._request
        position = request.resume.match(stream.key)
        if position is None and request.start is None:
            self._live.append(stream)
            return True
        start = request.start if position is None else None
        self.behind[stream.key] = StreamCursor(position, start, self._history_request)
        return False


def _snapshot(
    stream: LiveStream, wire_format: WireFormat, written_us: int
) -> tuple[Tick | None, list[EncodedTicks]]:
    """The latest tick of a stream, and its encoding marked as a snapshot."""
    latest = stream.latest
    if latest is None:
        return None, []
    batch = TickBatch(stream.key, [replace(latest, snap=True)], [stream.published_us])
    return latest, encode_batch(batch, wire_format, written_us)
