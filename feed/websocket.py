"""uvicorn's WebSocket protocol with a way to write prebuilt frames straight to the transport.

The endpoint finds the way in `scope["extensions"]`. On another ASGI server it is missing, and
`feed.asgi_sink` takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.http11 import Request

from feed.errors import CLOSE_GRACE_S, CloseCode

EXTENSION: Final = "tickcast.sink"


class TransportSink:
    """Writes frames to one client's transport, once its handshake is done.

    Attributes:
        paused, write: as `feed.outbox.Sink` says.
        on_drain: called when the client reads again.
        on_shutdown: called when the server shuts down; returns the frames to send before closing.
    """

    def __init__(self, protocol: FeedProtocol) -> None:
        self._protocol = protocol
        self.paused = False
        # The transport's own method: a flush calls it once for each client.
        self.write: Callable[[bytes], None] = protocol.transport.write
        self.on_drain: Callable[[], None] = _nothing
        self.on_shutdown: Callable[[], bytes] = bytes

    def buffered(self) -> int:
        """Bytes written that the operating system has not accepted yet."""
        return self._protocol.transport.get_write_buffer_size()

    def finish(self, last_words: bytes, code: CloseCode, reason: str = "") -> None:
        """Write the last frames and a close frame, and see to it that the socket goes."""
        self._protocol.finish(last_words, code, reason)

    def detach(self) -> None:
        """Ignore everything from now on."""
        self.write = _discard
        self.on_drain = _nothing


class FeedProtocol(WebSocketsSansIOProtocol):
    """The protocol class for `uvicorn.Config(ws=…)`."""

    sink: TransportSink | None = None
    _cut: asyncio.TimerHandle | None = None

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if not self.close_sent:
            self.sink = TransportSink(self)
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self.sink

    def finish(self, last_words: bytes, code: int, reason: str) -> None:
        """Close from our side, without waiting for a client that may not be reading."""
        if self.sink is not None:
            self.sink.detach()
        if not self.handshake_complete or self.close_sent or self.transport.is_closing():
            return
        self.close_sent = True
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        with contextlib.suppress(InvalidState):  # The client was faster, and has its answer.
            self.conn.send_close(code, reason)
        self.transport.write(last_words + b"".join(self.conn.data_to_send()))
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(CLOSE_GRACE_S, self.transport.abort)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            # A refusal ends the handshake as well; uvicorn would log it as an error.
            self.handshake_complete = True

    # -- flow control

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.sink is not None:
            self.sink.paused = True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.sink is not None:
            self.sink.paused = False
            self.sink.on_drain()

    # -- endings: each is followed by a cut, in case the transport can't drain

    def shutdown(self) -> None:
        if self.sink is not None and self.handshake_complete and not self.close_sent:
            self.finish(self.sink.on_shutdown(), CloseCode.RESTART, "")
        else:
            super().shutdown()
        self._cut_later()

    def handle_close(self, event: Any) -> None:
        super().handle_close(event)
        self._cut_later()

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self._cut_later()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._cut_later()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                # uvicorn would log this with a traceback; it is the client's fault, not ours.
                self.frames = []
                self.conn.send_close(CloseCode.INVALID_DATA, "invalid UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.sink is not None:
            self.sink.detach()
        if self._cut is not None:
            self._cut.cancel()
        super().connection_lost(exc)

    def _cut_later(self) -> None:
        if self.sink is not None:
            self.sink.detach()
        if self._cut is None:
            self._cut = self.loop.call_later(CLOSE_GRACE_S, self.transport.abort)


def _discard(data: bytes) -> None:
    pass


def _nothing() -> None:
    pass
