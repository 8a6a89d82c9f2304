"""Writes prebuilt frames directly to a client's transport, on our own server.

On other ASGI servers it is not available, and `feed.transport.asgi_sink` is used instead.

An ASGI endpoint that waits for the next message keeps a task, a dozen stack frames of middleware
and the request alive: about 20 kB for each of thousands of clients that rarely send anything. So
the endpoint hands the client over to the sink and returns. Only the transport, the frame parser and
the client's own objects remain.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from feed.transport.address_limits import AddressLimiter
from tickcast.wire.errors import CloseCode

EXTENSION: Final = "tickcast.sink"
"""Key of the sink in `scope["extensions"]`."""
_HIGH_WATER_BYTES: Final = 64 * 1024
"""How much a transport buffers for a client that does not read before it pauses writing."""

logger = logging.getLogger("tickcast.connection")

OnMessage = Callable[[str | bytes], Coroutine[Any, Any, None] | None]
"""Takes a message; returns a coroutine if it must be awaited before the next message."""


class Socket(Protocol):
    """What a sink needs of the protocol class in `feed.transport.websocket`."""

    loop: asyncio.AbstractEventLoop
    tasks: set[asyncio.Task[None]]
    transport: asyncio.Transport

    def hand_over(self, sink: TransportSink) -> None:
        """Pass the client's messages to the sink from now on."""

    def finish(self, last_words: bytes, code: int, reason: str) -> None:
        """Write `last_words` and a close frame, then close the connection."""

    def stop_reading(self) -> None:
        """Pause reading from the client."""

    def resume_reading(self) -> None:
        """Resume reading from the client."""

    def limit_address(self, limiter: AddressLimiter | None) -> None:
        """Count what the client sends towards its address's limits from now on."""


class TransportSink:
    """Writes frames to one client's transport after its handshake.

    Attributes:
        paused, on_pause, write: see `feed.fanout.outbox.Sink`.
        on_drain: called when the client reads again.
        on_shutdown: called when the server shuts down; returns the frames to send before closing.
        on_flood: called when the client sends more frames than allowed; must call `finish`.
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
        # By default, uvloop buffers another 512 KiB under TLS, and does not count data that it has
        # encrypted and passed on.
        protocol.transport.set_write_buffer_limits(_HIGH_WATER_BYTES)
        # Bound directly to the transport's method: a flush calls it once for each client.
        self.write: Callable[[bytes], None] = protocol.transport.write
        self.on_pause: Callable[[], None] = _nothing
        self.on_drain: Callable[[], None] = _nothing
        self.on_shutdown: Callable[[], bytes] = bytes
        self.on_flood: Callable[[], None] = _nothing
        self.on_message: OnMessage = _ignore
        self.on_end: Callable[[int], None] = _forget

    def hand_over(self, on_message: OnMessage, on_end: Callable[[int], None]) -> None:
        """Serve the client by callbacks from now on, so that the endpoint can return.

        Args:
            on_message: called with each message, one at a time, after the coroutine returned for
                the previous message has finished. It must not raise.
            on_end: called once with the close code, soon after the last message.
        """
        self.on_message = on_message
        self.on_end = on_end
        self._protocol.hand_over(self)

    def limit_address(self, limiter: AddressLimiter | None) -> None:
        """Count what the client sends towards its address's limits; None if it has none."""
        self._protocol.limit_address(limiter)

    def buffered(self) -> int:
        """Bytes written that the operating system has not accepted yet."""
        return self._protocol.transport.get_write_buffer_size()

    def finish(self, last_words: bytes, code: CloseCode, reason: str = "") -> None:
        """Write the last frames and a close frame, then make sure that the socket is closed."""
        self._protocol.finish(last_words, code, reason)

    def detach(self) -> None:
        """Discard all writes from now on."""
        self.write = _discard
        self.on_pause()
        self.on_pause = self.on_drain = _nothing

    def receive(self, message: str | bytes) -> None:
        """Pass a message on, or queue it while another one is being handled.

        If handling a message raises, the connection ends, because the client would otherwise wait
        for a reply indefinitely.
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
        """Finish handling one message, then handle those that arrived meanwhile."""
        try:
            await work
            while self._waiting:
                if (more := self.on_message(self._waiting.popleft())) is not None:
                    await more
        except Exception:
            self._fail()
        finally:
            self._waiting = None
            self._protocol.resume_reading()

    def _fail(self) -> None:
        logger.exception("a message could not be answered, closing the connection")
        self.finish(b"", CloseCode.INTERNAL_ERROR, "internal error")

    def end(self, code: int) -> None:
        """Schedule `on_end`: not at once, because a flush may be under way."""
        self.on_message = _ignore
        # Break reference cycles with the owner of the callbacks: garbage collections are rare.
        self.on_drain = self.on_flood = _nothing
        self.on_shutdown = bytes
        on_end, self.on_end = self.on_end, _forget
        self._protocol.loop.call_soon(on_end, code)


class Ending:
    """Replaces uvicorn's event queue after the endpoint has returned.

    Messages no longer pass through it. It receives only the disconnect event, perhaps repeatedly.
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
