"""Split a stream of bytes into JSON documents: lines, longer values, elements of long arrays."""

from __future__ import annotations

import codecs
import re
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

# A page of Alpaca's history has up to 10,000 ticks, which are about 1.5 MB.
DOCUMENT_BYTES_MAX: Final = 4 * 1024 * 1024
# Values in longer lines are split before the line is complete.
_LINE_BYTES: Final = 64 * 1024
# The deepest answer of Alpaca's has 6 levels.
_DEPTH_MAX: Final = 64
# How far back the last character before a line end is searched for.
_BLANKS_MAX: Final = 256
_BLANKS: Final = b" \t\r\n" + codecs.BOM_UTF8
_CLOSERS: Final = {b"{": b"}", b"[": b"]"}
# A complete string, a quote that begins an incomplete one, or a character of the structure.
_TOKEN: Final = re.compile(rb'"(?:[^"\\\n]|\\[^\n])*+"|["\[\]{},\n]')
_QUOTE, _NEWLINE, _COMMA, _ARRAY, _OBJECT, _ARRAY_END, _OBJECT_END = b'"\n,[{]}'
_OPENERS: Final = {_ARRAY_END: _ARRAY, _OBJECT_END: _OBJECT}

# The documents that are complete; then, whether more of the data can be split.
_Documents = Generator["JsonDocument", None, bool]


class JsonDocument(NamedTuple):
    """A line, a value over several lines, or an element of a long array."""

    # Where it begins.
    line: int
    text: bytes
    # Why it can't be parsed, if that is already known.
    error: str | None = None


class JsonSplitter:
    """Splits a stream of bytes into JSON documents, buffering at most one of them.

    A line that begins and ends like a value, or is none, is a document. Other values go on over
    several lines. If such a value is an array, its elements are the documents, so an array may have
    any length. After a syntax error, splitting continues with the next line.

    Args:
        bytes_max: the maximum length of a document. A longer one is discarded and reported.
    """

    def __init__(self, bytes_max: int = DOCUMENT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._data = b""
        # Where the current document begins, in `_data` and as a line number.
        self._start = 0
        self._line = 1
        # The current line has been reported as too long; the rest of it is discarded.
        self._skips_line = False
        # The open brackets of a value that goes on over several lines, and how much of `_data` has
        # been searched for more. The bracket of an array is not part of its first element.
        self._in_value = False
        self._open = bytearray()
        self._searched = 0
        self._searched_line = 1
        self._has_content = False
        # The current document has been reported as too long.
        self._is_discarded = False

    def split(self, data: bytes) -> Iterator[JsonDocument]:
        """Yield the documents that this data completes. An empty `data` means the end."""
        self._data = self._data[self._start :] + data
        self._searched -= self._start
        self._start = 0
        is_end = not data
        while not self._skips_line or self._skip_line():
            step = self._split_value if self._in_value else self._split_lines
            if not (yield from step(is_end)):
                return

    # -- lines

    def _split_lines(self, is_end: bool) -> _Documents:
        data = self._data
        while self._start < len(data):
            end = data.find(b"\n", self._start)
            if end < 0 and not is_end:
                break
            line = data[self._start : end if end >= 0 else None]
            text = line.strip(_BLANKS)
            closer = _CLOSERS.get(text[:1])
            if closer is not None and not text.endswith(closer):
                return self._begin_value()
            if len(line) > self._bytes_max:
                yield self._too_long()
            elif text:
                yield JsonDocument(self._line, line)
            self._line += 1
            self._start += len(line) + 1
        size = len(data) - self._start
        begin = data[self._start : self._start + _BLANKS_MAX].lstrip(_BLANKS)[:1]
        if size > _LINE_BYTES and begin in _CLOSERS:
            return self._begin_value()
        if size > self._bytes_max:
            yield self._too_long()
            self._start = len(data)
            self._skips_line = True
        return False

    def _begin_value(self) -> bool:
        self._open.clear()
        self._continue_at(self._start, self._line)
        self._in_value = True
        return True

    def _skip_line(self) -> bool:
        """Discard data up to the next line end. Return whether there is one."""
        end = self._data.find(b"\n", self._start)
        if end < 0:
            self._start = len(self._data)
            return False
        self._start = end + 1
        self._line += 1
        self._skips_line = False
        return True

    def _too_long(self) -> JsonDocument:
        return JsonDocument(self._line, b"", f"longer than {self._bytes_max} bytes")

    # -- values over several lines

    # One pass over the structure: a call for each token would double its cost.
    def _split_value(self, is_end: bool) -> _Documents:  # noqa: PLR0912
        data, line = self._data, self._searched_line
        start, searched = self._start, len(data)
        for match in _TOKEN.finditer(data, self._searched):
            at = match.start()
            token = data[at]
            if token == _NEWLINE:
                if at + 1 == len(data) and not is_end:
                    searched = at  # The next line shows whether the value goes on.
                    break
                line += 1
                self._has_content = self._has_content or bool(data[start:at].strip(_BLANKS))
                if not self._has_content:
                    start, self._line = at + 1, line
                elif data[at + 1 : at + 2] in _CLOSERS and self._is_cut_off(data, start, at):
                    yield from self._complete(data[start:at])
                    self._recover(is_element=len(self._open) > 1)
                    return self._continue_at(at + 1, line)
                continue
            self._has_content = True
            if token == _QUOTE and match.end() > at + 1:
                continue
            if token in (_ARRAY, _OBJECT) and len(self._open) < _DEPTH_MAX:
                self._open.append(token)
                if self._open == b"[":
                    start, self._line, self._has_content = at + 1, line, False
            elif token == _COMMA:
                if self._open == b"[":
                    yield from self._complete(data[start:at])
                    start, self._line, self._has_content = at + 1, line, False
            elif token != _QUOTE and self._open and self._open[-1] == _OPENERS.get(token):
                self._open.pop()
                if not self._open:
                    yield from self._complete(data[start : at + (token == _OBJECT_END)])
                    return self._continue_at(at + 1, line)
            else:  # An incomplete string, a bracket that closes another one, or one too many.
                end = data.find(b"\n", at)
                if end < 0 and not is_end:
                    searched = at
                    break
                yield from self._complete(data[start : end if end >= 0 else None])
                self._recover(is_element=end >= 0)
                return self._continue_at(end + 1 if end >= 0 else len(data), line + 1)
        if is_end:
            yield from self._complete(data[start:])
            if self._open == b"[":
                yield JsonDocument(line, b"", "the array does not end")
            self._open.clear()
            return self._continue_at(len(data), line)
        self._start, self._searched, self._searched_line = start, searched, line
        if len(data) - start > self._bytes_max:
            if not self._is_discarded:
                yield self._too_long()
            self._is_discarded = True
            # A line end is counted when it is known what follows.
            self._start = self._searched = len(data) - data.endswith(b"\n")
        return False

    def _is_cut_off(self, data: bytes, start: int, end: int) -> bool:
        """Return whether the value was cut off, as the next line can't be an element of an array.

        After a colon, JSON allows a line that begins with a brace, but no program writes it. It is
        more likely that the line before was cut off.
        """
        last = data[max(start, end - _BLANKS_MAX) : end].rstrip()[-1:]
        return self._open[-1] != _ARRAY or last not in (b"", b",", b"[")

    def _complete(self, text: bytes) -> list[JsonDocument]:
        """Return the current document, unless it is blank or has been reported as too long."""
        is_discarded, self._is_discarded = self._is_discarded, False
        if is_discarded or not text.strip(_BLANKS):
            return []
        if len(text) > self._bytes_max:
            return [self._too_long()]
        return [JsonDocument(self._line, text)]

    def _recover(self, *, is_element: bool) -> None:
        """After an error in an element of an array, the array continues. Other values end."""
        if not (is_element and self._open[:1] == b"["):
            self._open.clear()
        del self._open[1:]

    def _continue_at(self, start: int, line: int) -> bool:
        """Continue with a new document. Always returns True: there may be more to split."""
        self._start = self._searched = start
        self._line = self._searched_line = line
        self._has_content = False
        self._in_value = bool(self._open)
        return True
