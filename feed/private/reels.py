"""Tapes as they are played to single clients: what one needs is read and encoded once for all."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from feed.encoding import Encoding, encode_elements
from feed.errors import InvalidTape, TapeNotFound
from feed.tapes import Library, Tape
from feed.tapes.manifest import FrameEntry
from feed.tapes.names import manifest_path
from feed.ticks import Coverage, StreamKey, Tick, channel_of
from feed.times import Time

CACHE_BYTES: Final = 64 * 1024 * 1024
_TICK_BYTES: Final = 600
"""What a tick takes in memory with both its encodings, roughly."""
_TAPES_MAX: Final = 32
"""Tapes that are kept open, so to speak: their manifests."""


LISTED_MAX: Final = 1000
"""Tapes in a list."""
STREAMS_LISTED_MAX: Final = 1000
"""Streams of a tape in a list."""
_Signature = tuple[int, int, int]
"""Tells when a file has changed."""


class Listing(NamedTuple):
    """What a list says of a tape.

    Attributes:
        id: its name.
        first, last: the least and the greatest time of its ticks.
        streams: channel and symbol of each, up to `STREAMS_LISTED_MAX` of them.
    """

    id: str
    feed: str
    ticks: int
    first: Time
    last: Time
    streams: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, tape: Tape) -> Listing:
        """A tape's."""
        manifest = tape.manifest
        streams = ((each.channel, each.symbol) for each in manifest.streams if each.ticks)
        listed = tuple(islice(streams, STREAMS_LISTED_MAX))
        return cls(tape.id, manifest.feed, manifest.ticks, tape.first, tape.last, listed)


class Cel:
    """One recorded tick, with its encodings once somebody has needed them.

    Attributes:
        stream: channel and symbol.
        json, msgpack: the tick as it stands inside an array, up to where a field can be added.
    """

    __slots__ = ("_tick", "json", "msgpack", "stream", "time")

    def __init__(self, tick: Tick) -> None:
        self._tick = tick
        self.time = tick.time
        self.stream = (channel_of(tick), tick.symbol)
        self.json = self.msgpack = b""

    def encode(self, encoding: Encoding) -> bytes:
        """Make and keep what `json` or `msgpack` holds."""
        element = encode_elements([self._tick], encoding)
        if encoding is Encoding.JSON:
            self.json = element[:-1]
            return self.json
        # A map of up to 15 fields says how many in its first byte; a tick has fewer.
        self.msgpack = bytes((element[0] + 1,)) + element[1:]
        return self.msgpack


class Reel:
    """Some streams of a tape: a `feed.playback.Source`.

    Raises:
        TapeNotFound: the tape has none of them.
    """

    def __init__(self, reels: Reels, tape: Tape, coverage: Coverage) -> None:
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

    def read(self, start: Time | None) -> Iterator[Cel]:
        """The ticks from the first on whose time is not before `start`; it may begin earlier."""
        for frame in self._tape.frames_from(start):
            for cel in self._reels.frame(self._tape, frame):
                if cel.stream in self._streams:
                    yield cel


class Reels:
    """What of the tapes of a folder is in memory: their manifests, and the frames read lately.

    Its methods read files, and block. They are called by one thread at a time, `clear` included:
    what is kept would not add up otherwise.

    Attributes:
        size_bytes: what the frames take, roughly.
    """

    def __init__(self, library: Library, cache_bytes: int = CACHE_BYTES) -> None:
        self._library = library
        self._cache_bytes = cache_bytes
        self._tapes: OrderedDict[str, tuple[_Signature, Tape]] = OrderedDict()
        self._listings: dict[str, tuple[_Signature, Listing]] = {}
        self._frames: OrderedDict[tuple[Tape, int], list[Cel]] = OrderedDict()
        self.size_bytes = 0

    def tape(self, id_: str) -> Tape:
        """A tape by its name; opened anew when its file has changed.

        Raises:
            TapeNotFound: there is none of this name.
            InvalidTape: it can't be read.
        """
        signature = _signature(self._library.path_of(id_))
        known = self._tapes.pop(id_, None)
        tape = known[1] if known and known[0] == signature else self._library.open(id_)
        self._tapes[id_] = (signature, tape)
        if len(self._tapes) > _TAPES_MAX:
            self._tapes.popitem(last=False)
        return tape

    def listings(self) -> list[Listing]:
        """The finished tapes, by name; what can't be read is left out."""
        ids = self._library.list()[:LISTED_MAX]
        known, self._listings = self._listings, {}
        for id_ in ids:
            with suppress(TapeNotFound, InvalidTape, OSError):
                path = self._library.path_of(id_)
                if not manifest_path(path).exists():
                    continue  # It is being written: to list it, it would have to be read through.
                signature = _signature(path)
                old = known.get(id_)
                new = old[1] if old and old[0] == signature else Listing.of(self._library.open(id_))
                self._listings[id_] = (signature, new)
        return [listing for _, listing in self._listings.values()]

    def frame(self, tape: Tape, entry: FrameEntry) -> list[Cel]:
        """The ticks of a frame.

        Raises:
            InvalidTape: it is damaged.
        """
        place = (tape, entry.offset)
        cels = self._frames.get(place)
        if cels is not None:
            self._frames.move_to_end(place)
            return cels
        cels = self._frames[place] = [Cel(tick) for tick in tape.ticks_of(entry)]
        self.size_bytes += _TICK_BYTES * len(cels)
        while self.size_bytes > self._cache_bytes and len(self._frames) > 1:
            _, oldest = self._frames.popitem(last=False)
            self.size_bytes -= _TICK_BYTES * len(oldest)
        return cels

    def clear(self) -> None:
        """Let go of the frames."""
        self._frames.clear()
        self.size_bytes = 0


def _signature(path: Path) -> _Signature:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
