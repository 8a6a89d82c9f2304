"""One connection of the load: an asyncio protocol that checks what it receives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidMessage
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from clients.load.measurements import Second, WorkerResult, add_counts
from clients.load.payload import Notice, PayloadReader, StreamNumbers, Summary, Undecodable
from clients.load.plan import Plan, PlannedClient
from clients.load.sequence import SequenceChecker
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import CloseCode, ConnectionFailed, Fault

NO_CLOSE_FRAME: Final = 1006
MESSAGE_MAX_BYTES: Final = 64 * 1024 * 1024
_HEAD_MAX_BYTES: Final = 16 * 1024
_CLOSE_GRACE_S: Final = 1.0
# The first bytes of frames that hold a whole message.
_WHOLE_MESSAGES: Final = (0x80 | Opcode.TEXT, 0x80 | Opcode.BINARY)
# Error codes with which a server refuses unknown options.
_UNKNOWN_OPTION: Final = frozenset((Fault.INVALID_SYNTAX.code, Fault.INVALID_ACTION.code))

Action = dict[str, Any]


class SubscribeDialogue:
    """The messages of a client from the server's greeting to its subscription. No I/O.

    Servers differ. One that speaks Alpaca's dialect accepts no subprotocol, and knows neither
    `configure` nor the options of `subscribe`. Extensions that a server refuses are left out and
    recorded.
    """

    def __init__(self, plan: Plan, symbols: tuple[str, ...]) -> None:
        self._channels = {channel: list(symbols) for channel in plan.channels}
        self._auth = plan.auth
        self._configure = plan.configure_options
        self._options = plan.subscribe_options
        # The type or `msg` of the next message to act on.
        self._awaited = "connected"
        # Whether the server has accepted the subprotocol, and so knows `configure`.
        self.extended = False
        self.ready = False
        # Extensions that the server accepted.
        self.granted: set[str] = set()

    @property
    def greeted(self) -> bool:
        """Whether the server has sent its greeting."""
        return self._awaited != "connected"

    def answer(self, notice: Notice) -> Action | None:
        """Process a message other than a tick; return the next message to send, if any.

        Raises ConnectionFailed if the server refused this client.
        """
        kind = notice.get("T")
        if kind == "error":
            return self._answer_error(notice)
        if (notice.get("msg") if kind == "success" else kind) != self._awaited:
            return None
        if kind == "subscription":
            self.granted |= set(self._options)
            self.ready = True
            return None
        if kind == "configured":
            self.granted |= {name for name in self._configure if notice.get(name)}
        elif self._awaited == "connected" and self._auth:
            self._awaited = "authenticated"
            return {"action": "auth", **self._auth}
        elif self.extended and self._configure:
            self._awaited = "configured"
            return {"action": "configure", **self._configure}
        return self._subscribe()

    def _subscribe(self) -> Action:
        self._awaited = "subscription"
        return {"action": "subscribe", **self._channels, **self._options}

    def _answer_error(self, notice: Notice) -> Action:
        # The server answers actions in turn, so an error answers the last one.
        code = notice.get("code")
        if code in _UNKNOWN_OPTION and self._awaited == "configured":
            return self._subscribe()
        if code in _UNKNOWN_OPTION and self._awaited == "subscription" and self._options:
            self._options = {}
            return self._subscribe()
        if code == Fault.NOT_AUTHENTICATED.code:
            raise ConnectionFailed("401 not authenticated; log in with --token-file FILE")
        raise ConnectionFailed(f"{code} {notice.get('msg')}")


class PoolState:
    """What the clients of one process share."""

    def __init__(
        self, plan: Plan, uri: WebSocketURI, on_close: Callable[[LoadClient], None]
    ) -> None:
        self.plan = plan
        self.uri = uri
        self.on_close = on_close
        self.streams = StreamNumbers()
        self.reader = PayloadReader(plan.encoding, self.streams)
        # The figures of the current second, and whether latencies are among them.
        self.second = Second()
        self.timing = False
        self.result = WorkerResult()

    def add_problem(self, text: str) -> None:
        """Count an error message of the server, or one about it."""
        self.second.problems += 1
        add_counts(self.result.connections.server_errors, {text[:160]: 1})


class LoadClient(asyncio.Protocol):
    """Connects, subscribes, and then accounts for every tick until it is closed.

    Frames that hold a whole message are read here, because the general reader of `websockets`
    takes 3 µs longer for each. It gets the handshake and all other frames.
    """

    def __init__(
        self,
        shared: PoolState,
        planned: PlannedClient,
        generation: int,
        symbols: tuple[str, ...],
        bases: Mapping[int, int],
        same_bytes: bool,
    ) -> None:
        plan = shared.plan
        self.planned = planned
        self.name = f"client {planned.number}" + (f".{generation}" if generation else "")
        # The streams that the client should receive, by number, with their positions before it
        # subscribed; empty if unknown.
        self.bases = bases
        shown = self.name + (" (slow)" if planned.slow else "")
        self.checker = SequenceChecker(shown, shared.streams, bases)
        self.dialogue = SubscribeDialogue(plan, symbols)
        # Done once subscribed; a ConnectionFailed if the server refused.
        self.subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.greeted_us = self.subscribed_us = 0
        # The code with which the server closed the connection, or 0.
        self.close_code = 0
        self.leaving = self.stalled = False
        # From the latest heartbeat.
        self.queue_bytes = self.heartbeats = 0
        self.lag_ms = 0.0
        # Sum and count for the mean latency.
        self.latency_us = self.latency_count = 0
        self._shared = shared
        self._same_bytes = same_bytes
        self._began_ns = time.monotonic_ns()
        self._transport: asyncio.Transport | None = None
        self._websocket = ClientProtocol(
            shared.uri, subprotocols=[Subprotocol(plan.subprotocol)], max_size=MESSAGE_MAX_BYTES
        )
        self._is_open = False
        # The beginning of the handshake's reply, or of a frame, and the size of the whole frame.
        self._chunks: list[bytes] = []
        self._received = self._needed = 0
        self._fragments: list[bytes] = []

    @property
    def is_reading(self) -> bool:
        """Whether the client is subscribed, and neither closed nor closing."""
        return self.dialogue.ready and not self.leaving and self._transport is not None

    # -- the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not `isinstance`: uvloop's transports do not have this base class.
        self._transport = cast("asyncio.Transport", transport)
        request = self._websocket.connect()
        for name, value in self._shared.plan.request_headers:
            request.headers[name] = value
        self._websocket.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        now_ns = time.time_ns()
        try:
            if not self._is_open:
                data = self._read_handshake(data)
                if not self._is_open:
                    return
            self._shared.second.bytes += len(data)
            self._read_frames(data, now_ns)
        except ConnectionFailed as error:
            self._refuse(error)
            self._close(CloseCode.NORMAL)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.close_code = self.close_code or NO_CLOSE_FRAME
        reason = f": {exc}" if exc else ""
        self._refuse(ConnectionFailed(f"closed while connecting ({self.close_code}){reason}"))
        self._shared.on_close(self)

    def _read_handshake(self, data: bytes) -> bytes:
        """Read the reply to the handshake; return what comes after it."""
        head, end, rest = b"".join((*self._chunks, data)).partition(b"\r\n\r\n")
        self._chunks = [head]
        if not end:
            if len(head) > _HEAD_MAX_BYTES:
                raise ConnectionFailed("the reply to the handshake never ends")
            return b""
        self._chunks.clear()
        status = head[9:12].decode("latin-1")
        if head.startswith(b"HTTP/1.") and status != "101":
            # Don't wait for the body, as `ClientProtocol` would.
            hint = "; a feed is at /stream or /v2/FEED" if status == "404" else ""
            raise ConnectionFailed(f"HTTP {status}{hint}")
        self._websocket.receive_data(head + end)
        if (error := self._websocket.handshake_exc) is not None:
            dialect = "HTTP" if isinstance(error, InvalidMessage) else "WebSocket"
            raise ConnectionFailed(f"the server does not speak {dialect}")
        self._websocket.events_received()
        self._is_open = True
        self.dialogue.extended = self._websocket.subprotocol is not None
        return rest

    def _read_frames(self, data: bytes, now_ns: int) -> None:
        if self._chunks:
            self._chunks.append(data)
            self._received += len(data)
            # A large frame arrives in many chunks: join them only once it is complete.
            if self._received < self._needed:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        start, size = 0, len(data)
        while start < size:
            begin, end = _locate_payload(data, start, size)
            if end > size:
                self._chunks.append(data[start:])
                self._received, self._needed = size - start, end - start
                return
            first = data[start]
            if begin and first in _WHOLE_MESSAGES and not self._fragments:
                self._receive_payload(data[begin:end], now_ns)
            else:
                self._websocket.receive_data(data[start:end])
                self._receive_events(now_ns)
                if self._transport is None or self._transport.is_closing():
                    return
            start = end

    def _receive_events(self, now_ns: int) -> None:
        """Process frames of `ClientProtocol`, which has answered pings and close frames."""
        self._flush()
        for event in self._websocket.events_received():
            assert isinstance(event, Frame)
            if event.opcode is Opcode.CLOSE:
                if not self.leaving:
                    self.close_code = Close.parse(event.data).code
                self._close(CloseCode.NORMAL)
            elif event.opcode not in {Opcode.PING, Opcode.PONG}:
                self._fragments.append(bytes(event.data))
                if event.fin:
                    payload = b"".join(self._fragments)
                    self._fragments.clear()
                    self._receive_payload(payload, now_ns)
        if (error := self._websocket.parser_exc) is not None:
            self._add_undecodable(str(error))
            self._refuse(ConnectionFailed(str(error)))
            self._close(CloseCode.PROTOCOL_ERROR)

    # -- messages

    def _receive_payload(self, payload: bytes, now_ns: int) -> None:
        self._shared.second.frames += 1
        try:
            parts = self._shared.reader.summarize(payload, self._same_bytes)
        except Undecodable as error:
            self._add_undecodable(str(error))
            return
        for part in parts:
            if isinstance(part, Summary):
                self._receive_ticks(part, now_ns)
            else:
                self._receive_notice(part)

    def _receive_ticks(self, summary: Summary, now_ns: int) -> None:
        self.checker.add_ticks(summary)
        second = self._shared.second
        second.ticks += summary.ticks
        if self.planned.slow:
            second.slow_ticks += summary.ticks
        if not (self._shared.timing and summary.samples):
            return
        latencies = second.slow if self.planned.slow else second.reading
        for sample in summary.samples:
            age_us = latencies.record_sample(sample, now_ns)
            if age_us >= 0:
                self.latency_us += age_us * sample.weight
                self.latency_count += sample.weight
        latencies.record_oldest((now_ns - summary.first_ns) // 1000)

    def _receive_notice(self, notice: Notice) -> None:
        kind = notice.get("T")
        if kind == "heartbeat":
            self.heartbeats += 1
            self.queue_bytes = int(notice.get("queue") or 0)
            self.lag_ms = float(notice.get("lag_ms") or 0)
        elif kind == "error":
            if notice.get("code") == Fault.SLOW_CLIENT.code:
                self.close_code = CloseCode.SLOW_CLIENT
            elif self.dialogue.ready:
                self._shared.add_problem(f"{notice.get('code')} {notice.get('msg')}")
        else:
            self.checker.add_notice(notice)
        if not self.dialogue.ready:
            self._continue_dialogue(notice)

    def _continue_dialogue(self, notice: Notice) -> None:
        action = self.dialogue.answer(notice)
        now_us = (time.monotonic_ns() - self._began_ns) // 1000
        if self.dialogue.greeted and not self.greeted_us:
            self.greeted_us = now_us
        if self.dialogue.ready:
            self.subscribed_us = now_us
            if not self.subscribed.done():
                self.subscribed.set_result(None)
        elif action is not None:
            encoding = self._shared.plan.encoding
            send = self._websocket.send_text
            if encoding is Encoding.MSGPACK:
                send = self._websocket.send_binary
            send(encode(action, encoding))
            self._flush()

    def _add_undecodable(self, text: str) -> None:
        self._shared.result.accounts.undecodable += 1
        self._shared.add_problem(f"undecodable: {text}")

    def _refuse(self, error: ConnectionFailed) -> None:
        if not self.subscribed.done():
            self.subscribed.set_exception(error)
            # Mark the exception as retrieved: the task that waited for it may be gone.
            self.subscribed.exception()

    def _flush(self) -> None:
        for data in self._websocket.data_to_send():
            if data and self._transport is not None and not self._transport.is_closing():
                self._transport.write(data)

    def _close(self, code: CloseCode) -> None:
        """Close the connection from this side, for a reason that lies with the server."""
        self.close_code = self.close_code or code
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(code)
            self._flush()
        if self._transport is not None:
            self._transport.close()

    # -- called by the pool

    def stall(self) -> None:
        """Stop reading."""
        if self._transport is not None and not self.stalled and not self._transport.is_closing():
            self._transport.pause_reading()
            self.stalled = True

    def resume_reading(self) -> None:
        """Resume reading."""
        if self.stalled and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self.stalled = False

    def leave(self) -> None:
        """Close the connection, and abort it if the server does not answer."""
        if self.leaving or self._transport is None:
            return
        self.leaving = True
        self.resume_reading()
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(CloseCode.NORMAL)
            self._flush()
        asyncio.get_running_loop().call_later(_CLOSE_GRACE_S, self.abort)

    def abort(self) -> None:
        """Abort the connection."""
        if self._transport is not None:
            self._transport.abort()


def _locate_payload(data: bytes, start: int, size: int) -> tuple[int, int]:
    """Return the bounds of the payload of the frame at `start`; the end is past `size` if unknown.

    The beginning is 0 for a frame that no server may send; `ClientProtocol` rejects it.
    """
    if size - start < 2:
        return 0, start + 2
    length = data[start + 1]
    if length < 126:
        return start + 2, start + 2 + length
    begin = start + (4 if length == 126 else 10)
    if length > 127:
        return 0, size  # Only clients mask their frames.
    if begin > size:
        return 0, begin
    length = int.from_bytes(data[start + 2 : begin], "big")
    return (0, size) if length > MESSAGE_MAX_BYTES else (begin, begin + length)
