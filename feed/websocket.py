"""uvicorn's WebSocket protocol, made small, with a way out beside it: `feed.transport_sink`.

The endpoint finds that in `scope["extensions"]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import Protocol as FrameProtocol
from websockets.protocol import State

from feed.errors import CLOSE_GRACE_S, CloseCode
from feed.rates import FrameLimit, TokenBucket
from feed.transport_sink import EXTENSION, Ending, TransportSink

_SLICE_BYTES: Final = 1024
_VERSION: Final = "13"
"""The one version of the protocol that there is."""


# Nobody waits for it: it stands for `writable` where an endpoint no longer sends.
_UNUSED: Final = asyncio.Event()


class FeedProtocol(WebSocketsSansIOProtocol):
    """The protocol class for `uvicorn.Config(ws=…)`; `feed.server.Server` keeps it alive."""

    # Mostly what uvicorn's class assigns: in a dict so many attributes take 2 kB more. Should it
    # come to assign others, they find a dict still.
    __slots__ = (
        "_cut", "_frames", "_handed_over", "_is_flooded", "_ping_at", "_pong", "app",
        "app_state", "asgi_version",
        "client", "close_sent", "close_timeout", "close_timer", "config", "conn", "connections",
        "curr_msg_data_type", "default_headers", "disconnected", "frames", "handshake_complete",
        "handshake_initiated", "initial_response", "last_ping_rtt", "logger", "loop",
        "pending_ping_payload", "ping_interval", "ping_sent_at", "ping_timeout", "ping_timer",
        "pong_timer", "queue", "read_paused", "request", "response", "root_path", "scheme", "scope",
        "server", "sink", "tasks", "transport", "writable",
    )  # fmt: skip

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sink: TransportSink | None = None
        self._cut: asyncio.TimerHandle | None = None
        self._handed_over = False
        limit: FrameLimit | None = getattr(self.config, "frame_limit", None)
        self._frames = TokenBucket(*limit) if limit else None
        self._is_flooded = False
        self._ping_at: float | None = None
        self._pong = b""

    def handle_connect(self, event: Request) -> None:
        # The parser that has read the request would keep it for as long as it reads frames.
        self.conn.parser = FrameProtocol.parse(self.conn)
        next(self.conn.parser)
        if event.headers.get_all("Sec-WebSocket-Version") != [_VERSION]:
            self._refuse_version()
            return
        super().handle_connect(event)
        if not self.close_sent:
            self.sink = TransportSink(self)
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self.sink

    def _refuse_version(self) -> None:
        """Say which version is spoken here (RFC 6455, section 4.2.2); the library would not."""
        response = self.conn.reject(HTTPStatus.UPGRADE_REQUIRED, "no such version\n")
        response.headers["Connection"] = "Upgrade"
        response.headers["Upgrade"] = "websocket"
        response.headers["Sec-WebSocket-Version"] = _VERSION
        self.conn.send_response(response)
        self.handshake_complete = self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()

    async def run_asgi(self) -> None:
        """As uvicorn's, but the end of an endpoint that has handed over is not the client's."""
        try:
            await self.app(self.scope, self.receive, self.send)
            if not self.handshake_complete:
                self.logger.error("the endpoint returned without answering the handshake")
        except ClientDisconnected:
            pass
        except BaseException:
            self.logger.exception("a bug in the endpoint")
            self._handed_over = False
        if self._handed_over:
            # Nothing reads them from now on.
            del self.scope, self.request, self.response
            self.server = self.client = None
            return
        self.send_500_response()
        if self.close_timer is None:
            self.transport.close()

    def hand_over(self, sink: TransportSink) -> None:
        """Pass events to the sink instead of the endpoint, the ones that wait already first."""
        self._handed_over = True
        queue, self.queue = self.queue, Ending(sink)  # type: ignore[assignment]
        self.writable = _UNUSED
        while not queue.empty():
            event: Any = queue.get_nowait()
            if event["type"] == "websocket.receive":
                sink.take(event["bytes"] if event.get("text") is None else event["text"])
            else:
                sink.end(event["code"])
        self.read_on()

    def finish(self, last_words: bytes, code: int, reason: str) -> None:
        """Close from our side, without waiting for a client that may not be reading."""
        if self.sink is not None:
            self.sink.detach()
        if not self.handshake_complete or self.close_sent or self.transport.is_closing():
            return
        self.close_sent = True
        self.stop_keepalive()
        with contextlib.suppress(InvalidState):  # The client was faster, and has its answer.
            self.conn.send_close(code, reason)
        self.transport.write(last_words + b"".join(self.conn.data_to_send()))
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.read_on()
        self.close_timer = self.loop.call_later(CLOSE_GRACE_S, self.transport.abort)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            # A refusal ends the handshake as well; uvicorn would log it as an error.
            self.handshake_complete = True

    # -- messages

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, a little at a time: thousands of frames fit into what comes at once."""
        for start in range(0, len(data), _SLICE_BYTES):
            if self._is_flooded:
                return
            super().data_received(data[start : start + _SLICE_BYTES])

    def handle_events(self) -> None:
        if self._frames is not None and self.handshake_complete and not self.close_sent:
            self._is_flooded = not self._frames.take(len(self.conn.events), self.loop.time())
        if not self._is_flooded:
            super().handle_events()
            return
        if self.sink is not None:
            self.sink.on_flood()
        self.finish(b"", CloseCode.RATE_LIMITED, "rate limited")
        self.stop_reading()

    def handle_cont(self, event: Frame) -> None:
        # Kept apart until the last one, fragments of a byte, or of none, would take far more memory
        # than `message_max_bytes` counts.
        so_far: Any = self.frames[0]
        if not isinstance(so_far, bytearray):
            so_far = bytearray(so_far)
        so_far += event.data
        self.frames = [so_far]
        if event.fin:
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        data = bytes(self.frames[0])
        self.frames = []
        if self.close_sent:
            return
        message: str | bytes = data
        if self.curr_msg_data_type == "text":
            try:
                message = data.decode()
            except UnicodeDecodeError:
                # uvicorn would log this with a traceback; it is the client's fault, not ours.
                with contextlib.suppress(InvalidState):  # The same read brought its close frame.
                    self.conn.send_close(CloseCode.INVALID_DATA, "invalid UTF-8")
                self.handle_parser_exception()
                return
        if self._handed_over and self.sink is not None:
            self.sink.take(message)
        else:
            event: Any = {"type": "websocket.receive", self.curr_msg_data_type: message}
            self.queue.put_nowait(event)
            self.stop_reading()

    def stop_reading(self) -> None:
        """Take no more from the client for now."""
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def read_on(self) -> None:
        """Take again what the client says."""
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    # -- flow control

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.sink is not None:
            self.sink.paused = True
            self.sink.on_pause()

    def handle_ping(self) -> None:
        # A client that does not read may have its pongs pile up. Only the latest ping need be
        # answered (RFC 6455, section 5.5.3), so one is kept for when it reads again.
        if self.sink is None or not self.sink.paused or self.conn.state is not State.OPEN:
            super().handle_ping()
        elif pongs := self.conn.data_to_send():
            self._pong = pongs[-1]

    def resume_writing(self) -> None:
        super().resume_writing()
        pong, self._pong = self._pong, b""
        if pong and not self.close_sent and not self.transport.is_closing():
            self.transport.write(pong)
        if self.sink is not None:
            self.sink.paused = False
            self.sink.on_drain()

    # -- keepalive: the server calls `keep_alive` now and then, which needs no timers

    def schedule_ping(self) -> None:
        if self.ping_interval is not None:
            self._ping_at = self.loop.time() + self.ping_interval

    def stop_keepalive(self) -> None:
        self._ping_at = None
        self.pending_ping_payload = None

    def keep_alive(self, now: float) -> None:
        """Ping the client if it is time, or give it up if it has not answered the last one."""
        if self._ping_at is None or now < self._ping_at:
            return
        if self.close_sent or self.transport.is_closing():
            self.stop_keepalive()
        elif self.pending_ping_payload is not None:
            self.keepalive_timeout()
        else:
            self.pending_ping_payload = random.randbytes(4)
            self._ping_at = now + (self.ping_timeout or math.inf)
            self.conn.send_ping(self.pending_ping_payload)
            self.transport.write(b"".join(self.conn.data_to_send()))

    def handle_pong(self, event: Frame) -> None:
        if self.pending_ping_payload is not None and event.data == self.pending_ping_payload:
            self.pending_ping_payload = None
            self.schedule_ping()

    # -- endings: each is followed by a cut, in case the transport can't drain

    def shutdown(self) -> None:
        if self.sink is not None and self.handshake_complete and not self.close_sent:
            self.finish(self.sink.on_shutdown(), CloseCode.RESTART, "")
        else:
            super().shutdown()
        self._cut_later()

    def handle_close(self, event: Frame) -> None:
        super().handle_close(event)
        self._cut_later()

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is None:
            # It did not wait for the answer to its handshake, so there can't be a close frame.
            self.transport.abort()
            return
        super().handle_parser_exception()
        self._cut_later()

    def keepalive_timeout(self) -> None:
        if self.sink is not None:
            self.sink.end(CloseCode.INTERNAL_ERROR)
        super().keepalive_timeout()
        self._cut_later()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cut is not None:
            self._cut.cancel()
        if self.sink is not None:
            # Without a close frame; where there was one, this has been told already.
            self.sink.end(CloseCode.ABNORMAL)
        super().connection_lost(exc)
        self.conn.parser.close()  # Its frame holds the connection that holds it.
        if self.sink is not None:
            self.sink.detach()
            self.sink = None  # Or the two would keep each other until the next collection.
        if self._handed_over:
            del self.queue

    def _cut_later(self) -> None:
        if self.sink is not None:
            self.sink.detach()
        if self._cut is None:
            self._cut = self.loop.call_later(CLOSE_GRACE_S, self.transport.abort)
