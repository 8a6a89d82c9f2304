"""uvicorn's WebSocket protocol with less memory per connection, rate limits and a direct sink.

The endpoint finds the sink (`feed.transport.transport_sink`) in `scope["extensions"]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import Protocol as FrameProtocol
from websockets.protocol import State

from feed.transport.address_limits import AddressLimiter, FrameLimit, TokenBucket
from feed.transport.loop_share import LoopShare
from feed.transport.transport_sink import EXTENSION, Ending, TransportSink
from tickcast.wire.errors import CLOSE_GRACE_S, CloseCode

_SLICE_BYTES: Final = 1024
_LONG_SLICE_BYTES: Final = 4 * 1024
_HOLD_S: Final = 0.5
"""How long a client must wait when its address has used up its allowance."""
_HOLD_AGAIN_S: Final = 5.0
"""A client that would have to wait again within this time is flooding, and is cut."""
_VERSION: Final = "13"
"""The only version of the WebSocket protocol (RFC 6455)."""


# Replaces `writable` when the endpoint no longer sends, so that nothing waits for it.
_UNUSED: Final = asyncio.Event()


class FeedProtocol(WebSocketsSansIOProtocol):
    """The class for `uvicorn.Config(ws=…)`; `feed.server.running.Server` sends its pings."""

    # Most of these are assigned by uvicorn's class. In an instance dict, they would take 2 kB more.
    # If uvicorn assigns other attributes in the future, these still go into a dict.
    __slots__ = (
        "_address", "_cut", "_frame_count", "_frames", "_handed_over", "_has_frames", "_held",
        "_held_at_s",
        "_is_deaf", "_is_reading", "_is_waiting", "_offset", "_ping_at", "_pong", "_received",
        "_share", "app", "app_state", "asgi_version",
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
        self._share: LoopShare = self.app_state.get("loop_share") or LoopShare()
        self._address: AddressLimiter | None = None
        self._received: bytes | None = None
        """Data received but not parsed yet, from `_offset` on: one read of the transport."""
        self._offset = 0
        self._frame_count = 0
        """Parsed frames that are not counted for the address yet."""
        self._has_frames = True
        """Whether the last slice completed any frames."""
        self._is_waiting = False
        """`_parse` has been passed to the loop share and will be called."""
        self._held_at_s = -math.inf
        self._held: asyncio.TimerHandle | None = None
        """Resumes reading from an address that has used up its allowance."""
        self._is_deaf = False
        """Whether reading has stopped permanently, because the client sent too much or is gone."""
        self._is_reading = True
        self._ping_at: float | None = None
        self._pong = b""

    def handle_connect(self, event: Request) -> None:
        # Start a new parser: the one that has read the request would keep it in memory.
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
        """Refuse the handshake and name the supported version, as the library does not.

        Source: RFC 6455, section 4.2.2.
        """
        response = self.conn.reject(HTTPStatus.UPGRADE_REQUIRED, "no such version\n")
        response.headers["Connection"] = "Upgrade"
        response.headers["Upgrade"] = "websocket"
        response.headers["Sec-WebSocket-Version"] = _VERSION
        self.conn.send_response(response)
        self.handshake_complete = self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.close()

    async def run_asgi(self) -> None:
        """Run the endpoint; keep the connection open if the endpoint has handed it over."""
        try:
            await self._share.start()
            await self.app(self.scope, self.receive, self.send)
            if not self.handshake_complete:
                self.logger.error("the endpoint returned without answering the handshake")
        except ClientDisconnected:
            pass
        except BaseException:
            self.logger.exception("a bug in the endpoint")
            self._handed_over = False
        if self._handed_over:
            # Nothing uses these from now on.
            del self.scope, self.request, self.response
            self.server = self.client = None
            return
        self.send_500_response()
        if self.close_timer is None:
            self.transport.close()

    def hand_over(self, sink: TransportSink) -> None:
        """Pass events to the sink instead of the endpoint, starting with those in the queue."""
        self._handed_over = True
        queue, self.queue = self.queue, Ending(sink)  # type: ignore[assignment]
        self.writable = _UNUSED
        while not queue.empty():
            event: Any = queue.get_nowait()
            if event["type"] == "websocket.receive":
                sink.receive(event["bytes"] if event.get("text") is None else event["text"])
            else:
                sink.end(event["code"])
        self.resume_reading()

    def finish(self, last_words: bytes, code: int, reason: str) -> None:
        """Close the connection without waiting for a client that may not be reading."""
        if self.sink is not None:
            self.sink.detach()
        if not self.handshake_complete or self.close_sent or self.transport.is_closing():
            return
        self.close_sent = True
        self.stop_keepalive()
        with contextlib.suppress(InvalidState):  # The client closed first and has been answered.
            self.conn.send_close(code, reason)
        self.transport.write(last_words + b"".join(self.conn.data_to_send()))
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        if code == CloseCode.RATE_LIMITED:
            self._be_deaf()
        else:
            self.resume_reading()  # To receive the client's close frame.
        self.close_timer = self.loop.call_later(CLOSE_GRACE_S, self.transport.abort)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            # A refusal also completes the handshake. Otherwise uvicorn would log an error.
            self.handshake_complete = True

    # -- messages

    def limit_address(self, limiter: AddressLimiter | None) -> None:
        """Count what the client sends towards its address's limits; None if it has none."""
        self._address = limiter

    def data_received(self, data: bytes) -> None:
        """Parse in small slices, and no more than the loop has time for.

        One read may contain thousands of frames. Data that is not parsed at once waits, and reading
        pauses meanwhile, so that a client can't fill our memory.
        """
        if self._is_deaf:
            return
        if not self.handshake_initiated:
            super().data_received(data)  # The request, which `feed.transport.http` has bounded.
            return
        self._received = data if self._received is None else self._received + data
        self._parse_soon()

    def _parse_soon(self) -> None:
        if self._received is not None and not (self._is_waiting or self.read_paused or self._held):
            self._is_waiting = True
            self._is_waiting = self._share.run(self._parse)
        self._update_reading()

    def _parse(self, deadline_s: float) -> bool:
        """Parse received data until a deadline; return whether to be called again."""
        try:
            while self._received is not None and not self.read_paused:
                # Inside a long frame, there are no frames to count, so a slice can be longer.
                slice_bytes = _SLICE_BYTES if self._has_frames else _LONG_SLICE_BYTES
                size = min(slice_bytes, len(self._received) - self._offset)
                if not self._may_parse(size):
                    break
                data = self._received[self._offset : self._offset + size]
                self._offset += size
                if self._offset == len(self._received):
                    self._received, self._offset = None, 0
                super().data_received(data)
                if perf_counter() >= deadline_s and self._received is not None:
                    self._is_waiting = not self.read_paused
                    return self._is_waiting
        except BaseException:
            self.transport.abort()
            raise
        self._is_waiting = False
        self._update_reading()
        return False

    def _may_parse(self, size: int) -> bool:
        """Charge the address for data; if its allowance is used up, the client waits or is cut."""
        if self._address is None:
            return True
        frames, self._frame_count = self._frame_count, 0
        if self._address.spend_bytes(size, frames, self.loop.time()):
            return True
        now_s = self.loop.time()
        if now_s - self._held_at_s < _HOLD_AGAIN_S:
            self._cut_flood()
        else:
            self._held_at_s = now_s
            self._held = self.loop.call_later(_HOLD_S, self._after_hold)
        return False

    def _after_hold(self) -> None:
        self._held = None
        self._parse_soon()

    def handle_events(self) -> None:
        count = len(self.conn.events)
        self._frame_count += count
        self._has_frames = count > 0
        if (
            self._frames is None
            or not self.handshake_complete
            or self._frames.consume(count, self.loop.time())
        ):
            super().handle_events()
        else:
            self.conn.events.clear()
            self._cut_flood()

    def _cut_flood(self) -> None:
        """End the connection of a client that sends too much."""
        if self.sink is not None and not self.close_sent:
            self.sink.on_flood()
        self.finish(b"", CloseCode.RATE_LIMITED, "rate limited")
        self._be_deaf()

    def _be_deaf(self) -> None:
        """Stop reading permanently: the rest of a flood stays in the kernel, or with the client."""
        if self._is_deaf:
            return
        self._is_deaf = True
        self._received, self._offset = None, 0
        if self._held is not None:
            self._held.cancel()
            self._held = None
        if self._address is not None:
            self._address.note_flood(self.loop.time())
        self._update_reading()

    def handle_cont(self, event: Frame) -> None:
        # Join fragments as they arrive. If they were kept separately until the last one, tiny or
        # empty fragments would take far more memory than `message_max_bytes` allows.
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
                # uvicorn would log a traceback, although this is the client's error.
                with contextlib.suppress(InvalidState):  # The same read contained a close frame.
                    self.conn.send_close(CloseCode.INVALID_DATA, "invalid UTF-8")
                self.handle_parser_exception()
                return
        if self._handed_over and self.sink is not None:
            self.sink.receive(message)
        else:
            event: Any = {"type": "websocket.receive", self.curr_msg_data_type: message}
            self.queue.put_nowait(event)
            self.stop_reading()

    async def receive(self) -> Any:
        message = await self.queue.get()
        if self.queue.empty():
            self.resume_reading()
        return message

    def stop_reading(self) -> None:
        """Pause reading from the client."""
        self.read_paused = True
        self._update_reading()

    def resume_reading(self) -> None:
        """Resume reading from the client."""
        self.read_paused = False
        self._parse_soon()

    def _update_reading(self) -> None:
        """Let the transport read only while received data can be parsed."""
        wanted = not (self._is_deaf or self.read_paused or self._received is not None)
        if wanted == self._is_reading or self.transport.is_closing():
            return
        self._is_reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    # -- flow control

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.sink is not None:
            self.sink.paused = True
            self.sink.on_pause()

    def handle_ping(self) -> None:
        # Pongs for a client that does not read would pile up. Only the latest ping needs an answer
        # (RFC 6455, section 5.5.3), so one pong is kept until the client reads again.
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

    # -- keepalive: the server calls `keep_alive` regularly, so no timers are needed

    def schedule_ping(self) -> None:
        if self.ping_interval is not None:
            self._ping_at = self.loop.time() + self.ping_interval

    def stop_keepalive(self) -> None:
        self._ping_at = None
        self.pending_ping_payload = None

    def keep_alive(self, now: float) -> None:
        """Ping the client if a ping is due; close if it has not answered the last one in time."""
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

    # -- endings: each one schedules an abort, in case the transport can't drain

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
            # The client did not wait for the handshake response, so no close frame can be sent.
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
        self._is_deaf, self._is_reading, self._received = True, False, None
        for timer in (self._cut, self._held):
            if timer is not None:
                timer.cancel()
        if self.sink is not None:
            # No close frame was received. If there was one, the sink has ended already.
            self.sink.end(CloseCode.ABNORMAL)
        super().connection_lost(exc)
        self.conn.parser.close()  # Break the cycle between the connection and the generator.
        if self.sink is not None:
            self.sink.detach()
            self.sink = None  # Break the reference cycle: garbage collections are rare.
        if self._handed_over:
            del self.queue

    def _cut_later(self) -> None:
        if self.sink is not None:
            self.sink.detach()
        if self._cut is None:
            self._cut = self.loop.call_later(CLOSE_GRACE_S, self.transport.abort)
