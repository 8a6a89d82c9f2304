"""Tapes: files of recorded ticks, which servers, producers and clients can read.

Ticks go in through `TapeWriter` and come out of a `Tape`. A `TapeLibrary` is a folder of tapes.
`docs/recording.md` describes the format. Start reading with `format`, then `writer` and `tape`.
"""

from tickcast.tapes.library import TapeLibrary
from tickcast.tapes.manifest import Manifest, StreamSummary
from tickcast.tapes.tape import Tape
from tickcast.tapes.writer import TapeWriter

__all__ = ["Manifest", "StreamSummary", "Tape", "TapeLibrary", "TapeWriter"]
