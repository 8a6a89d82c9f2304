"""Write raw frames to disk, one file per connection, so that they can be replayed.

The lines of a file are `URL <-> T` for the opened connection, `URL <- T: FRAME` for each message
that we sent, and `T: FRAME` for each frame that we received. T is in seconds since the Unix epoch.
`producers/recordings/captures.py` reads this format.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from producers.venues.registry import venue_at
from tickcast.venues import Venue
from tickcast.wire.times import NS_PER_SECOND, Time

_BUFFER_BYTES: Final = 64 * 1024
_FLUSH_AFTER_S: Final = 1.0
_GZIP: Final = 31  # The `wbits` that make zlib write a gzip header.
_LEVEL: Final = 4
_FILES_PER_SECOND_MAX: Final = 100

logger = logging.getLogger("tickcast.venues")


class CaptureFile:
    """The capture of one connection.

    If the disk is full, the capture ends, but the market continues.
    """

    def __init__(self, file: BinaryIO, url: str, opened: Time) -> None:
        self._file: BinaryIO | None = file
        self._url = url.encode()
        self._compressor = zlib.compressobj(_LEVEL, wbits=_GZIP)
        self._buffer = bytearray(b"%b <-> %b\n" % (self._url, _seconds(opened)))
        self._timer: asyncio.TimerHandle | None = None
        self._flush()

    def write_sent(self, message: bytes, time: Time) -> None:
        """Write a message that we sent."""
        self._write(b"%b <- %b: %b\n" % (self._url, _seconds(time), _one_line(message)))

    def write_received(self, frame: bytes, time: Time) -> None:
        """Write a frame from the venue."""
        self._write(b"%b: %b\n" % (_seconds(time), _one_line(frame)))

    def close(self) -> None:
        """Write the rest of the buffer, finish the compressed stream and close the file."""
        self._flush(zlib.Z_FINISH)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: bytes) -> None:
        if self._file is None:
            return
        self._buffer += line
        if len(self._buffer) >= _BUFFER_BYTES:
            self._flush()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_FLUSH_AFTER_S, self._flush)

    # A sync flush makes everything written so far readable. So if the process is killed, the file
    # lacks at most its last second.
    def _flush(self, mode: int = zlib.Z_SYNC_FLUSH) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._file is None:
            return
        data = self._compressor.compress(self._buffer) + self._compressor.flush(mode)
        self._buffer.clear()
        try:
            self._file.write(data)
        except OSError as error:
            logger.error("the capture has ended: %s", error.strerror or error)
            self._file.close()
            self._file = None


class CaptureDirectory:
    """A directory for captures.

    Raises:
        OSError: the directory can't be created.
    """

    def __init__(self, path: Path, venue: Venue) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._venue = venue

    @contextmanager
    def open_file(self, url: str) -> Iterator[CaptureFile | None]:
        """Open a file for one connection. If it can't be created, log that and yield None."""
        now = Time.now()
        if venue_at(url) is not self._venue:
            url = f"{url.partition('#')[0]}#{self._venue.name}"
        try:
            file = CaptureFile(self._create(now), url, now)
        except OSError as error:
            logger.error("no capture: %s", error)
            yield None
            return
        try:
            yield file
        finally:
            file.close()

    def _create(self, now: Time) -> BinaryIO:
        date = datetime.fromtimestamp(now // NS_PER_SECOND, UTC)
        stem = f"{self._venue.name}-{date:%Y%m%dT%H%M%SZ}"
        for number in range(1, _FILES_PER_SECOND_MAX):
            try:
                # Unbuffered, so that written data survives when the process is killed.
                return (self._path / f"{stem}-{number}.txt.gz").open("xb", buffering=0)
            except FileExistsError:
                continue
        raise FileExistsError(f"{self._path}: too many files {stem}-*")


def _seconds(time: Time) -> bytes:
    return b"%d.%09d" % divmod(time, NS_PER_SECOND)


def _one_line(frame: bytes) -> bytes:
    # In JSON, line ends can only be whitespace between tokens.
    return frame.replace(b"\r", b" ").replace(b"\n", b" ")
