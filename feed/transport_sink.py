"""The way to a client on our own server: prebuilt frames, straight to its transport.

On another ASGI server it is missing, and `feed.asgi_sink` takes its place.

An ASGI endpoint that waits for its client's next message keeps a task, a dozen frames of middleware
and the request alive: some 20 kB for each of thousands of clients that say a word a day. So the
endpoint hands its client over to the sink and returns. What is left then are the transport, the
parser of frames, and the client's own objects.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from feed.address_limits import AddressLimiter
from feed.errors import CloseCode

EXTENSION: Final = "tickcast.sink"
"""Where an endpoint finds the sink, among the extensions of its scope."""
_HIGH_WATER_BYTES: Final = 64 * 1024
"""What a transport takes for a client that does not read before it says that it is full."""

logger = logging.getLogger("tickcast.connection")

OnMessage = Callable[[str | bytes], Coroutine[Any, Any, None] | None]
"""Takes a message; returns what is still to be awaited before the next one can be taken."""


class Socket(Protocol):
    """What a sink needs of the protocol that has read the handshake: `feed.websocket` makes one."""

    loop: asyncio.AbstractEventLoop
    tasks: set[asyncio.Task[None]]
    transport: asyncio.Transport

    def hand_over(self, sink: TransportSink) -> None:
        """Pass what the client says to the sink from now on."""

    def finish(self, last_words: bytes, code: int, reason: str) -> None:
        """Write the last words and a close frame, and end."""

    def stop_reading(self) -> None:
        """Take no more from the client for now."""

    def read_on(self) -> None:
        """Take again what the client says."""

    def limit_address(self, limiter: AddressLimiter | None) -> None:
        """From now on, what the client sends counts for its address."""


class TransportSink:
    """Writes frames to one client's transport, once its handshake is done.

    Attributes:
        paused, on_pause, write: as `feed.outbox.Sink` says.
        on_drain: called when the client reads again.
        on_shutdown: called when the server shuts down; returns the frames to send before closing.
        on_flood: called when the client sends more frames than it may; it is to call `finish`.
        on_message, on_end: see `hand_over`.
    """

    __slots__ = (
        "_protocol", "_waiting", "on_drain", "on_end", "on_flood", "on_message", "on_pause",
        "on_shutdown", "paused", "write",
    )  # fmt: skip

    def __init__(self, protocol: Socket) -> None:
        self._protocol = protocol
        self._waiting: deque[str | bytes] | None = None
        self.paused = False
        # By itself, uvloop lets 512 KiB wait on top of that where there is TLS, and does not count
        # what it has encrypted and handed on.
        protocol.transport.set_write_buffer_limits(_HIGH_WATER_BYTES)
        # The transport's own method: a flush calls it once for each client.
        self.write: Callable[[bytes], None] = protocol.transport.write
        self.on_pause: Callable[[], None] = _nothing
        self.on_drain: Callable[[], None] = _nothing
        self.on_shutdown: Callable[[], bytes] = bytes
        self.on_flood: Callable[[], None] = _nothing
        self.on_message: OnMessage = _ignore
        self.on_end: Callable[[int], None] = _forget

    def hand_over(self, on_message: OnMessage, on_end: Callable[[int], None]) -> None:
        """Have the client served by callbacks from now on, so that the endpoint can return.

        Args:
            on_message: called with each message, one at a time: not before what it returned for the
                one before has been awaited. It must not raise.
            on_end: called once, soon after it is clear that no more messages will come; with the
                close code.
        """
        self.on_message = on_message
        self.on_end = on_end
        self._protocol.hand_over(self)

    def limit_address(self, limiter: AddressLimiter | None) -> None:
        """From now on, what the client sends counts for its address; None where it has no limit."""
        self._protocol.limit_address(limiter)

    def buffered(self) -> int:
        """Bytes written that the operating system has not accepted yet."""
        return self._protocol.transport.get_write_buffer_size()

    def finish(self, last_words: bytes, code: CloseCode, reason: str = "") -> None:
        """Write the last frames and a close frame, and see to it that the socket goes."""
        self._protocol.finish(last_words, code, reason)

    def detach(self) -> None:
        """Write nothing from now on."""
        self.write = _discard
        self.on_pause()
        self.on_pause = self.on_drain = _nothing

    def take(self, message: str | bytes) -> None:
        """Pass a message on; while one is being worked off, those after it wait.

        Should one raise, the connection ends: its client must not wait for an answer for ever.
        """
        if self._waiting is not None:
            self._waiting.append(message)
            return
        try:
            work = self.on_message(message)
        except Exception:
            self._fail()
            return
        if work is not None:
            self._waiting = deque()
            self._protocol.stop_reading()
            task = self._protocol.loop.create_task(self._work_off(work))
            self._protocol.tasks.add(task)
            task.add_done_callback(self._protocol.tasks.discard)

    async def _work_off(self, work: Coroutine[Any, Any, None]) -> None:
        """Await what one message asks for, then take those that came meanwhile."""
        try:
            await work
            while self._waiting:
                if (more := self.on_message(self._waiting.popleft())) is not None:
                    await more
        except Exception:
            self._fail()
        finally:
            self._waiting = None
            self._protocol.read_on()

    def _fail(self) -> None:
        logger.exception("a message could not be answered, closing the connection")
        self.finish(b"", CloseCode.INTERNAL_ERROR, "internal error")

    def end(self, code: int) -> None:
        """Tell that no more messages will come; soon, because a flush may be under way."""
        self.on_message = _ignore
        # What they belong to has this object, and collections are rare.
        self.on_drain = self.on_flood = _nothing
        self.on_shutdown = bytes
        on_end, self.on_end = self.on_end, _forget
        self._protocol.loop.call_soon(on_end, code)


class Ending:
    """Takes the place of the queue between uvicorn and an endpoint that has returned.

    Messages no longer pass through it. What comes is the end, perhaps more than once.
    """

    __slots__ = ("_sink",)

    def __init__(self, sink: TransportSink) -> None:
        self._sink = sink

    def put_nowait(self, event: Any) -> None:
        self._sink.end(event["code"])


def _discard(data: bytes) -> None:
    pass


def _ignore(message: str | bytes) -> None:
    pass


def _forget(code: int) -> None:
    pass


def _nothing() -> None:
    pass
