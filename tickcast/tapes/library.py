"""A folder of tapes, from which clients select by name only."""

from __future__ import annotations

from pathlib import Path

from tickcast.tapes.names import SUFFIX, id_of, is_tape_id
from tickcast.tapes.tape import Tape
from tickcast.wire.errors import TapeNotFound


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
