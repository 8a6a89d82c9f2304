"""Checks tapes against their manifests and their numbers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tickcast.tapes.format import Frame, decode_line, decompress, frames_at, opened
from tickcast.tapes.manifest import Manifest, id_of
from tickcast.tapes.stats import StreamStats, TapeStats
from tickcast.tapes.tape import Scan, read_manifest
from tickcast.wire.errors import InvalidTape

_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_SEARCHED_BYTES: Final = 64 * 1024 * 1024


class TapeReport(NamedTuple):
    """The result of checking one tape.

    Attributes:
        manifest: the contents of the file.
        faults: the errors found.
        torn_bytes: the size of the incomplete end that a killed writer left; this is not a fault.
        ledger: the streams of the tape.
    """

    manifest: Manifest
    faults: list[str]
    torn_bytes: int
    ledger: TapeStats


def verify(path: Path) -> TapeReport:
    """Read through a tape, and check its frames, its numbers and its manifest.

    Raises:
        TapeNotFound: there is no such file.
        InvalidTape: the file is not a tape, or can't be read at all.
    """
    told = read_manifest(path)
    with opened(path) as number:
        scan = Scan(path, number)
        size = os.fstat(number).st_size
        found = scan.manifest
        faults = list(scan.ledger.faults)
        torn = size - found.bytes
        if torn and (told is None or not told.complete):
            faults += _faults_behind(path, number, found.bytes)
        elif torn:
            faults.append(f"damaged at byte {found.bytes:,}, {torn:,} bytes can't be read")
    if told is not None:
        faults += _differences(told, found)
    complete = told is not None and told.complete
    found.complete = complete
    return TapeReport(found, faults, torn, scan.ledger)


def _differences(told: Manifest, found: Manifest) -> Iterator[str]:
    """Describe the differences between the manifest and the file."""
    if told.content != found.content:
        yield f"the content is {found.content}, and {told.content} by the manifest"
    for name in ("feed", "source", "ticks", "first", "last", "bytes", "streams", "gaps", "frames"):
        if getattr(told, name) != getattr(found, name):
            yield f"the manifest does not tell the truth about {name}"


def _faults_behind(path: Path, number: int, offset: int) -> Iterator[str]:
    """Look for whole frames after a torn end: they mean damage, and not only a killed writer."""
    try:
        rest = os.pread(number, _SEARCHED_BYTES, offset)
    except OSError as error:
        raise InvalidTape(f"{path}: {error.strerror}") from None
    place = rest.find(_MAGIC, 1)
    while place >= 0:
        for frame in frames_at(number, offset + place):
            if _is_of_lines(frame):
                yield f"damaged at byte {offset:,}, and readable again at byte {frame.offset:,}"
                return
            break
        place = rest.find(_MAGIC, place + 1)


def _is_of_lines(frame: Frame) -> bool:
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

    def add(self, path: Path, verdict: TapeReport) -> Iterable[str]:
        """Add a tape, and report ticks that are missing before it or are on an earlier tape too."""
        faults = []
        for stream in verdict.ledger:
            key = (verdict.manifest.feed, stream.channel, stream.symbol)
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
        return f"{name}: another numbering than at the end of {id_}"
    if seq > before.seq:
        return f"{name}: {before.seq + 1:,} to {seq:,} are missing behind {id_}"
    if seq < before.seq:
        return f"{name}: {seq + 1:,} to {before.seq:,} are on {id_} as well"
    return None
