"""Tapes for private replays: each frame is read and encoded once for all clients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from tickcast.tapes import Tape, TapeLibrary
from tickcast.tapes.manifest import FrameEntry, manifest_path
from tickcast.wire.encoding import Encoding, encode_elements
from tickcast.wire.errors import InvalidTape, TapeNotFound
from tickcast.wire.subscriptions import Coverage
from tickcast.wire.ticks import StreamKey, Tick, channel_of
from tickcast.wire.times import Time

CACHE_BYTES: Final = 64 * 1024 * 1024
_TICK_BYTES: Final = 600
"""Approximate memory of a tick with both its encodings."""
_TAPES_MAX: Final = 32
"""Maximum number of tapes whose manifests are kept in memory."""


LISTED_MAX: Final = 1000
"""Maximum number of tapes in a list."""
STREAMS_LISTED_MAX: Final = 1000
"""Maximum number of streams listed for a tape."""
_Signature = tuple[int, int, int]
"""A value that changes when a file changes."""


class TapeListing(NamedTuple):
    """A tape's entry in a list.

    Attributes:
        id: the name of the tape.
        first, last: the earliest and the latest time of its ticks.
        streams: channel and symbol of each stream, at most `STREAMS_LISTED_MAX`.
    """

    id: str
    feed: str
    ticks: int
    first: Time
    last: Time
    streams: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, tape: Tape) -> TapeListing:
        """Build the entry of a tape."""
        manifest = tape.manifest
        streams = ((each.channel, each.symbol) for each in manifest.streams if each.ticks)
        listed = tuple(islice(streams, STREAMS_LISTED_MAX))
        return cls(tape.id, manifest.feed, manifest.ticks, tape.first, tape.last, listed)


class CachedTick:
    """One recorded tick, with its encodings once they have been needed.

    Attributes:
        stream: channel and symbol.
        json, msgpack: the tick encoded as an element of an array, up to the point where a field can
            be added.
    """

    __slots__ = ("_tick", "json", "msgpack", "stream", "time")

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self.time = tick.time
        self.stream = (channel_of(tick), tick.symbol)
        self.json = self.msgpack = b""

    def encode(self, encoding: Encoding) -> bytes:
        """Encode the tick and keep the result in `json` or `msgpack`."""
        element = encode_elements([self._tick], encoding)
        if encoding is Encoding.JSON:
            self.json = element[:-1]
            return self.json
        # The first byte of a map with up to 15 fields contains their number; a tick has fewer.
        self.msgpack = bytes((element[0] + 1,)) + element[1:]
        return self.msgpack


class TapeSource:
    """Selected streams of a tape, as a `tickcast.wire.playback.Source`.

    Raises:
        TapeNotFound: the tape has none of the streams.
    """

    def __init__(self, reels: TapeCache, tape: Tape, coverage: Coverage) -> None:
        found = [
            each
            for each in tape.manifest.streams
            if each.ticks and coverage.covers(StreamKey("", each.channel, each.symbol))
        ]
        if not found:
            raise TapeNotFound(f"{tape.id} has no such streams")
        self._reels = reels
        self._tape = tape
        self._streams = {(each.channel, each.symbol) for each in found}
        self.first = min(each.first for each in found if each.first is not None)
        self.last = max(each.last for each in found if each.last is not None)

    def read(self, start: Time | None) -> Iterator[CachedTick]:
        """Read from the first tick that is not before `start`; may begin with earlier ticks."""
        for frame in self._tape.frames_from(start):
            for cel in self._reels.frame(self._tape, frame):
                if cel.stream in self._streams:
                    yield cel


class TapeCache:
    """A cache for the tapes in a directory: manifests and recently read frames.

    The methods read files and block. Call them, including `clear`, from one thread at a time;
    otherwise the cache would become inconsistent.

    Attributes:
        size_bytes: approximate memory of the frames.
    """

    def __init__(self, library: TapeLibrary, cache_bytes: int = CACHE_BYTES) -> None:
        self._library = library
        self._cache_bytes = cache_bytes
        self._tapes: OrderedDict[str, tuple[_Signature, Tape]] = OrderedDict()
        self._listings: dict[str, tuple[_Signature, TapeListing]] = {}
        self._frames: OrderedDict[tuple[Tape, int], list[CachedTick]] = OrderedDict()
        self.size_bytes = 0

    def tape(self, id_: str) -> Tape:
        """Open a tape by its name; it is reopened if its file has changed.

        Raises:
            TapeNotFound: there is no tape with this name.
            InvalidTape: the tape can't be read.
        """
        signature = _signature(self._library.path_of(id_))
        known = self._tapes.pop(id_, None)
        tape = known[1] if known and known[0] == signature else self._library.open(id_)
        self._tapes[id_] = (signature, tape)
        if len(self._tapes) > _TAPES_MAX:
            self._tapes.popitem(last=False)
        return tape

    def listings(self) -> list[TapeListing]:
        """List the finished tapes by name, leaving out those that can't be read."""
        ids = self._library.list()[:LISTED_MAX]
        known, self._listings = self._listings, {}
        for id_ in ids:
            with suppress(TapeNotFound, InvalidTape, OSError):
                path = self._library.path_of(id_)
                if not manifest_path(path).exists():
                    continue  # Still being written: listing it would mean reading the whole tape.
                signature = _signature(path)
                old = known.get(id_)
                new = (
                    old[1]
                    if old and old[0] == signature
                    else TapeListing.of(self._library.open(id_))
                )
                self._listings[id_] = (signature, new)
        return [listing for _, listing in self._listings.values()]

    def frame(self, tape: Tape, entry: FrameEntry) -> list[CachedTick]:
        """The ticks of a frame.

        Raises:
            InvalidTape: the frame is damaged.
        """
        place = (tape, entry.offset)
        cels = self._frames.get(place)
        if cels is not None:
            self._frames.move_to_end(place)
            return cels
        cels = self._frames[place] = [CachedTick(tick) for tick in tape.ticks_of(entry)]
        self.size_bytes += _TICK_BYTES * len(cels)
        while self.size_bytes > self._cache_bytes and len(self._frames) > 1:
            _, oldest = self._frames.popitem(last=False)
            self.size_bytes -= _TICK_BYTES * len(oldest)
        return cels

    def clear(self) -> None:
        """Drop all frames."""
        self._frames.clear()
        self.size_bytes = 0


def _signature(path: Path) -> _Signature:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
