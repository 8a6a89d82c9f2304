"""Checks tapes against their manifests and their numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tickcast.tapes.format import Frame, decode_line, decompress, frames_at, open_for_reading
from tickcast.tapes.manifest import Manifest, id_of
from tickcast.tapes.stats import StreamStats, TapeStats
from tickcast.tapes.tape import TapeScan, read_manifest
from tickcast.wire.errors import InvalidTape

# The first bytes of every zstd frame (RFC 8878, section 3.1.1).
_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SEARCHED_BYTES: Final = 64 * 1024 * 1024


class TapeReport(NamedTuple):
    """The result of checking one tape."""

    # The contents of the file.
    manifest: Manifest
    faults: list[str]
    # The size of the incomplete end that a killed writer left; this is not a fault.
    torn_bytes: int
    stats: TapeStats


def verify(path: Path) -> TapeReport:
    """Read through a tape, and check its frames, its numbers and its manifest.

    Raises TapeNotFound, or InvalidTape if the file is not a tape or can't be read at all.
    """
    stated = read_manifest(path)
    with open_for_reading(path) as number:
        scan = TapeScan(path, number)
        size = os.fstat(number).st_size
        found = scan.manifest
        faults = list(scan.stats.faults)
        torn = size - found.bytes
        if torn and (stated is None or not stated.complete):
            faults += _faults_after(path, number, found.bytes)
        elif torn:
            faults.append(f"damaged at byte {found.bytes:,}, {torn:,} bytes can't be read")
    if stated is not None:
        faults += _differences(stated, found)
    found.complete = stated is not None and stated.complete
    return TapeReport(found, faults, torn, scan.stats)


def _differences(stated: Manifest, found: Manifest) -> Iterator[str]:
    """Describe the differences between the manifest and the file."""
    if stated.content != found.content:
        yield f"the content is {found.content}, but {stated.content} in the manifest"
    for name in ("feed", "source", "ticks", "first", "last", "bytes", "streams", "gaps", "frames"):
        if getattr(stated, name) != getattr(found, name):
            yield f"the manifest is wrong about {name}"


def _faults_after(path: Path, number: int, offset: int) -> Iterator[str]:
    """Look for whole frames after a torn end: they mean damage, and not only a killed writer."""
    try:
        rest = os.pread(number, _SEARCHED_BYTES, offset)
    except OSError as error:
        raise InvalidTape(f"{path}: {error.strerror}") from None
    # The damage itself begins at 0, perhaps with these bytes.
    place = rest.find(_MAGIC, 1)
    while place >= 0:
        for frame in frames_at(number, offset + place):
            if _has_lines(frame):
                yield f"damaged at byte {offset:,}, and readable again at byte {frame.offset:,}"
                return
            break
        place = rest.find(_MAGIC, place + 1)


def _has_lines(frame: Frame) -> bool:
    try:
        for line in decompress(frame):
            decode_line(line)
    except InvalidTape:
        return False
    return True


class TapeChain:
    """Checks that tapes of one feed follow each other, stream by stream."""

    def __init__(self) -> None:
        self._ends: dict[tuple[str, str, str], tuple[str, StreamStats]] = {}

    def check(self, path: Path, report: TapeReport) -> Iterable[str]:
        """Add a tape, and report ticks that are missing before it or are on an earlier tape too."""
        faults = []
        for stream in report.stats:
            key = (report.manifest.feed, stream.channel, stream.symbol)
            before = self._ends.get(key)
            if before is not None and (fault := _fault_between(*before, stream)):
                faults.append(fault)
            self._ends[key] = (id_of(path), stream)
        return faults


def _fault_between(id_: str, before: StreamStats, stream: StreamStats) -> str | None:
    if before.seq is None or stream.begin is None:
        return None
    epoch, seq = stream.begin
    name = f"{stream.channel}/{stream.symbol}"
    if epoch and before.epoch and epoch != before.epoch:
        return f"{name}: not in the epoch of the end of {id_}"
    if seq > before.seq:
        return f"{name}: {before.seq + 1:,} to {seq:,} are missing after {id_}"
    if seq < before.seq:
        return f"{name}: {seq + 1:,} to {before.seq:,} are on {id_} as well"
    return None
