"""Raw frames on disk, a file for each connection, so that they can be replayed.

A line each: `URL <-> T` where it was opened, `URL <- T: FRAME` what we sent, `T: FRAME` what came;
T is seconds since the Unix epoch. `producers/captures.py` reads it.
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

from feed.times import NS_PER_SECOND, Time
from producers.venues.registry import venue_at
from producers.venues.venue import Venue

_BUFFER_MAX_BYTES: Final = 64 * 1024
_BUFFER_MAX_S: Final = 1.0
_GZIP: Final = 31
_LEVEL: Final = 4
_TRIES: Final = 100

logger = logging.getLogger("tickcast.venues")


class Session:
    """One connection's frames.

    What is buffered is written once a second, and so that all before it can be read whatever
    becomes of the rest: a process that is killed leaves a file that lacks its last second. When the
    disk is full the capture ends, and the market goes on.
    """

    def __init__(self, file: BinaryIO, url: str, opened: Time) -> None:
        self._file: BinaryIO | None = file
        self._url = url.encode()
        self._pack = zlib.compressobj(_LEVEL, wbits=_GZIP)
        self._buffer = bytearray(b"%b <-> %b\n" % (self._url, _seconds(opened)))
        self._timer: asyncio.TimerHandle | None = None
        self._flush(zlib.Z_SYNC_FLUSH)

    def sent(self, message: bytes, when: Time) -> None:
        """Keep a message of ours."""
        self._keep(b"%b <- %b: %b\n" % (self._url, _seconds(when), _one_line(message)))

    def received(self, frame: bytes, when: Time) -> None:
        """Keep a frame of the venue's."""
        self._keep(b"%b: %b\n" % (_seconds(when), _one_line(frame)))

    def close(self) -> None:
        """Write what is left, and the end."""
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
        OSError: it can't be made.
    """

    def __init__(self, directory: Path, venue: Venue) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._venue = venue

    @contextmanager
    def session(self, url: str) -> Iterator[Session | None]:
        """A file for one connection; None, if it can't be made: that is logged."""
        now = Time.now()
        if venue_at(url) is not self._venue:
            url = f"{url.partition('#')[0]}#{self._venue.name}"
        try:
            session = Session(self._create(now), url, now)
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
                # Unbuffered: what is written is out of our hands.
                return (self._directory / f"{stem}-{number}.txt.gz").open("xb", buffering=0)
            except FileExistsError:
                continue
        raise FileExistsError(f"{self._directory}: too many files {stem}-*")


def _seconds(time: Time) -> bytes:
    return b"%d.%09d" % divmod(time, NS_PER_SECOND)


def _one_line(frame: bytes) -> bytes:
    """The frame without line ends: in JSON they can only be blanks between words."""
    return frame.replace(b"\r", b" ").replace(b"\n", b" ")
