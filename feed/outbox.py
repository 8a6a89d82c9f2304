"""One client's bounded outbound queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Sink(Protocol):
    """Where an outbox puts its bytes: a socket's transport, or a list in a test.

    Attributes:
        paused: True while the other side is not reading and nothing more should be written.
        write: takes complete frames, at once.
    """

    paused: bool
    write: Callable[[bytes], None]

    def buffered(self) -> int:
        """Bytes taken, and not yet accepted by the operating system."""


class Outbox:
    """Passes frames on while the client reads, holds them while it does not, up to a bound.

    The bound counts what is held here together with what the sink has not sent yet. Going over it
    empties the outbox, closes it for good and calls `on_overflow`, once: the client has lost ticks
    and must be told so by ending its connection.
    """

    __slots__ = ("_held", "_held_bytes", "_max_bytes", "_on_overflow", "_sink", "closed")

    def __init__(self, sink: Sink, max_bytes: int, on_overflow: Callable[[], None]) -> None:
        self._sink = sink
        self._max_bytes = max_bytes
        self._on_overflow = on_overflow
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.closed = False

    def push(self, data: bytes) -> None:
        """Send complete frames after everything that was pushed before."""
        if self._sink.paused or self._held or self.closed:
            self._hold(data)
        else:
            self._sink.write(data)

    def _hold(self, data: bytes) -> None:
        if self.closed:
            return
        self._held.append(data)
        self._held_bytes += len(data)
        if self.waiting_bytes > self._max_bytes:
            self.close()
            self._on_overflow()

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were pushed and have not left this process."""
        return self._held_bytes + self._sink.buffered()

    def drain(self) -> None:
        """The client reads again: pass on what was held, in one write."""
        if self._held and not self._sink.paused:
            held, self._held, self._held_bytes = self._held, [], 0
            self._sink.write(b"".join(held))

    def close(self) -> None:
        """Drop what is held, and ignore whatever is pushed from now on."""
        self.closed = True
        self._held = []
        self._held_bytes = 0
