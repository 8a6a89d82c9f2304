"""WebSocket connections after the handshake (RFC 6455), on the parser of the `websockets` library.

Bytes of a client become messages in slices, as its limits and the time of the event loop allow.
Frames to the client are written to the transport as they are. Pings, the closing handshake and all
limits on what a client may send are here; `feed.transport.handshake` precedes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine
from time import perf_counter
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.protocol import SEND_EOF
from websockets.protocol import Protocol as FrameParser

from feed.transport.address_limits import AddressLimiter, FrameLimit, TokenBucket
from feed.transport.loop_time import TurnBudget
from tickcast.wire.errors import CLOSE_GRACE_S, CloseCode

# How much a transport buffers for a client that does not read before it pauses writing.
_HIGH_WATER_BYTES: Final = 64 * 1024
# Slices are short, so that an exceeded limit is noticed early.
_SLICE_BYTES: Final = 1024
_LONG_SLICE_BYTES: Final = 4 * 1024
# How long a client must wait when its address has used up its allowance.
_HOLD_S: Final = 0.5
# A client that would have to wait again within this time is flooding, and is cut.
_HOLD_AGAIN_S: Final = 5.0

# Handles a message; returns a coroutine if it must be awaited before the next message.
OnMessage = Callable[[str | bytes], Coroutine[Any, Any, None] | None]

logger = logging.getLogger("tickcast.connection")


class WebSocketConnection(asyncio.Protocol):
    """A connection after its handshake, and its sink: frames go to its transport directly.

    `feed.server.running.FeedServer` sends the pings.

    Attributes:
        paused, on_pause, write: see `feed.fanout.outbox.Sink`.
        on_drain: called when the client reads again.
        on_shutdown: called when the server shuts down; returns the frames to send before closing.
        on_flood: called when the client sends more than allowed; should call `finish`.
        on_message, on_end: see `hand_over`.
        address_limiter: charged for what the client sends; None if its address has no limits.
    """

    # An instance dict would take 2 kB more for each client.
    __slots__ = (
        "_abort_timer", "_connections", "_discards_data", "_end_code", "_frame_allowance",
        "_frame_count", "_has_frames", "_held", "_held_at_s", "_is_reading", "_is_scheduled",
        "_is_text", "_offset", "_parser", "_partial", "_ping_at_s", "_ping_interval_s",
        "_ping_payload", "_ping_timeout_s", "_pong", "_received", "_tasks", "_turns", "_waiting",
        "address_limiter", "close_sent", "is_accepted", "loop", "on_drain", "on_end", "on_flood",
        "on_message", "on_pause", "on_shutdown", "paused", "read_paused", "transport", "write",
    )  # fmt: skip

    transport: asyncio.Transport
    write: Callable[[bytes], None]

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self._connections: set[Any] = server_state.connections
        self._tasks = server_state.tasks
        self._turns: TurnBudget = app_state.get("turn_budget") or TurnBudget()

        self.on_message: OnMessage = _ignore
        self.on_end: Callable[[int], None] = _ignore
        self.on_pause: Callable[[], None] = _ignore
        self.on_drain: Callable[[], None] = _ignore
        self.on_shutdown: Callable[[], bytes] = bytes
        self.on_flood: Callable[[], None] = _ignore

        # Parses frames; None until the request for the handshake has arrived.
        self._parser: FrameParser | None = None
        # Whether the handshake is complete.
        self.is_accepted = False
        # The fragments of an incomplete message.
        self._partial: bytearray | None = None
        self._is_text = False
        # Messages that wait until the one before is handled; None if none is being handled.
        self._waiting: deque[str | bytes] | None = None

        # Data that is not parsed yet, from `_offset` on: what one read of the transport returned.
        self._received: bytes | None = None
        self._offset = 0
        # Whether `_parse` has been passed to `TurnBudget`, which will call it.
        self._is_scheduled = False
        # Whether the last slice completed frames, and how many the address is not charged for yet.
        self._has_frames = True
        self._frame_count = 0
        # Whether the owner takes no messages for now.
        self.read_paused = False
        # Whether further data is dropped, because the client has sent too much or is gone.
        self._discards_data = False
        # Whether the transport reads.
        self._is_reading = True

        limit: FrameLimit | None = getattr(config, "frame_limit", None)
        self._frame_allowance = TokenBucket(*limit) if limit else None
        self.address_limiter: AddressLimiter | None = None
        # When reading was last held because the address had used up its allowance.
        self._held_at_s = -math.inf
        self._held: asyncio.TimerHandle | None = None

        # Whether the client does not read what is written. One pong waits until it does.
        self.paused = False
        self._pong = b""

        self._ping_interval_s = config.ws_ping_interval
        self._ping_timeout_s = config.ws_ping_timeout
        # When to send the next ping, or to give up waiting for a pong with this payload.
        self._ping_at_s = math.inf
        self._ping_payload: bytes | None = None

        # Whether a close frame or a refusal has been sent, and the code passed to `on_end`.
        self.close_sent = False
        self._end_code: int | None = None
        # Ends the connection in case the transport can't drain.
        self._abort_timer: asyncio.TimerHandle | None = None

    # -- transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        # By default, uvloop buffers another 512 KiB under TLS, and does not count data that it has
        # encrypted and passed on.
        transport.set_write_buffer_limits(_HIGH_WATER_BYTES)
        # Bound directly to the transport's method: a flush calls it once for each client.
        self.write = transport.write
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._discards_data, self._is_reading, self._received = True, False, None
        for timer in (self._abort_timer, self._held):
            if timer is not None:
                timer.cancel()
        self._connections.discard(self)
        self.end(CloseCode.ABNORMAL)  # Without effect if there was a close frame.
        self._detach()
        if self._parser is not None:
            break_cycle(self._parser)
            self._parser = None

    def pause_writing(self) -> None:
        self.paused = True
        self.on_pause()

    def resume_writing(self) -> None:
        self.paused = False
        pong, self._pong = self._pong, b""
        if pong and not (self.close_sent or self.transport.is_closing()):
            self.transport.write(pong)
        self.on_drain()

    def buffered(self) -> int:
        """Bytes written that the operating system has not accepted yet."""
        return self.transport.get_write_buffer_size()

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- reading: received data is parsed in slices, as limits and the loop's time allow

    def data_received(self, data: bytes) -> None:
        if self._discards_data:
            return
        self._received = data if self._received is None else self._received + data
        self._parse_soon()

    def pause_reading(self) -> None:
        """Take no more messages from the client for now."""
        self.read_paused = True
        self._update_reading()

    def resume_reading(self) -> None:
        """Take messages again."""
        self.read_paused = False
        self._parse_soon()

    def _parse_soon(self) -> None:
        is_held = self.read_paused or self._held is not None
        if self._received is not None and not (self._is_scheduled or is_held):
            self._is_scheduled = True
            self._is_scheduled = self._turns.run(self._parse)
        self._update_reading()

    def _update_reading(self) -> None:
        """Let the transport read only while received data can be parsed.

        One read may contain thousands of frames. Reading pauses until they are parsed, so that a
        client can't fill our memory.
        """
        wanted = not (self._discards_data or self.read_paused or self._received is not None)
        if wanted == self._is_reading or self.transport.is_closing():
            return
        self._is_reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def _parse(self, deadline_s: float) -> bool:
        """Parse received data until a deadline; return whether to be called again."""
        try:
            while self._received is not None and not self.read_paused:
                # Inside a long frame, there are no frames to count, so a slice can be longer.
                slice_bytes = _SLICE_BYTES if self._has_frames else _LONG_SLICE_BYTES
                size = min(slice_bytes, len(self._received) - self._offset)
                if not self._charge_address(size):
                    break
                data = self._received[self._offset : self._offset + size]
                self._offset += size
                if self._offset == len(self._received):
                    self._received, self._offset = None, 0
                self._parse_slice(data)
                if perf_counter() >= deadline_s and self._received is not None:
                    self._is_scheduled = not self.read_paused
                    return self._is_scheduled
        except BaseException:
            self.transport.abort()
            raise
        self._is_scheduled = False
        self._update_reading()
        return False

    def _charge_address(self, size: int) -> bool:
        """Charge the address for data; if its allowance is used up, the client waits or is cut."""
        if self.address_limiter is None:
            return True
        frames, self._frame_count = self._frame_count, 0
        now_s = self.loop.time()
        if self.address_limiter.spend_bytes(size, frames, now_s):
            return True
        if now_s - self._held_at_s < _HOLD_AGAIN_S:
            self._cut_flood()
        else:
            self._held_at_s = now_s
            self._held = self.loop.call_later(_HOLD_S, self._resume_after_hold)
        return False

    def _resume_after_hold(self) -> None:
        self._held = None
        self._parse_soon()

    def _cut_flood(self) -> None:
        """End the connection of a client that sends too much."""
        if not self.close_sent:
            self.on_flood()
        self.finish(b"", CloseCode.RATE_LIMITED, "rate limited")
        self._stop_reading()

    def _stop_reading(self) -> None:
        """Stop reading permanently: the rest of a flood stays in the kernel, or with the client."""
        if self._discards_data:
            return
        self._discards_data = True
        self._received, self._offset = None, 0
        if self._held is not None:
            self._held.cancel()
            self._held = None
        if self.address_limiter is not None:
            self.address_limiter.note_flood(self.loop.time())
        self._update_reading()

    # -- frames and messages

    def _parse_slice(self, data: bytes) -> None:
        parser = self._parser
        assert parser is not None
        parser.receive_data(data)
        frames, answers = parser.events_received(), iter(parser.data_to_send())
        self._frame_count += len(frames)
        self._has_frames = bool(frames)
        if (
            self._frame_allowance is not None
            and self.is_accepted
            and not self._frame_allowance.consume(len(frames), self.loop.time())
        ):
            self._cut_flood()
            return
        for frame in frames:
            assert isinstance(frame, Frame)
            match frame.opcode:
                case Opcode.TEXT | Opcode.BINARY:
                    self._is_text = frame.opcode is Opcode.TEXT
                    self._add_fragment(frame)
                case Opcode.CONT:
                    self._add_fragment(frame)
                case Opcode.PING:
                    self._send_pong(next(answers))
                case Opcode.PONG if frame.data == self._ping_payload:
                    self._ping_payload = None
                    self._schedule_ping()
        rest = [*answers, *parser.data_to_send()]
        if SEND_EOF in rest:
            self._close_after(b"".join(rest))

    def _add_fragment(self, frame: Frame) -> None:
        # Fragments are joined as they arrive. Kept separately until the last one, tiny or empty
        # fragments would take far more memory than `message_max_bytes` allows.
        payload = frame.data
        if self._partial is not None or not frame.fin:
            self._partial = self._partial or bytearray()
            self._partial += payload
            if not frame.fin:
                return
            payload, self._partial = self._partial, None
        if self.close_sent:
            return
        message: str | bytes = bytes(payload)
        if self._is_text:
            try:
                message = str(payload, "utf-8")
            except UnicodeDecodeError:
                assert self._parser is not None
                self._parser.fail(CloseCode.INVALID_DATA, "invalid UTF-8")
                self.close_sent = True
                return
        self._handle_message(message)

    def _handle_message(self, message: str | bytes) -> None:
        """Pass a message on, or queue it while another one is being handled."""
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
            self.pause_reading()
            self._start_task(self._finish_messages(work))

    async def _finish_messages(self, work: Coroutine[Any, Any, None]) -> None:
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
            self.resume_reading()

    def _fail(self) -> None:
        # Without an end of the connection, the client would wait for a reply indefinitely.
        logger.exception("a message could not be answered, closing the connection")
        self.finish(b"", CloseCode.INTERNAL_ERROR, "internal error")

    # -- pings: the server calls `keep_alive` regularly, so no timers are needed

    def keep_alive(self, now_s: float) -> None:
        """Ping the client if a ping is due; close if it has not answered the last one in time."""
        if now_s < self._ping_at_s or self._parser is None:
            return
        if self.close_sent or self.transport.is_closing():
            self._ping_at_s = math.inf
        elif self._ping_payload is not None:
            self._parser.fail(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")
            self._close_after(b"".join(self._parser.data_to_send()))
        else:
            self._ping_payload = random.randbytes(4)
            self._ping_at_s = now_s + (self._ping_timeout_s or math.inf)
            self._parser.send_ping(self._ping_payload)
            self.transport.write(b"".join(self._parser.data_to_send()))

    def _schedule_ping(self) -> None:
        if self._ping_interval_s is not None:
            self._ping_at_s = self.loop.time() + self._ping_interval_s

    def _send_pong(self, pong: bytes) -> None:
        # Pongs for a client that does not read would pile up. Only the latest ping needs an answer
        # (RFC 6455, section 5.5.3), so one pong is kept until it can be written.
        if self.paused or not self.is_accepted:
            self._pong = pong
        elif not self.close_sent:
            self.transport.write(pong)

    # -- endings: each one schedules an abort, in case the transport can't drain

    def finish(self, last_frames: bytes, code: int, reason: str = "") -> None:
        """Write the last frames and a close frame, then make sure that the socket is closed.

        This does not wait for the client, which may not be reading.
        """
        self._detach()
        if not self.is_accepted or self.close_sent or self.transport.is_closing():
            return
        assert self._parser is not None
        self.close_sent = True
        with contextlib.suppress(InvalidState):  # The client closed first and has been answered.
            self._parser.send_close(code, reason)
        self.transport.write(last_frames + b"".join(self._parser.data_to_send()))
        self.end(code)
        if code == CloseCode.RATE_LIMITED:
            self._stop_reading()
        else:
            self.resume_reading()  # To receive the client's close frame.
        self._abort_later()

    def shutdown(self) -> None:
        """Close with 1012; uvicorn calls this when the server shuts down."""
        if self.close_sent:
            self.transport.close()
        else:
            self.finish(self.on_shutdown(), CloseCode.RESTART)
        self._abort_later()

    def end(self, code: int) -> None:
        """Schedule `on_end`: not at once, because a flush may be under way."""
        if self._end_code is None:
            self._end_code = code
            self.loop.call_soon(self.on_end, code)
            self._drop_callbacks()

    def _close_after(self, last_frames: bytes) -> None:
        """Close after the client's close frame, or after an error of the client."""
        if not self.is_accepted:
            # The client did not wait for the handshake response, so no close frame can be sent.
            self.transport.abort()
            return
        assert self._parser is not None
        assert self._parser.close_sent is not None
        self.end(self._parser.close_sent.code)
        self.close_sent = True
        if not self.transport.is_closing():
            self.transport.write(last_frames)
            self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        self._detach()
        if self._abort_timer is None:
            self._abort_timer = self.loop.call_later(CLOSE_GRACE_S, self.transport.abort)

    def _detach(self) -> None:
        """Discard all writes of the owner from now on."""
        self.write = _ignore
        self.on_pause()
        self.on_pause = self.on_drain = _ignore

    def _drop_callbacks(self) -> None:
        # Break the reference cycles with the owner of the callbacks: collections are rare.
        self.on_message = self.on_end = self.on_drain = self.on_flood = _ignore
        self.on_shutdown = bytes


def break_cycle(parser: FrameParser) -> None:
    """Free a parser, whose generator refers to it, at once: garbage collections are rare."""
    vars(parser).clear()


def _ignore(*_: object) -> None:
    """The callback of an owner that has not set one, or has removed it."""
