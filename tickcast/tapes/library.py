"""Folders of tapes: one to select from, and one that a recorder writes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tickcast.tapes.manifest import (
    SUFFIX,
    StreamSummary,
    encode_manifest,
    id_of,
    is_tape_id,
    manifest_path,
    number_of,
    recording_id,
)
from tickcast.tapes.tape import Tape
from tickcast.tapes.writer import TapeWriter, write_atomically
from tickcast.wire.errors import InvalidTape, RecordingFailed, TapeNotFound
from tickcast.wire.times import Time


class TapeLibrary:
    """The tapes in one folder. Names may be untrusted: none leads out of the folder."""

    def __init__(self, directory: Path | str) -> None:
        self._directory = Path(directory)

    def list(self) -> list[str]:
        """Return the names of all tapes, sorted.

        Raises:
            TapeNotFound: the folder can't be read.
        """
        try:
            paths = list(self._directory.iterdir())
        except OSError as error:
            raise TapeNotFound(f"{self._directory}: {error.strerror}") from None
        return sorted(
            id_of(path)
            for path in paths
            if path.name.endswith(SUFFIX)
            and is_tape_id(id_of(path))
            and path.is_file()
            and not path.is_symlink()
        )

    def path_of(self, id_: str) -> Path:
        """Return the path of a tape's file.

        Raises:
            TapeNotFound: no tape has this name, or it is not a valid name.
        """
        if not is_tape_id(id_):
            raise TapeNotFound("the name of a tape is 1 to 64 characters of A-Z a-z 0-9 . _ -")
        path = self._directory / (id_ + SUFFIX)
        if path.is_symlink() or not path.is_file():
            raise TapeNotFound(f"no tape {id_}")
        return path

    def open(self, id_: str) -> Tape:
        """Open a tape by its name.

        Raises:
            TapeNotFound: no tape has this name, or it is not a valid name.
            InvalidTape: it can't be read.
        """
        return Tape.open(self.path_of(id_))


class RecordingDirectory:
    """A folder to which a recorder writes tapes of one feed, one after the other without gaps.

    Args:
        source: where the ticks come from.
    """

    def __init__(self, directory: Path, feed: str, source: str) -> None:
        self._directory = directory
        self._feed = feed
        self._source = source
        # The number of the newest tape.
        self._last = 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other recorders. Remove a new folder if it stays empty.

        Raises RecordingFailed.
        """
        created = [
            each for each in (self._directory, *self._directory.parents) if not each.exists()
        ]
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            # The lock is on the folder itself, so there is no lock file to clean up.
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise RecordingFailed(f"{self._directory}: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise RecordingFailed(
                f"{self._directory}: another recorder writes here; give this one its own folder"
            ) from None
        finally:
            with suppress(OSError):  # The folder is not empty.
                for each in created:
                    each.rmdir()
            os.close(descriptor)

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
        """Create the next tape. Raises RecordingFailed."""
        self._last += 1
        id_ = recording_id(self._feed, self._last, Time.now())
        return TapeWriter(self._directory / (id_ + SUFFIX), self._feed, self._source)
