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

    Args:
        new, held: the subscriptions in the request and those that the client holds, reduced to what
            it may see.

    Attributes:
        behind: the streams whose past the client wants.
    """

    def __init__(
        self,
        hub: Hub,
        feed: str,
        request: Subscribe,
        new: Iterable[Subscription],
        held: Iterable[Subscription],
    ) -> None:
        self._hub = hub
        self._feed = feed
        self._request = request
        self._new = tuple(new)
        self._held = tuple(held)
        self._origin = HistoryRequest(request.id)
        self._present: list[LiveStream] = []
        # For each of `_present`: its latest tick and the encoded snapshot, if one is wanted.
        self._snapshots: list[tuple[Tick | None, list[EncodedTicks]]] = []
        # The same streams as in `_present`, sorted by key.
        self._in_order: list[LiveStream] = []
        self._opened = hub.streams.opened
        self.behind: dict[StreamKey, StreamCursor] = {}

    @property
    def present(self) -> int:
        """Number of streams that begin at the present."""
        return len(self._present)

    def collect(self, form: WireFormat, written_us: int) -> Steps:
        """Find the streams and encode their snapshots, in steps."""
        for streams in batches(self._hub.streams.covered(self._feed, self._new, self._held)):
            for stream in streams:
                if self._sort_out(stream) and self._request.snapshot:
                    self._snapshots.append(_snapshot(stream, form, written_us))
            yield
        if self._request.positions:
            self._in_order = sorted(self._present, key=_key_of)
            yield

    def complete(self, audience: SubscriberGroup | None, form: WireFormat, written_us: int) -> None:
        """Add streams that were opened during `collect`, and update the snapshots.

        Args:
            audience: the audience prepared for the client.
        """
        new, held = Coverage(self._new), Coverage(self._held)
        collected = len(self._in_order)
        for stream in self._hub.streams.opened_since(self._opened):
            key = stream.key
            if key.feed != self._feed or not new.covers(key) or held.covers(key):
                continue
            if self._sort_out(stream):
                self._snapshots.append((None, []))
                self._in_order.append(stream)
            elif audience is not None:
                self._hub.groups.withhold(audience, stream)
        if len(self._in_order) > collected:
            self._in_order.sort(key=_key_of)
        if self._request.snapshot:
            snapshots = self._snapshots
            for place, stream in enumerate(self._present):
                if snapshots[place][0] is not stream.latest:
                    snapshots[place] = _snapshot(stream, form, written_us)

    def positions(self) -> list[dict[str, Any]]:
        """Positions of the streams that begin at the present, in the form of `resume`."""
        return build_positions(
            (stream.key, (stream.epoch, stream.seq)) for stream in self._in_order if stream.seq
        )

    def snapshot(self) -> list[EncodedTicks]:
        """The latest tick of each stream that has one, marked as a snapshot."""
        return [piece for _, pieces in self._snapshots for piece in pieces]

    def _sort_out(self, stream: LiveStream) -> bool:
        """Record where a stream begins; return True if that is the present."""
        request = self._request
        position = request.resume.match(stream.key)
        if position is None and request.start is None:
            self._present.append(stream)
            return True
        start = request.start if position is None else None
        self.behind[stream.key] = StreamCursor(position, start, self._origin)
        return False


def _snapshot(
    stream: LiveStream, form: WireFormat, written_us: int
) -> tuple[Tick | None, list[EncodedTicks]]:
    """The latest tick of a stream, and its encoding marked as a snapshot."""
    latest = stream.latest
    if latest is None:
        return None, []
    chunk = TickBatch(stream.key, [replace(latest, snap=True)], [stream.published_us])
    return latest, encode_batch(chunk, form, written_us)
