"""uvicorn's HTTP protocol, made safe against clients that stall and requests that are malformed.

uvicorn waits indefinitely for the rest of a request and keeps what it has received. Here a request
must be complete within a time limit and respect the size limits of `feed.transport.http_rules`. The
application is called only when the request is complete, so that a refusal can't arrive in the
middle of its response.
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

from feed.transport import http_rules as rules
from feed.transport.address_limits import AddressLimiter, AddressLimits
from feed.transport.http_rules import MALFORMED, SLICE_BYTES, STALLED, RequestRefused
from feed.transport.loop_time import TurnBudget
from tickcast.wire.errors import CLOSE_GRACE_S

HANDSHAKE_TIMEOUT_S: Final = 5.0
"""Used when uvicorn's configuration has no `handshake_timeout_s`."""

_PIPELINE_MAX: Final = 8
_BUSY_RETRY_S: Final = 5
_TIMEOUT: Final = HTTPStatus.REQUEST_TIMEOUT
_BAD: Final = HTTPStatus.BAD_REQUEST

logger = logging.getLogger("tickcast.http")


PROBES: Final = frozenset(("/health", "/ready"))
"""Paths of the liveness and readiness probes."""


class FeedHttpProtocol(HttpToolsProtocol):
    """The protocol class for `uvicorn.Config(http=…)`.

    Each connection has one timer. It starts when the connection opens, which covers the first
    request, and restarts with each later request. If a request is incomplete when it expires, the
    connection is closed. Unread responses are found by the server, which calls `note_progress` on
    all connections.

    Refusals are counted in `refused` of the lifespan state, if it exists.

    Attributes:
        served: number of requests for which the application was called.
    """

    # In the instance dict, next to uvicorn's attributes, these would double its size.
    __slots__ = (
        "_address",
        "_due",
        "_due_s",
        "_held",
        "_in_head",
        "_is_handshake",
        "_is_over",
        "_is_receiving",
        "_patience_s",
        "_received",
        "_refused",
        "_size",
        "_still",
        "_timer",
        "_turns",
        "_unread",
        "served",
    )  # fmt: skip

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._refused: Counter[str] = self.app_state.get("refused", Counter())
        self._patience_s: float = getattr(self.config, "handshake_timeout_s", HANDSHAKE_TIMEOUT_S)
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0
        """When the timer should check the connection, on the loop's clock."""
        self._turns: TurnBudget = self.app_state.get("turn_budget") or TurnBudget()
        self._address: AddressLimiter | None = None
        self.served = 0
        self._received = b""
        """Data received but not parsed yet."""
        self._unread: float = math.inf
        """Response bytes that the client had not acknowledged at the last check."""
        self._still = 0
        """Checks since the client last acknowledged any."""
        self._is_over = False
        """Whether parsing has stopped permanently."""
        self._is_receiving = False
        """A request has started and is incomplete."""
        self._in_head = False
        self._is_handshake = False
        self._size = 0
        """Bytes received of the request's head, then of its body."""
        self._held: Any = None
        """The application, while the request that it will answer is incomplete."""
        self._due: RequestRefused | None = None
        """A refusal to send after the responses to earlier requests."""

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
        """Refuse a client over its address's limits, before parsing its request."""
        wait_s = address.shut_out_s(self.loop.time())
        reason = rules.SHUT_OUT
        if not wait_s and address.connections > address.limits.connections_max:
            wait_s, reason = _BUSY_RETRY_S, rules.ADDRESS
        if wait_s:
            headers = [(b"retry-after", b"%d" % wait_s)]
            self._refuse(RequestRefused(HTTPStatus.TOO_MANY_REQUESTS, headers, reason))

    def _check_room(self) -> None:
        """Enforce `http_connections_max`.

        The oldest connection that has sent no complete request is closed to make room. If there is
        none, the new connection is refused.
        """
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
            self._refuse(RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, headers, rules.FULL))

    def make_room(self) -> None:
        """Reset this connection, so that another one can be served."""
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
        """Close the connection if its time is up; check again later while uvicorn is in charge.

        uvicorn is in charge while a response is under way or its keep-alive timeout is running.
        """
        # Postponing this timer is cheaper than creating one for each request.
        wait_s = self._due_s - self.loop.time()
        self._timer = self.loop.call_later(wait_s, self._look) if wait_s > 0 else None
        if self._timer is not None:
            return
        if self._is_receiving and not self._is_answering():
            self._refuse(RequestRefused(_TIMEOUT, reason=STALLED))
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
        """Check whether the client is reading its responses; the server calls this twice a second.

        Returns:
            The number of consecutive checks in which the client read nothing, although data was
            waiting for it.
        """
        waiting = self.transport.get_write_buffer_size()
        unread = waiting + unacknowledged(self.transport) if waiting else math.inf
        self._still = self._still + 1 if waiting and unread >= self._unread else 0
        self._unread = unread
        return self._still

    @property
    def patience_looks(self) -> int:
        """How many such checks are too many while few clients are stuck; about 10 s by default."""
        return max(1, round(4 * self._patience_s))

    def give_up_reader(self) -> None:
        """Reset the connection of a client that does not read its responses."""
        self._refused[STALLED] += 1
        self._is_over = True
        reset(self.transport)

    def _is_answering(self) -> bool:
        """Whether a complete request still lacks its response, or part of it."""
        is_open = self.cycle is not None and not self.cycle.response_complete
        return bool(self.pipeline) or (is_open and self._held is None)

    # -- bytes

    def data_received(self, data: bytes) -> None:
        """Parse in small slices, so that an exceeded limit is noticed early.

        If the loop has no time left in this turn, the rest is parsed later. Reading pauses until
        then.
        """
        self._unset_keepalive_if_required()
        if self._is_over:
            return
        if self._received:
            self._received += data
            return
        self._received = data
        if self._turns.run(self._parse):
            self.flow.pause_reading()

    def _parse(self, deadline_s: float) -> bool:
        """Parse received data until a deadline; return whether some of it is left."""
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
            rest = data[upgrade.args[0] :]
            if self._should_upgrade():
                self._upgrade_soon(rest + self._received)
            elif rest:
                # An upgrade to an unknown protocol is ignored (RFC 9110, section 7.8).
                self._feed(rest)
        except RequestRefused as refusal:
            self._refuse(refusal)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, RequestRefused) else RequestRefused(_BAD))

    # -- parser callbacks

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
            # HTTP/1.0 has no upgrades (RFC 9110, section 7.8), but uvicorn would treat it as 1.1.
            self._is_handshake = version == "1.1" and super()._should_upgrade()
            if self._is_handshake:
                rules.check_handshake(self.parser.get_method(), self.url, self.headers)
                if self._is_answering():
                    # The response to an earlier request would end up among WebSocket frames.
                    raise RequestRefused(_BAD)
            if has_body:
                # After an upgrade, the parser would take the body for the next request.
                raise RequestRefused(_BAD)
        if has_body and self.expect_100_continue:
            raise RequestRefused(HTTPStatus.EXPECTATION_FAILED)
        if len(self.pipeline) >= _PIPELINE_MAX:
            raise RequestRefused(HTTPStatus.TOO_MANY_REQUESTS)
        super().on_headers_complete()
        if has_body:
            # Trailers are added to this copy, not to the headers (RFC 9110, section 6.5.1).
            self.headers = self.headers.copy()

    def on_body(self, body: bytes) -> None:
        """Discard the body: none of the endpoints uses one."""

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
        """Run the application, in a turn of the loop that starts only a few requests."""

        async def send_while_open(message: Message) -> None:
            # uvicorn waits for this as well, but might then write to a closed transport: with
            # pipelined requests, it marks only the last one as disconnected.
            await self.flow.drain()
            cycle.disconnected = cycle.disconnected or self.transport.is_closing()
            await send(message)

        await self._turns.wait_for_start(urgent=scope["path"] in PROBES)
        await app(scope, receive, send_while_open)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._due is not None:
            self._refuse(self._due)

    # -- WebSocket handshakes

    def _should_upgrade(self) -> bool:
        return self._is_handshake

    def _upgrade_soon(self, frames: bytes) -> None:
        """Switch to WebSocket, in a turn of the loop that has time for it.

        An upgrade takes most of a millisecond, and one turn may read a thousand handshakes.

        Args:
            frames: what the client has sent without waiting for the handshake's response.
        """
        self._is_over = True
        self._stop_waiting()
        if not self.transport.is_closing():
            self.transport.pause_reading()
            self.flow.read_paused = False  # From now on, the WebSocket protocol controls reading.
            self._turns.run(partial(self._upgrade, frames))

    def _upgrade(self, frames: bytes, deadline_s: float) -> bool:
        """Hand the connection to the WebSocket protocol and release this object's resources."""
        if not self.transport.is_closing():
            self._leave_address()
            # This comes first because the WebSocket protocol may pause reading itself.
            self.transport.resume_reading()
            self.handle_websocket_upgrade()
            protocol = self.transport.get_protocol()
            if frames and isinstance(protocol, asyncio.Protocol):
                protocol.data_received(frames)
        # Break the reference cycle: garbage collections are rare.
        self.parser = None  # type: ignore[assignment]
        return False

    # -- endings

    def timeout_keep_alive_handler(self) -> None:
        # The client may still be reading its response; `note_progress` detects if it is not.
        self.timeout_keep_alive_task = None
        super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        if self._is_answering():
            super().shutdown()
        else:
            self._close()

    def _refuse(self, refusal: RequestRefused) -> None:
        """Send an error response and close the connection.

        Earlier requests are answered first.
        """
        self._is_over = True
        if self._is_answering():
            self._due = refusal.with_traceback(None)  # The traceback would keep this object alive.
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
            # The client may still be sending. Closing now could destroy the response before the
            # client reads it (RFC 9112, section 9.6).
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
    """Reset a connection and discard the data in the kernel's send buffer.

    Otherwise the kernel would keep trying to deliver it for minutes.
    """
    socket = transport.get_extra_info("socket")
    if socket is not None:
        with contextlib.suppress(OSError):
            socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def unacknowledged(transport: asyncio.Transport) -> int:
    """Return the number of unacknowledged bytes in the kernel; 0 if it is unknown.

    A client on a slow line acknowledges some data now and then, long before the kernel accepts
    more. Source: tcp(7), SIOCOUTQ.
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
