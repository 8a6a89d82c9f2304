"""Tapes for private replays: each frame is read and encoded once for all clients."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
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
# Approximate memory of a tick with both its encodings.
_TICK_BYTES: Final = 600
# Maximum number of tapes whose manifests are kept in memory.
_TAPES_MAX: Final = 32
# Maximum number of tapes in a list, and of streams that are listed for a tape.
LISTED_MAX: Final = 1000
STREAMS_LISTED_MAX: Final = 1000

# Inode, size and modification time: changes when a file changes.
_Signature = tuple[int, int, int]


class TapeListing(NamedTuple):
    """A tape's entry in a list."""

    # The name of the tape.
    id: str
    feed: str
    ticks: int
    # The earliest and the latest time of its ticks.
    first: Time
    last: Time
    # Channel and symbol of each stream, at most `STREAMS_LISTED_MAX`.
    streams: tuple[tuple[str, str], ...]


class CachedTick:
    """One recorded tick, with its encodings once they have been needed."""

    __slots__ = ("_tick", "json", "msgpack", "stream", "time")

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self.time = tick.time
        # Channel and symbol.
        self.stream = (channel_of(tick), tick.symbol)
        # Encoded as an element of an array, up to the point where a field can be added.
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
    """Selected streams of a tape, as a `tickcast.wire.playback.TickSource`.

    Raises TapeNotFound if the tape has none of the streams.
    """

    def __init__(self, cache: TapeCache, tape: Tape, coverage: Coverage) -> None:
        found = [
            each
            for each in tape.manifest.streams
            if each.ticks and coverage.covers(StreamKey("", each.channel, each.symbol))
        ]
        if not found:
            raise TapeNotFound(f"{tape.id} has no such streams")
        self._cache = cache
        self._tape = tape
        self._streams = {(each.channel, each.symbol) for each in found}
        self.first = min(each.first for each in found if each.first is not None)
        self.last = max(each.last for each in found if each.last is not None)

    def read(self, start: Time | None) -> Iterator[CachedTick]:
        """Read from the first tick that is not before `start`; may begin with earlier ticks."""
        for frame in self._tape.frames_from(start):
            for tick in self._cache.read_frame(self._tape, frame):
                if tick.stream in self._streams:
                    yield tick


class TapeCache:
    """A cache for the tapes in a directory: manifests and recently read frames.

    The methods read files and block. Call them, including `clear`, from one thread at a time;
    otherwise the cache would become inconsistent.
    """

    def __init__(self, library: TapeLibrary, cache_bytes: int = CACHE_BYTES) -> None:
        self._library = library
        self._cache_bytes = cache_bytes
        # The signature of its file is part of the key, so a tape is reopened if it has changed.
        self._open = lru_cache(_TAPES_MAX)(self._open_signed)
        self._listing = lru_cache(LISTED_MAX)(self._listing_of)
        self._frames: OrderedDict[tuple[Tape, int], list[CachedTick]] = OrderedDict()
        # Approximate memory of the frames.
        self.size_bytes = 0

    def open_tape(self, id_: str) -> Tape:
        """Open a tape by its name; it is reopened if its file has changed.

        Raises TapeNotFound or InvalidTape.
        """
        return self._open(id_, _signature(self._library.path_of(id_)))

    def _open_signed(self, id_: str, signature: _Signature) -> Tape:
        return self._library.open(id_)

    def list_tapes(self) -> list[TapeListing]:
        """List the finished tapes by name, leaving out those that can't be read."""
        listings: list[TapeListing] = []
        for id_ in self._library.list()[:LISTED_MAX]:
            with suppress(TapeNotFound, InvalidTape, OSError):
                path = self._library.path_of(id_)
                # Listing a tape that is still being written would mean reading all of it.
                if manifest_path(path).exists():
                    listings.append(self._listing(id_, _signature(path)))
        return listings

    def _listing_of(self, id_: str, signature: _Signature) -> TapeListing:
        # Not `_open`: only a few manifests stay in memory.
        tape = self._library.open(id_)
        manifest = tape.manifest
        streams = ((each.channel, each.symbol) for each in manifest.streams if each.ticks)
        listed = tuple(islice(streams, STREAMS_LISTED_MAX))
        return TapeListing(id_, manifest.feed, manifest.ticks, tape.first, tape.last, listed)

    def read_frame(self, tape: Tape, frame: FrameEntry) -> list[CachedTick]:
        """The ticks of a frame. Raises InvalidTape."""
        key = (tape, frame.offset)
        ticks = self._frames.get(key)
        if ticks is not None:
            self._frames.move_to_end(key)
            return ticks
        ticks = self._frames[key] = [CachedTick(tick) for tick in tape.ticks_of(frame)]
        self.size_bytes += _TICK_BYTES * len(ticks)
        while self.size_bytes > self._cache_bytes and len(self._frames) > 1:
            _, oldest = self._frames.popitem(last=False)
            self.size_bytes -= _TICK_BYTES * len(oldest)
        return ticks

    def clear(self) -> None:
        """Drop all frames."""
        self._frames.clear()
        self.size_bytes = 0


def _signature(path: Path) -> _Signature:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
