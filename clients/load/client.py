"""One connection of the load: a plain asyncio protocol that checks what it receives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, cast

from clients.load import wire
from clients.load.conversation import SubscribeDialogue
from clients.load.meter import Meter
from clients.load.payload import Notice, PayloadReader, StreamNumbers, Summary, Undecodable
from clients.load.plan import Plan, PlannedClient
from clients.load.tally import SequenceChecker
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import CloseCode, ConnectionFailed
from tickcast.wire.errors import Fault as ServerFault

NO_CLOSE_FRAME: Final = 1006
_CLOSE_GRACE_S: Final = 1.0


class SharedState(NamedTuple):
    """What all clients of one process share."""

    plan: Plan
    address: wire.StreamAddress
    reader: PayloadReader
    streams: StreamNumbers
    meter: Meter
    on_error: Callable[[str], None]
    on_end: Callable[[LoadClient], None]


class LoadClient(asyncio.Protocol):
    """Connects, subscribes, and then accounts for every tick until it is closed.

    Attributes:
        subscribed: done once subscribed; a ConnectionFailed if the server refused.
        held: the streams that the client should receive: position on subscribing by stream
            number; empty if unknown.
        close_code: the code with which the server closed the connection, or 0.
        latency_us, latency_count: sum and count for the mean latency.
    """

    def __init__(
        self,
        shared: SharedState,
        seat: PlannedClient,
        generation: int,
        symbols: tuple[str, ...],
        held: Mapping[int, int],
        same_bytes: bool,
    ) -> None:
        plan = shared.plan
        self.seat = seat
        self.generation = generation
        self.held = held
        self.tally = SequenceChecker(shared.streams, held)
        self.subscribed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.conversation = SubscribeDialogue(
            plan.channels, symbols, plan.auth, plan.configure, plan.subscribe_options
        )
        self.began_ns = time.monotonic_ns()
        self.greeted_us = self.subscribed_us = 0
        self.close_code = 0
        self.leaving = False
        self.stalled = False
        self.queue_bytes = 0
        self.lag_ms = 0.0
        self.heartbeats = 0
        self.latency_us = self.latency_count = 0
        self.undecodable = 0
        self._shared = shared
        self._meter = shared.meter
        self._same_bytes = same_bytes
        self._frames = wire.FrameReader()
        self._handshake: wire.Handshake | None = wire.Handshake(
            shared.address, plan.subprotocol, plan.request_headers
        )
        self._transport: asyncio.Transport | None = None

    @property
    def name(self) -> str:
        """The display name: its seat, and its generation in that seat unless it is the first."""
        return f"client {self.seat.number}" + (f".{self.generation}" if self.generation else "")

    @property
    def is_open(self) -> bool:
        """Whether the client is subscribed, and neither closed nor closing."""
        return self.conversation.ready and not self.leaving and self._transport is not None

    # -- the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not `isinstance`: uvloop's transports do not have this base class.
        self._transport = cast("asyncio.Transport", transport)
        assert self._handshake is not None
        self._transport.write(self._handshake.request)

    def data_received(self, data: bytes) -> None:
        now_ns = time.time_ns()
        try:
            if self._handshake is not None:
                rest = self._handshake.feed(data)
                if rest is None:
                    return
                self.conversation.extended = self._handshake.subprotocol is not None
                self._handshake = None
                data = rest
            self._meter.bytes += len(data)
            try:
                self._take_messages(self._frames.feed(data), now_ns)
            except wire.FrameFault as fault:
                self._take_messages(fault.messages, now_ns)
                self._note_undecodable(str(fault))
                self._give_up(ConnectionFailed(str(fault)), CloseCode.PROTOCOL_ERROR)
        except ConnectionFailed as error:
            self._give_up(error, CloseCode.NORMAL)

    def _take_messages(self, messages: Iterable[wire.Message], now_ns: int) -> None:
        for opcode, payload in messages:
            if opcode in {wire.TEXT, wire.BINARY}:
                self._take_payload(payload, now_ns)
            else:
                self._take_control(opcode, payload)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.close_code = self.close_code or NO_CLOSE_FRAME
        if not self.subscribed.done():
            reason = f": {exc}" if exc else ""
            self._refuse(ConnectionFailed(f"closed while connecting ({self.close_code}){reason}"))
        self._shared.on_end(self)

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == wire.PING:
            self._send(wire.PONG, payload)
        elif opcode == wire.CLOSE and self._transport is not None:
            if not self.leaving:
                self.close_code = wire.close_code(payload)
                self._send(wire.CLOSE, payload[:2])
            self._transport.close()

    def _send(self, opcode: int, payload: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.build_frame(opcode, payload))

    # -- messages

    def _take_payload(self, payload: bytes, now_ns: int) -> None:
        self._meter.frames += 1
        try:
            content = self._shared.reader.read(payload, self._same_bytes)
        except Undecodable as error:
            self._note_undecodable(str(error))
            return
        if isinstance(content, Summary):
            self._take_ticks(content, now_ns)
            return
        for part in content:
            if isinstance(part, Summary):
                self._take_ticks(part, now_ns)
            else:
                self._take_notice(part)

    def _take_ticks(self, summary: Summary, now_ns: int) -> None:
        self.tally.add(summary)
        meter = self._meter
        slow = self.seat.slow
        meter.count(summary, slow)
        if not (meter.timing and summary.samples):
            return
        clocks = meter.slow if slow else meter.reading
        for sample in summary.samples:
            age_us = clocks.record(sample, now_ns)
            if age_us >= 0:
                self.latency_us += age_us * sample.weight
                self.latency_count += sample.weight
        oldest_us = (now_ns - summary.first_ns) // 1000
        if clocks.tick.count and oldest_us < 3_600_000_000:
            clocks.tick.note_max(oldest_us)

    def _take_notice(self, notice: Notice) -> None:
        kind = notice.get("T")
        if kind == "heartbeat":
            self.heartbeats += 1
            self.queue_bytes = int(notice.get("queue") or 0)
            self.lag_ms = float(notice.get("lag_ms") or 0)
        elif kind == "error":
            if notice.get("code") == ServerFault.SLOW_CLIENT.code:
                self.close_code = CloseCode.SLOW_CLIENT
            elif self.conversation.ready:
                self._meter.problems += 1
                self._shared.on_error(f"{notice.get('code')} {notice.get('msg')}")
        else:
            self.tally.add_notice(notice)
        if not self.conversation.ready:
            self._converse(notice)

    def _converse(self, notice: Notice) -> None:
        action = self.conversation.receive(notice)
        now_us = (time.monotonic_ns() - self.began_ns) // 1000
        if self.conversation.greeted and not self.greeted_us:
            self.greeted_us = now_us
        if action is not None:
            self._say(action)
        elif self.conversation.ready:
            self.subscribed_us = now_us
            if not self.subscribed.done():
                self.subscribed.set_result(None)

    def _say(self, action: dict[str, Any]) -> None:
        encoding = self._shared.plan.encoding
        opcode = wire.TEXT if encoding is Encoding.JSON else wire.BINARY
        self._send(opcode, encode(action, encoding))

    def _note_undecodable(self, text: str) -> None:
        self.undecodable += 1
        self._meter.problems += 1
        self._shared.on_error(f"undecodable: {text}"[:200])

    def _refuse(self, error: ConnectionFailed) -> None:
        if not self.subscribed.done():
            self.subscribed.set_exception(error)
            # Mark the exception as retrieved: the task that waited for it may be gone.
            self.subscribed.exception()

    def _give_up(self, error: ConnectionFailed, code: CloseCode) -> None:
        self._refuse(error)
        self.close_code = self.close_code or code
        if self._transport is not None:
            self._send(wire.CLOSE, wire.close_payload(code))
            self._transport.close()

    # -- called by the fleet

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
        self._send(wire.CLOSE, wire.close_payload(CloseCode.NORMAL))
        asyncio.get_running_loop().call_later(_CLOSE_GRACE_S, self.abort)

    def abort(self) -> None:
        """Abort the connection."""
        if self._transport is not None:
            self._transport.abort()
