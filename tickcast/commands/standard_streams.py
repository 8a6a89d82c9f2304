"""Handles closed, full or broken standard streams in the same way for all commands."""

from __future__ import annotations

import errno
import io
import logging
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import click

from tickcast.logs import escape
from tickcast.wire.errors import OutputFailed

_STDIN: Final = 0
_STDOUT: Final = 1
_STDERR: Final = 2


@contextmanager
def standard_streams() -> Iterator[None]:
    """Make the standard streams safe to use while a command runs.

    - A closed stream reads as empty and discards output. Otherwise the next socket or file would
      get its number: libuv aborts in that case, and output would go to that socket or file.
    - If the reader has exited (`| head`), the command does not fail: the rest of the output is
      discarded, and the command ends as usual.
    - If standard output can't be written (`> /dev/full`), OutputFailed is raised once. Errors in
      writing standard error are ignored, because there is nowhere to report them.
    - Characters that the terminal's encoding lacks are escaped.
    """
    for number in (_STDIN, _STDOUT, _STDERR):
        _open_if_closed(number)
    before = sys.stdin, sys.stdout, sys.stderr
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(_STDIN, closefd=False)), "utf-8")
    # Don't change a stream with which a program has replaced Python's own.
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text_stream(_STDOUT, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text_stream(_STDERR, sys.stderr)
    try:
        yield
    finally:
        with suppress(OutputFailed):
            sys.stdout.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def output_is_gone() -> bool:
    """Whether standard output has failed, so that further output is discarded."""
    output = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(output, _Output) and output.is_gone


class _StderrHandler(logging.Handler):
    """Shows the messages of a logger like those of a command."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"tickcast: {escape(record.getMessage())}", err=True)


@contextmanager
def logged_on_stderr(name: str) -> Iterator[None]:
    """Show a logger's messages from level INFO, unless the command has set up logging."""
    if logging.root.hasHandlers():
        yield
        return
    logger = logging.getLogger(name)
    handler = _StderrHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _open_if_closed(number: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        # `open` returns the lowest free number, and all lower ones are open by now.
        os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _text_stream(number: int, before: Any) -> io.TextIOWrapper:
    if before is not None:
        before.flush()
    output = _Output(number)
    return io.TextIOWrapper(
        io.BufferedWriter(output),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=number == _STDERR or output.isatty(),
    )


class _Output(io.RawIOBase):
    """A file descriptor for writing that fails at most once.

    Attributes:
        is_gone: whether it has failed; output is discarded then.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self.is_gone = False

    def fileno(self) -> int:
        return self._number

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any) -> int:
        while not self.is_gone:
            try:
                return os.write(self._number, data)
            except BlockingIOError:
                # The parent process, which may share it, has made it non-blocking.
                select.select([], [self._number], [])
            except OSError as error:
                self.is_gone = True
                if self._number == _STDOUT and error.errno != errno.EPIPE:
                    raise OutputFailed(f"can't write the output: {error.strerror}") from None
        return len(data)
