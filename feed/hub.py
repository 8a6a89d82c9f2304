"""The fan-out: which client gets which stream, and the frames they share.

Clients that get exactly the same bytes form an *audience*. A tick is encoded once for each encoding
that someone wants; an audience joins what its streams saw since the last flush into one frame; and
each of its members gets one write.

Plain synchronous code: nothing here waits, and no socket or clock is involved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from feed.frames import build_frame
from feed.outbox import Outbox
from feed.ticks import (
    Coverage,
    Encoding,
    StreamKey,
    Subscription,
    Tick,
    encode_elements,
    join_elements,
)

FRAME_TICKS_MAX: Final = 500
"""Ticks in one frame at the most, so that a burst stays below what client libraries accept."""


class Piece(NamedTuple):
    """Some ticks of one stream, encoded to stand inside an array; at most `FRAME_TICKS_MAX`."""

    elements: bytes
    size: int


class AudienceKey(NamedTuple):
    """What clients must have in common to get the same bytes."""

    feed: str
    encoding: Encoding
    subscriptions: frozenset[Subscription]


class Audience:
    """Clients with the same feed, encoding and subscriptions."""

    __slots__ = ("coverage", "encoding", "gathered", "key", "members", "streams")

    def __init__(self, key: AudienceKey) -> None:
        self.key = key
        self.coverage = Coverage(key.subscriptions)
        self.members: dict[Outbox, None] = {}
        self.streams: dict[Stream, None] = {}
        self.encoding = key.encoding
        self.gathered: list[Piece] = []

    def take(self) -> bytes:
        """The frames of all pieces gathered since the last call."""
        gathered, self.gathered = self.gathered, []
        return _build_frames(gathered, self.encoding)

    def covers(self, stream: StreamKey) -> bool:
        """Whether one of its wildcards matches the stream."""
        return stream.feed == self.key.feed and self.coverage.covers_by_wildcard(stream)


class Stream:
    """One stream that the broker feeds, and the audiences that want it."""

    __slots__ = ("audiences", "key", "latest", "pending")

    def __init__(self, key: StreamKey, latest: Tick | None) -> None:
        self.key = key
        self.latest = latest
        self.pending: list[Tick] = []
        self.audiences: dict[Audience, None] = {}


class Hub:
    """All streams and audiences of one server."""

    def __init__(self) -> None:
        self._streams: dict[StreamKey, Stream] = {}
        self._audiences: dict[AudienceKey, Audience] = {}
        self._wildcard_audiences: dict[Audience, None] = {}
        self._audience_of: dict[Outbox, Audience] = {}
        self._dirty: list[Stream] = []

    # -- streams, opened and closed by whoever feeds the hub

    def open_stream(self, key: StreamKey, latest: Tick | None = None) -> None:
        """Start carrying a stream; audiences whose wildcards cover it get it from now on."""
        stream = self._streams[key] = Stream(key, latest)
        for audience in self._wildcard_audiences:
            if audience.covers(key):
                _connect(audience, stream)

    def close_stream(self, key: StreamKey) -> None:
        """Stop carrying a stream; clients that hold it simply see no more ticks of it."""
        stream = self._streams.pop(key, None)
        if stream is not None:
            stream.pending.clear()
            for audience in stream.audiences:
                del audience.streams[stream]
            stream.audiences.clear()

    def is_open(self, key: StreamKey) -> bool:
        """Whether the stream is carried."""
        return key in self._streams

    def is_wanted(self, key: StreamKey) -> bool:
        """Whether some client holds the stream."""
        stream = self._streams.get(key)
        return stream is not None and bool(stream.audiences)

    def is_named(self, key: StreamKey) -> bool:
        """Whether some client holds the stream by its name, not only by a wildcard."""
        stream = self._streams.get(key)
        return stream is not None and any(
            audience.coverage.names(key) for audience in stream.audiences
        )

    def covers(self, key: StreamKey) -> bool:
        """Whether some client's wildcard matches the stream, carried or not."""
        return any(audience.covers(key) for audience in self._wildcard_audiences)

    def has_clients(self, feed: str) -> bool:
        """Whether some client holds a subscription in the feed."""
        return any(key.feed == feed for key in self._audiences)

    # -- clients

    def subscribe(
        self,
        outbox: Outbox,
        feed: str,
        encoding: Encoding,
        subscriptions: frozenset[Subscription],
    ) -> None:
        """Make these the client's subscriptions, in place of those it had.

        Ticks published before this call are sent to the subscribers of before it.
        """
        self.flush()
        self._leave(outbox)
        if subscriptions:
            key = AudienceKey(feed, encoding, subscriptions)
            audience = self._audiences.get(key) or self._gather(key)
            audience.members[outbox] = None
            self._audience_of[outbox] = audience

    def remove(self, outbox: Outbox) -> None:
        """Forget a client."""
        self._leave(outbox)

    def latest(
        self,
        feed: str,
        subscriptions: Iterable[Subscription],
        besides: Iterable[Subscription] = (),
    ) -> list[Tick]:
        """The latest tick of every carried stream that the subscriptions cover.

        Streams covered by `besides` are left out.
        """
        known = self._covered(feed, besides)
        return [
            stream.latest
            for stream in self._covered(feed, subscriptions)
            if stream.latest is not None and stream not in known
        ]

    # -- the flow

    def publish(self, key: StreamKey, ticks: Sequence[Tick]) -> bool:
        """Take the next ticks of a stream. True if that makes a flush necessary."""
        stream = self._streams.get(key)
        if stream is None or not ticks:
            return False
        stream.latest = ticks[-1]
        if not stream.audiences:
            return False
        if not stream.pending:
            self._dirty.append(stream)
        stream.pending.extend(ticks)
        return True

    def flush(self) -> None:
        """Send everything published since the last flush."""
        touched: list[Audience] = []
        for stream in self._dirty:
            pieces: dict[Encoding, list[Piece]] = {}
            for audience in stream.audiences:
                encoding = audience.encoding
                if encoding not in pieces:
                    pieces[encoding] = _encode_pieces(stream.pending, encoding)
                if not audience.gathered:
                    touched.append(audience)
                audience.gathered += pieces[encoding]
            stream.pending.clear()
        self._dirty.clear()
        for audience in touched:
            if data := audience.take():
                for outbox in audience.members:
                    outbox.push(data)

    # -- audiences

    def _gather(self, key: AudienceKey) -> Audience:
        audience = self._audiences[key] = Audience(key)
        if audience.coverage.has_wildcards:
            self._wildcard_audiences[audience] = None
        for stream in self._covered(key.feed, key.subscriptions):
            _connect(audience, stream)
        return audience

    def _leave(self, outbox: Outbox) -> None:
        audience = self._audience_of.pop(outbox, None)
        if audience is None:
            return
        del audience.members[outbox]
        if not audience.members:
            del self._audiences[audience.key]
            self._wildcard_audiences.pop(audience, None)
            for stream in audience.streams:
                del stream.audiences[audience]

    def _covered(self, feed: str, subscriptions: Iterable[Subscription]) -> dict[Stream, None]:
        """Every carried stream that the subscriptions cover, once each."""
        coverage = Coverage(sorted(subscriptions))
        named = coverage.named_in(feed)
        found = {self._streams[key]: None for key in named if key in self._streams}
        if coverage.has_wildcards:
            for key, stream in self._streams.items():
                if key.feed == feed and coverage.covers_by_wildcard(key):
                    found[stream] = None
        return found


def tick_frames(ticks: Sequence[Tick], encoding: Encoding) -> bytes:
    """Ticks as one frame, or as several where they are many."""
    return _build_frames(_encode_pieces(ticks, encoding), encoding)


def _encode_pieces(ticks: Sequence[Tick], encoding: Encoding) -> list[Piece]:
    return [
        Piece(encode_elements(part, encoding), len(part))
        for start in range(0, len(ticks), FRAME_TICKS_MAX)
        if (part := ticks[start : start + FRAME_TICKS_MAX])
    ]


def _build_frames(pieces: Sequence[Piece], encoding: Encoding) -> bytes:
    """Pieces in as few frames as hold them."""
    frames: list[bytes] = []
    elements: list[bytes] = []
    count = 0
    for piece, size in pieces:
        if count + size > FRAME_TICKS_MAX:
            frames.append(build_frame(join_elements(elements, count, encoding), encoding))
            elements, count = [], 0
        elements.append(piece)
        count += size
    if elements:
        frames.append(build_frame(join_elements(elements, count, encoding), encoding))
    return b"".join(frames)


def _connect(audience: Audience, stream: Stream) -> None:
    audience.streams[stream] = None
    stream.audiences[audience] = None
