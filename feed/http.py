"""uvicorn's HTTP protocol, made safe against clients that stall and requests that are malformed.

uvicorn waits for the rest of a request for ever, and keeps what has come of it. Here a request has
a time in which to be complete, and bounds in every direction: `feed.http_rules`. An application is
asked only when the whole request is there, so that a refusal never meets an answer half-way.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import math
import socket as sockets
import struct
import sys
import termios
from collections import Counter
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from feed import http_rules as rules
from feed.address_limits import AddressLimiter, AddressLimits
from feed.errors import CLOSE_GRACE_S
from feed.http_rules import MALFORMED, SLICE_BYTES, STALLED, Refusal
from feed.loop_share import LoopShare

HANDSHAKE_TIMEOUT_S: Final = 5.0
"""Where uvicorn's configuration has no `handshake_timeout_s`."""

_PIPELINE_MAX: Final = 8
_BUSY_RETRY_S: Final = 5
_TIMEOUT: Final = HTTPStatus.REQUEST_TIMEOUT
_BAD: Final = HTTPStatus.BAD_REQUEST

logger = logging.getLogger("tickcast.http")


PROBES: Final = frozenset(("/health", "/ready"))
"""Paths that a supervisor asks for, to know whether the server lives and may have clients."""


class FeedHttpProtocol(HttpToolsProtocol):
    """The protocol class for `uvicorn.Config(http=…)`.

    One timer goes with a connection. It begins anew with each request but the first, whose time
    counts from the connection's beginning. Where it finds a request that is not complete, the
    connection ends. The server finds unread answers, by a look at all connections at once:
    `note_progress`.

    What goes no further is counted in the `refused` of the lifespan's state, if there is one.

    Attributes:
        served: how many requests it has begun to answer.
    """

    # Among uvicorn's own attributes they would double the size of a dict.
    __slots__ = (
        "_address", "_due", "_due_s", "_held", "_in_head", "_is_handshake", "_is_over",
        "_is_receiving", "_patience_s", "_received", "_refused", "_share", "_size", "_still",
        "_timer", "_unread", "served",
    )  # fmt: skip

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._refused: Counter[str] = self.app_state.get("refused", Counter())
        self._patience_s: float = getattr(self.config, "handshake_timeout_s", HANDSHAKE_TIMEOUT_S)
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        """When the timer is to look, by the loop's clock."""
        self._share: LoopShare = self.app_state.get("loop_share") or LoopShare()
        self._address: AddressLimiter | None = None
        self.served = 0
        self._received = b""
        """What has come and is not parsed yet."""
        self._unread: float = math.inf
        """Bytes of answers that the client had not acknowledged at the last look."""
        self._still = 0
        """Looks since it has acknowledged any."""
        self._is_over = False
        """Nothing is parsed any more."""
        self._is_receiving = False
        """A request has begun and is not complete."""
        self._in_head = False
        self._is_handshake = False
        self._size = 0
        """Bytes that have come of its head, and then of its body."""
        self._held: Any = None
        """The application, while the request that it is to answer is not complete."""
        self._due: Refusal | None = None
        """What is to be said when the answers to earlier requests are out."""

    # -- time

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        limits: AddressLimits | None = self.app_state.get("address_limits")
        if limits is not None and self.client is not None:
            self._address = limits.of_peer(self.client[0])
        if self._address is not None:
            self._address.connections += 1
            self._check_address(self._address)
        self._check_room()

    def _check_address(self, address: AddressLimiter) -> None:
        """Refuse an address before anything of its request is parsed."""
        wait_s = address.shut_out_s(self.loop.time())
        reason = rules.SHUT_OUT
        if not wait_s and address.connections > address.limits.connections_max:
            wait_s, reason = _BUSY_RETRY_S, rules.ADDRESS
        if wait_s:
            headers = [(b"retry-after", b"%d" % wait_s)]
            self._refuse(Refusal(HTTPStatus.TOO_MANY_REQUESTS, headers, reason))

    def _check_room(self) -> None:
        """Where the number of connections is bounded, the oldest that never asked makes room."""
        limit: int | None = getattr(self.config, "http_connections_max", None)
        if limit is None or len(self.connections) <= limit:
            return
        others = [
            each for each in self.connections
            if isinstance(each, FeedHttpProtocol) and not each.served and each is not self
        ]  # fmt: skip
        if others:
            min(others, key=lambda each: each._due_s).make_room()
        elif not self._is_over:
            headers = [(b"retry-after", b"%d" % _BUSY_RETRY_S)]
            self._refuse(Refusal(HTTPStatus.SERVICE_UNAVAILABLE, headers, rules.FULL))

    def make_room(self) -> None:
        """End, so that another connection can be served."""
        self._is_over = True
        self._refused[STALLED] += 1
        self._note_refusal()
        reset(self.transport)

    def _note_refusal(self) -> None:
        if self._address is not None:
            self._address.note_refusal(self.loop.time())

    def _leave_address(self) -> None:
        if self._address is not None:
            self._address.connections -= 1
            self._address = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        self._stop_waiting()
        self._leave_address()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._due_s = self.loop.time() + self._patience_s
        if self._timer is None:
            self._timer = self.loop.call_later(self._patience_s, self._look)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """End a connection whose time is up; look again later where that is not for us to say."""
        # To put it off costs less than another timer for each request.
        wait_s = self._due_s - self.loop.time()
        self._timer = self.loop.call_later(wait_s, self._look) if wait_s > 0 else None
        if self._timer is not None:
            return
        if self._is_receiving and not self._is_answering():
            self._refuse(Refusal(_TIMEOUT, reason=STALLED))
        elif (
            self.transport.get_write_buffer_size()
            or self._is_answering()
            or self.timeout_keep_alive_task is not None
        ):
            self._wait()
        else:
            self._refused[STALLED] += 1
            self._close()

    def note_progress(self) -> int:
        """Look how much the client has read of its answers; the server calls it twice a second.

        Returns:
            How many looks in a row have found that it read nothing, though something waits for it.
        """
        waiting = self.transport.get_write_buffer_size()
        unread = waiting + unacknowledged(self.transport) if waiting else math.inf
        self._still = self._still + 1 if waiting and unread >= self._unread else 0
        self._unread = unread
        return self._still

    @property
    def patience_looks(self) -> int:
        """How many such looks are too many, where there are few such clients: some 10 s."""
        return max(1, round(4 * self._patience_s))

    def give_up_reader(self) -> None:
        """Cut a client that reads nothing of its answers."""
        self._refused[STALLED] += 1
        self._is_over = True
        reset(self.transport)

    def _is_answering(self) -> bool:
        """Whether the answer to a complete request is still to come, or has come in part."""
        is_open = self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline) or (is_open and self._held is None)

    # -- bytes

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, a little at a time, so that every bound is noticed soon.

        What the loop has no time for in this turn waits, and meanwhile nothing more is read.
        """
        self._unset_keepalive_if_required()
        if self._is_over:
            return
        if self._received:
            self._received += data
            return
        self._received = data
        if self._share.run(self._parse):
            self.flow.pause_reading()

    def _parse(self, deadline_s: float) -> bool:
        """Parse what has come until a deadline; returns whether some of it is left."""
        while self._received and not self._is_over:
            data, self._received = self._received[:SLICE_BYTES], self._received[SLICE_BYTES:]
            self._feed(data)
            if perf_counter() >= deadline_s and self._received and not self._is_over:
                return True
        self._received = b""
        if not (self.pipeline or self.transport.is_closing()):
            self.flow.resume_reading()
        return False

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
            if self._is_receiving:
                self._size += len(data)
                rules.check_size(self._size, len(self.headers), in_head=self._in_head)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            elif rest := data[upgrade.args[0] :]:
                # Of no protocol that we know: the request was an ordinary one (RFC 9110, 7.8).
                self._feed(rest)
        except Refusal as refusal:
            self._refuse(refusal)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, Refusal) else Refusal(_BAD))

    # -- what the parser finds

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_receiving = self._in_head = True
        self._size = 0
        if self.cycle is not None:
            self._wait()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        rules.check_url_size(self.url)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._size = 0
        version = self.parser.get_http_version()
        has_body = rules.check_head(self.url, version, self.headers)
        self._is_handshake = False
        if self.parser.should_upgrade():
            # HTTP/1.0 knows no upgrade (RFC 9110, section 7.8), and uvicorn would call it 1.1.
            self._is_handshake = version == "1.1" and super()._should_upgrade()
            if self._is_handshake:
                rules.check_handshake(self.parser.get_method(), self.url, self.headers)
                if self._is_answering():
                    # The answer would come in the midst of frames.
                    raise Refusal(_BAD)
            if has_body:
                # The parser takes it for what follows an upgrade, hence for the next request.
                raise Refusal(_BAD)
        if has_body and self.expect_100_continue:
            raise Refusal(HTTPStatus.EXPECTATION_FAILED)
        if len(self.pipeline) >= _PIPELINE_MAX:
            raise Refusal(HTTPStatus.TOO_MANY_REQUESTS)
        super().on_headers_complete()
        if has_body:
            # What stands behind a body goes here, not among the headers (RFC 9110, 6.5.1).
            self.headers = self.headers.copy()

    def on_body(self, body: bytes) -> None:
        """Keep nothing: no endpoint of ours takes a body."""

    def on_message_complete(self) -> None:
        self._is_receiving = False
        super().on_message_complete()
        if self._held is not None:
            app, self._held = self._held, None
            self._start_asgi_task(self.cycle, app)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if cycle.more_body:
            self._held = app
        else:
            self.served += 1
            super()._start_asgi_task(cycle, partial(self._run_in_turn, cycle, app))

    async def _run_in_turn(
        self, cycle: RequestResponseCycle, app: ASGIApp, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Run an application, in a turn of the loop in which only a few others start."""

        async def send_while_open(message: Message) -> None:
            # uvicorn waits for this as well, but may then write to a transport that is closed: of
            # pipelined requests, it tells only the last that the client is gone.
            await self.flow.drain()
            cycle.disconnected = cycle.disconnected or self.transport.is_closing()
            await send(message)

        await self._share.start(urgent=scope["path"] in PROBES)
        await app(scope, receive, send_while_open)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._due is not None:
            self._refuse(self._due)

    # -- WebSocket handshakes

    def _should_upgrade(self) -> bool:
        return self._is_handshake

    def handle_websocket_upgrade(self) -> None:
        """As uvicorn's, in a turn of the loop that has time for it.

        It takes a good part of a millisecond, and one turn may read a thousand handshakes.
        """
        self._is_over = True
        self._stop_waiting()
        if not self.transport.is_closing():
            self.transport.pause_reading()
            self.flow.read_paused = False  # From now on, reading is none of its business.
            self._share.run(self._upgrade)

    def _upgrade(self, deadline_s: float) -> bool:
        """Leave the connection to the other protocol, and release everything of this one."""
        if not self.transport.is_closing():
            self._leave_address()
            # First, since the other protocol may pause it as well.
            self.transport.resume_reading()
            super().handle_websocket_upgrade()
        # The two hold each other, and collections are rare.
        self.parser = None  # type: ignore[assignment]
        return False

    # -- endings

    def timeout_keep_alive_handler(self) -> None:
        # An answer that is still being read is given the time; `note_progress` sees whether it is.
        self.timeout_keep_alive_task = None
        super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        if self._is_answering():
            super().shutdown()
        else:
            self._close()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer that a request goes no further, and see to it that the socket goes.

        Earlier requests get their answers first.
        """
        self._is_over = True
        if self._is_answering():
            self._due = refusal.with_traceback(None)  # Its frames would keep this object.
            return
        logger.debug("refused a request: %d %s", refusal.status, refusal)
        self._refused[refusal.reason] += 1
        if refusal.reason in (STALLED, MALFORMED):
            self._note_refusal()
        if self.transport.is_closing():
            self._close()
            return
        text = f"{refusal}\n".encode("ascii")
        headers = [
            *self.server_state.default_headers,
            *refusal.headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(text)),
            (b"connection", b"close"),
        ]
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join([STATUS_LINE[refusal.status], *lines, b"\r\n", text]))
        if refusal.status != _TIMEOUT and self.transport.can_write_eof():
            # More is on its way, and closing on it would cut off the answer (RFC 9112, 9.6).
            self.transport.write_eof()
            self._abort_later()
        else:
            self._close()

    def _close(self) -> None:
        self._is_over = True
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(CLOSE_GRACE_S, self.transport.abort)


def reset(transport: asyncio.Transport) -> None:
    """End a connection, and drop what the kernel holds for a client that does not read it.

    Otherwise the kernel would go on offering that for minutes.
    """
    socket = transport.get_extra_info("socket")
    if socket is not None:
        with contextlib.suppress(OSError):
            socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes in the kernel that the other end has not acknowledged; 0 where that is not known.

    A client on a slow line acknowledges something every now and then, long before the kernel has
    room for more. Source: tcp(7), SIOCOUTQ.
    """
    socket = transport.get_extra_info("socket")
    if socket is None or sys.platform != "linux":
        return 0
    try:
        return int.from_bytes(
            fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder
        )
    except OSError:
        return 0
