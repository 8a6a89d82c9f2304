"""Record places in a file, during one pass, from which reading can resume later."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from tickcast.wire.times import Time

ROWS: Final = 2048
"""The number of rows between two places that can be marked."""
_MARKS_MAX: Final = 65_536


class Mark(NamedTuple):
    """A place between two rows.

    Attributes:
        greatest: the greatest time before this place.
        offset: its offset in the uncompressed content, in bytes.
        line: the number of lines before it.
    """

    greatest: int
    offset: int
    line: int


class Marks:
    """A mark every `ROWS` rows, or less often in a long file."""

    def __init__(self) -> None:
        self._marks: list[Mark] = []
        self._every = 1
        self._passed = 0

    def pass_rows(self, greatest: int, offset: int, line: int) -> None:
        """Record that another `ROWS` rows have been read, up to this place."""
        self._passed += 1
        if self._passed < self._every:
            return
        self._passed = 0
        self._marks.append(Mark(greatest, offset, line))
        if len(self._marks) > _MARKS_MAX:
            del self._marks[::2]
            self._every *= 2

    def before(self, start: Time) -> Mark | None:
        """Return the last mark before which no row has a time of `start` or later."""
        place = bisect_left(self._marks, int(start), key=lambda mark: mark.greatest)
        return self._marks[place - 1] if place else None


class CountedLines:
    """The lines of some content as text.

    Attributes:
        offset: the offset of the byte after the last line.
        countable: False if some lines end with a CR alone. Text readers end a line there, and this
            iterator doesn't, so the line numbers differ.

    Raises:
        UnicodeDecodeError: a line isn't UTF-8.
    """

    def __init__(self, content: BinaryIO) -> None:
        self._content = content
        self.offset = 0
        self.countable = True

    def __iter__(self) -> Iterator[str]:
        encoding = "utf-8-sig"
        for line in self._content:
            self.offset += len(line)
            if b"\r" in line and line.find(b"\r", 0, -2) >= 0:
                self.countable = False
            yield line.decode(encoding)
            encoding = "utf-8"
