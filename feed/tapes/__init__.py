"""Tapes: recorded ticks in files, to be read by servers, producers and clients alike.

`docs/recording.md` describes the format. `Tape` reads one, `Library` a folder of them, and
`TapeWriter` writes one.
"""

from feed.tapes.library import Library
from feed.tapes.manifest import Manifest, StreamSummary
from feed.tapes.tape import Tape
from feed.tapes.writer import TapeWriter

__all__ = ["Library", "Manifest", "StreamSummary", "Tape", "TapeWriter"]
