"""The folder of a recorder, which writes one tape after the other without gaps in between."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tickcast.tapes.library import TapeLibrary
from tickcast.tapes.manifest import StreamSummary, encode_manifest
from tickcast.tapes.names import SUFFIX, manifest_path, number_of, recording_id
from tickcast.tapes.tape import Tape
from tickcast.tapes.writer import TapeWriter, write_atomically
from tickcast.wire.errors import InvalidTape, RecordingFailed
from tickcast.wire.times import Time


class RecordingDirectory:
    """The tapes of one feed in a folder.

    Args:
        directory: the folder, which is created if necessary.
        feed: the name of the feed.
        source: where its ticks come from.
    """

    def __init__(self, directory: Path, feed: str, source: str) -> None:
        self._directory = directory
        self._feed = feed
        self._source = source
        self._last = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other recorders. Remove a new folder if it stays empty.

        Raises:
            RecordingFailed: the folder can't be created or read, or another recorder uses it.
        """
        made = [each for each in (self._directory, *self._directory.parents) if not each.exists()]
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            number = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise RecordingFailed(f"{self._directory}: {error.strerror}") from None
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise RecordingFailed(
                f"{self._directory}: another recorder writes here; give this one its own folder"
            ) from None
        finally:
            with suppress(OSError):  # The folder is not empty.
                for each in made:
                    each.rmdir()
            os.close(number)

    def positions(self, on_unreadable: Callable[[str], None]) -> list[StreamSummary]:
        """Return the streams' positions at the end of the newest tape, or nothing without tapes.

        If that tape has no manifest because its writer was killed, one is written.

        Args:
            on_unreadable: called with the error if a tape can't be read; an older one is used then.
        """
        numbers = {id_: number_of(id_, self._feed) for id_ in TapeLibrary(self._directory).list()}
        found = sorted((number, id_) for id_, number in numbers.items() if number is not None)
        self._last = found[-1][0] if found else 0
        for _, id_ in reversed(found):
            path = self._directory / (id_ + SUFFIX)
            try:
                tape = Tape.open(path)
            except InvalidTape as error:
                on_unreadable(str(error))
                continue
            if not tape.manifest.complete:
                write_atomically(manifest_path(path), encode_manifest(tape.manifest))
            return [each for each in tape.manifest.streams if each.seq is not None]
        return []

    def begin_tape(self) -> TapeWriter:
        """Create the next tape.

        Raises:
            RecordingFailed: the tape can't be created.
        """
        self._last += 1
        id_ = recording_id(self._feed, self._last, Time.now())
        return TapeWriter(self._directory / (id_ + SUFFIX), self._feed, self._source)
