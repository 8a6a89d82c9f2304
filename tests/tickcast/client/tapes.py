"""Tapes that servers play to clients in tests."""

from __future__ import annotations

from pathlib import Path

from tests.builders import trade
from tests.recorded import at
from tickcast.tapes import TapeWriter
from tickcast.tapes.manifest import SUFFIX


def write_tape(directory: Path, name: str = "hundred", count: int = 100) -> None:
    """Write a tape with a trade of ES each second, the first at T0; each `id` is its position."""
    writer = TapeWriter(directory / f"{name}{SUFFIX}", "live", "test")
    for place in range(count):
        writer.append_tick(trade("ES", id=place, time=at(place), seq=place + 1))
    writer.flush()
    writer.close()
