"""Follow a file that another program appends to, like `tail -F`."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tickcast.wire.errors import InvalidRecording

_READ_BYTES: Final = 64 * 1024


class FollowedFile:
    """A file that grows, is truncated, or is replaced by a new one of the same name.

    A file that was replaced is read to its end first. So nothing is lost if its writer renames it
    and then opens a new one, as log rotation does. What is written between two reads is lost only
    if the file is truncated or replaced twice in between.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def read(self) -> bytes | None:
        """Return new data, b"" at the end of a file that has been replaced or truncated, or None.

        None means that there is nothing new yet, or that there is no file yet.

        Raises:
            OSError: the file can't be opened or read.
            InvalidRecording: it is not a regular file.
        """
        if self._file is None and not self._open():
            return None
        assert self._file is not None
        # Before the read: the writer of a file that has been replaced by now has finished it.
        is_replaced = self._is_replaced()
        if data := os.read(self._file, _READ_BYTES):
            self._position += len(data)
            return data
        if os.fstat(self._file).st_size < self._position:
            os.lseek(self._file, 0, os.SEEK_SET)
            self._position = 0
            return b""
        if is_replaced:
            self.close()
            return b""
        return None

    def _open(self) -> bool:
        try:
            # A pipe would block otherwise, before it is refused.
            self._file = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self._position = 0
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            self.close()
            raise InvalidRecording(f"{self._path} is not a file that can be followed")
        return True

    def _is_replaced(self) -> bool:
        """Return whether another file has the name by now."""
        assert self._file is not None
        try:
            current = self._path.stat()
        except FileNotFoundError:
            return False  # Its writer may still append to it.
        return not os.path.samestat(current, os.fstat(self._file))
