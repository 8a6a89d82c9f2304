"""Read ticks from captured raw frames of a venue, as `tickcast live --capture` writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

from producers.recordings.files import DAMAGE, opened
from producers.venues.normalizer import Normalizer
from producers.venues.registry import VENUES, venue_at
from producers.venues.venue import Notice, Venue
from tickcast.wire.errors import BadFrame, InvalidRecording
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

_LINE_MAX: Final = 16 * 1024 * 1024
_FIRST_LINE_MAX: Final = 64 * 1024
_CONNECTED: Final = re.compile(rb"(wss?://\S+) <-> \d+(?:\.\d{1,9})?\s*", re.ASCII)
_SENT: Final = re.compile(rb"wss?://\S+ <- \d+(?:\.\d{1,9})?: ", re.ASCII)
_RECEIVED: Final = re.compile(rb"(\d{1,19}(?:\.\d{1,9})?): (.*)", re.ASCII | re.DOTALL)


def is_capture(path: Path) -> bool:
    """Return whether a file, plain or compressed, begins like a capture."""
    try:
        with opened(path) as (lines, _):
            return (
                _CONNECTED.fullmatch(cast("BinaryIO", lines.buffer).readline(_FIRST_LINE_MAX))
                is not None
            )
    except (OSError, InvalidRecording, *DAMAGE):
        return False


class CaptureRecording:
    """A capture, read frame by frame. It yields the ticks that `tickcast live` produced, in order.

    The address in the file determines the venue. Frames without ticks are skipped, and so are
    duplicate ticks, such as those that venues repeat after a reconnection.

    Args:
        path: a plain, gzip or zstd file. The content determines which.
        on_bad_row: called with the line number and the error of each line or frame that can't be
            parsed, and of a truncated end. Such lines are skipped.

    Raises:
        InvalidRecording: the file can't be read, isn't a capture, or is from an unknown venue.
    """

    def __init__(
        self, path: Path, on_bad_row: Callable[[int, str], None] = lambda line, error: None
    ) -> None:
        self._path = path
        self._on_bad_row = on_bad_row
        self._file: BinaryIO | None = None
        try:
            self.size_bytes = path.stat().st_size
            with opened(path) as (lines, _):
                first = cast("BinaryIO", lines.buffer).readline(_FIRST_LINE_MAX)
        except OSError as error:
            raise InvalidRecording(f"{path}: {error.strerror or error}") from None
        except DAMAGE as error:
            raise InvalidRecording(f"{path}: {error}") from None
        connected = _CONNECTED.fullmatch(first)
        if connected is None:
            raise InvalidRecording(f"{path}: no capture: its first line is not `URL <-> TIME`")
        try:
            _venue_of(connected[1])
        except BadFrame as error:
            raise InvalidRecording(f"{path}: {error}") from None

    @property
    def position_bytes(self) -> int:
        """The current position in the stored file, in bytes."""
        return self._file.tell() if self._file else 0

    def __iter__(self) -> Iterator[Tick]:
        number = 0
        with opened(self._path) as (lines, stored):
            self._file = stored
            data = cast("BinaryIO", lines.buffer)
            reader = _Reader()
            try:
                while line := data.readline(_LINE_MAX):
                    number += 1
                    try:
                        yield from reader.read(line)
                    except (BadFrame, ValueError) as error:
                        self._on_bad_row(number, str(error))
            except EOFError:
                self._on_bad_row(number + 1, "cut off")
            except (OSError, *DAMAGE) as error:
                raise InvalidRecording(
                    f"{self._path}: damaged after line {number}: {error}"
                ) from None
            finally:
                self._file = None


class _Reader:
    """Parses the lines of a capture one by one."""

    def __init__(self) -> None:
        self._normalizers: dict[str, Normalizer] = {}
        self._normalizer: Normalizer | None = None

    def read(self, line: bytes) -> Iterable[Tick]:
        """Return the ticks of a line. Raises BadFrame or ValueError."""
        if len(line) >= _LINE_MAX:
            raise BadFrame(f"longer than {_LINE_MAX} bytes")
        received = _RECEIVED.fullmatch(line.rstrip(b"\r\n"))
        if received is not None:
            if self._normalizer is None:
                raise BadFrame("a frame of no known venue")
            content = self._normalizer.process(
                received[2], Time.from_number(received[1].decode(), "s")
            )
            return () if isinstance(content, Notice) else content
        connected = _CONNECTED.fullmatch(line)
        if connected is not None:
            self._normalizer = None
            venue = _venue_of(connected[1])
            self._normalizer = self._normalizers.setdefault(venue.name, Normalizer(venue))
        elif line.strip() and _SENT.match(line) is None:
            raise BadFrame(f"neither a frame nor a connection: {line[:40]!r}")
        return ()


def _venue_of(url: bytes) -> Venue:
    venue = venue_at(url.decode("utf-8", "replace"))
    if venue is None:
        raise BadFrame(f"no known venue at {url[:60]!r}; known are {', '.join(VENUES)}")
    return venue
