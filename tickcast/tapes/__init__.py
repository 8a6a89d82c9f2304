"""Tapes: files of recorded ticks, which servers, producers and clients can read.

`docs/recording.md` describes the format. `Tape` reads a tape, `TapeLibrary` reads a
folder of tapes, and `TapeWriter` writes a tape.
"""

from tickcast.tapes.library import TapeLibrary
from tickcast.tapes.manifest import Manifest, StreamSummary
from tickcast.tapes.tape import Tape
from tickcast.tapes.writer import TapeWriter

__all__ = ["Manifest", "StreamSummary", "Tape", "TapeLibrary", "TapeWriter"]
