"""Read ticks from captured raw frames of a venue, as `tickcast live --capture` writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from producers.recordings.files import (
    READ_ERRORS,
    BadRow,
    Recording,
    describe_error,
    ignore_bad_row,
    open_bytes,
    peek,
)
from producers.venues.normalizer import Normalizer
from producers.venues.registry import venue_at, venue_names
from tickcast.venues import Notice, Venue
from tickcast.wire.errors import BadFrame, InvalidRecording, InvalidVenue
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

_LINE_BYTES_MAX: Final = 16 * 1024 * 1024
_FIRST_LINE_BYTES_MAX: Final = 64 * 1024
_CONNECTED: Final = re.compile(rb"(wss?://\S+) <-> \d+(?:\.\d{1,9})?\s*", re.ASCII)
_SENT: Final = re.compile(rb"wss?://\S+ <- \d+(?:\.\d{1,9})?: ", re.ASCII)
_RECEIVED: Final = re.compile(rb"(\d{1,19}(?:\.\d{1,9})?): (.*)", re.ASCII | re.DOTALL)


def is_capture(path: Path) -> bool:
    """Return whether a file, plain or compressed, begins like a capture."""
    # No more than a line: the file may be cut off after a few.
    line = peek(path, lambda content: content.readline(_FIRST_LINE_BYTES_MAX))
    return _CONNECTED.fullmatch(line) is not None


class CaptureRecording(Recording):
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

    def __init__(self, path: Path, on_bad_row: BadRow = ignore_bad_row) -> None:
        super().__init__(path, on_bad_row)
        try:
            with open_bytes(path) as (content, _):
                connected = _CONNECTED.fullmatch(content.readline(_FIRST_LINE_BYTES_MAX))
            if connected is None:
                raise InvalidRecording("no capture: its first line is not `URL <-> TIME`")
            _venue_of(connected[1])
        except (BadFrame, InvalidRecording, *READ_ERRORS) as error:
            raise InvalidRecording(f"{path}: {describe_error(error)}") from None

    def _read(self, start: Time | None) -> Iterator[Tick]:
        number = 0
        parser = _CaptureParser()
        with open_bytes(self._path) as (content, _):
            try:
                while line := content.readline(_LINE_BYTES_MAX):
                    number += 1
                    try:
                        yield from parser.parse(line)
                    except (BadFrame, ValueError) as error:
                        self._on_bad_row(number, str(error))
            except EOFError:
                # A killed process leaves such a file.
                self._on_bad_row(number + 1, "cut off")
            except READ_ERRORS as error:
                raise InvalidRecording(
                    f"{self._path}: damaged after line {number}: {describe_error(error)}"
                ) from None


class _CaptureParser:
    """Parses the lines of a capture one by one."""

    def __init__(self) -> None:
        # A file may contain several connections, in theory to several venues.
        self._normalizers: dict[str, Normalizer] = {}
        self._current: Normalizer | None = None

    def parse(self, line: bytes) -> Iterable[Tick]:
        """Return the ticks of a line. Raises BadFrame or ValueError."""
        if len(line) >= _LINE_BYTES_MAX:
            raise BadFrame(f"longer than {_LINE_BYTES_MAX} bytes")
        received = _RECEIVED.fullmatch(line.rstrip(b"\r\n"))
        if received is not None:
            if self._current is None:
                raise BadFrame("a frame of an unknown venue")
            time = Time.from_number(received[1].decode(), "s")
            content = self._current.process(received[2], time)
            return () if isinstance(content, Notice) else content
        connected = _CONNECTED.fullmatch(line)
        if connected is not None:
            self._current = None
            venue = _venue_of(connected[1])
            self._current = self._normalizers.setdefault(venue.name, Normalizer(venue))
        elif line.strip() and _SENT.match(line) is None:
            raise BadFrame(f"neither a frame nor a connection: {line[:40]!r}")
        return ()


def _venue_of(url: bytes) -> Venue:
    try:
        venue = venue_at(url.decode("utf-8", "replace"))
    except InvalidVenue as error:
        raise BadFrame(str(error)) from None
    if venue is None:
        raise BadFrame(f"no known venue at {url[:60]!r}; known are {', '.join(venue_names())}")
    return venue
