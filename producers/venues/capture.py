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
from producers.venues.venue import Venue
from tickcast.wire.times import NS_PER_SECOND, Time

_BUFFER_MAX_BYTES: Final = 64 * 1024
_BUFFER_MAX_S: Final = 1.0
_GZIP: Final = 31
_LEVEL: Final = 4
_TRIES: Final = 100

logger = logging.getLogger("tickcast.venues")


class CapturedSession:
    """The capture file of one connection.

    The buffer is written once a second, with a flush of the compressor that keeps everything
    written so far readable. If the process is killed, the file lacks at most its last second. If
    the disk is full, the capture ends, but the market continues.
    """

    def __init__(self, file: BinaryIO, url: str, opened: Time) -> None:
        self._file: BinaryIO | None = file
        self._url = url.encode()
        self._pack = zlib.compressobj(_LEVEL, wbits=_GZIP)
        self._buffer = bytearray(b"%b <-> %b\n" % (self._url, _seconds(opened)))
        self._timer: asyncio.TimerHandle | None = None
        self._flush(zlib.Z_SYNC_FLUSH)

    def sent(self, message: bytes, when: Time) -> None:
        """Write a message that we sent."""
        self._keep(b"%b <- %b: %b\n" % (self._url, _seconds(when), _one_line(message)))

    def received(self, frame: bytes, when: Time) -> None:
        """Write a frame from the venue."""
        self._keep(b"%b: %b\n" % (_seconds(when), _one_line(frame)))

    def close(self) -> None:
        """Write the rest of the buffer, finish the compressed stream and close the file."""
        self._flush(zlib.Z_FINISH)
        if self._file is not None:
            self._file.close()
            self._file = None

    def _keep(self, line: bytes) -> None:
        if self._file is None:
            return
        self._buffer += line
        if len(self._buffer) >= _BUFFER_MAX_BYTES:
            self._flush(zlib.Z_SYNC_FLUSH)
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_BUFFER_MAX_S, self._flush, zlib.Z_SYNC_FLUSH)

    def _flush(self, mode: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._file is None:
            return
        data = self._pack.compress(self._buffer) + self._pack.flush(mode)
        self._buffer.clear()
        try:
            self._file.write(data)
        except OSError as error:
            logger.error("the capture has ended: %s", error.strerror or error)
            self._file.close()
            self._file = None


class Capture:
    """A directory for captures.

    Raises:
        OSError: the directory can't be created.
    """

    def __init__(self, directory: Path, venue: Venue) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._venue = venue

    @contextmanager
    def session(self, url: str) -> Iterator[CapturedSession | None]:
        """Open a file for one connection. If it can't be created, log that and yield None."""
        now = Time.now()
        if venue_at(url) is not self._venue:
            url = f"{url.partition('#')[0]}#{self._venue.name}"
        try:
            session = CapturedSession(self._create(now), url, now)
        except OSError as error:
            logger.error("no capture: %s", error)
            yield None
            return
        try:
            yield session
        finally:
            session.close()

    def _create(self, now: Time) -> BinaryIO:
        when = datetime.fromtimestamp(now // NS_PER_SECOND, UTC)
        stem = f"{self._venue.name}-{when:%Y%m%dT%H%M%SZ}"
        for number in range(1, _TRIES):
            try:
                # Unbuffered, so that written data survives when the process is killed.
                return (self._directory / f"{stem}-{number}.txt.gz").open("xb", buffering=0)
            except FileExistsError:
                continue
        raise FileExistsError(f"{self._directory}: too many files {stem}-*")


def _seconds(time: Time) -> bytes:
    return b"%d.%09d" % divmod(time, NS_PER_SECOND)


def _one_line(frame: bytes) -> bytes:
    """Replace line ends by blanks. In JSON, they can only be whitespace between tokens."""
    return frame.replace(b"\r", b" ").replace(b"\n", b" ")
