"""HTTP connections, on the parser `httptools`, safe against clients that stall and bad requests.

A request must be complete within a time limit and respect the size limits of `http_messages`. The
application is called only when the request is complete, so that a refusal can't arrive in the
middle of its response. Requests of one connection are answered one after the other. A request for
WebSocket switches the connection to `feed.transport.handshake`.
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
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final

import httptools
import uvicorn
from uvicorn.server import ServerState

from feed.transport import http_messages as messages
from feed.transport.address_limits import AddressLimiter, AddressLimits
from feed.transport.http_messages import (
    MALFORMED,
    SLICE_BYTES,
    STALLED,
    HttpExchange,
    RequestRefused,
    connection_scope,
)
from feed.transport.loop_time import TurnBudget
from tickcast.wire.errors import CLOSE_GRACE_S

# Used when uvicorn's configuration has no `handshake_timeout_s`.
HANDSHAKE_TIMEOUT_S: Final = 5.0
# Paths of the liveness and readiness probes.
PROBES: Final = frozenset(("/health", "/ready"))

_PIPELINE_MAX: Final = 8
_BUSY_RETRY_S: Final = 5
_TIMEOUT: Final = HTTPStatus.REQUEST_TIMEOUT
_BAD: Final = HTTPStatus.BAD_REQUEST

logger = logging.getLogger("tickcast.http")


@dataclass
class Bodies:
    """The bodies that all connections keep until their requests are answered."""

    used: int = 0


class FeedHttpProtocol(asyncio.Protocol):
    """The class for `uvicorn.Config(http=…)`.

    Each connection has one timer. It starts when the connection opens, which covers the first
    request, and restarts with each later request. If a request is incomplete when it expires, the
    connection is closed. Unread responses are found by the server, which calls `note_progress` on
    all connections.

    Refusals are counted in `refused` of the lifespan state, if it exists.

    Attributes:
        served: number of requests for which the application was called.
    """

    __slots__ = (
        "_address", "_app_state", "_bodies", "_body_bytes", "_body_max", "_config",
        "_due_s", "_exchanges", "_headers", "_in_head",
        "_is_handshake", "_is_over", "_is_reading", "_is_receiving", "_keep_alive_s", "_loop",
        "_next", "_parser", "_patience_s", "_pending_refusal", "_received", "_refused", "_server",
        "_size", "_still", "_timer", "_turns", "_unread", "_url", "_writable", "served",
        "transport",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._config = config
        self._server = server_state
        self._app_state = app_state
        self._loop = _loop or asyncio.get_running_loop()
        self._refused: Counter[str] = app_state.get("refused", Counter())
        self._turns: TurnBudget = app_state.get("turn_budget") or TurnBudget()
        self._address: AddressLimiter | None = None

        self._patience_s: float = getattr(config, "handshake_timeout_s", HANDSHAKE_TIMEOUT_S)
        self._keep_alive_s: float = config.timeout_keep_alive
        self._timer: asyncio.TimerHandle | None = None
        # When the timer should check the connection, on the loop's clock.
        self._due_s = 0.0

        self._parser: Any = httptools.HttpRequestParser(self)
        # The parser must not refuse what follows a request with `Connection: close`, because the
        # response to that request may not have been sent yet.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        # Data received but not parsed yet.
        self._received = b""
        # Whether parsing has stopped permanently, and whether the transport reads.
        self._is_over = False
        self._is_reading = True
        # A request has started and is incomplete; its head is.
        self._is_receiving = False
        self._in_head = False
        self._is_handshake = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        # Bytes received of the request's head, then of its body.
        self._size = 0
        self._body_max = messages.BODY_MAX_BYTES
        # Bytes of bodies that this connection keeps, and those that all connections keep.
        self._body_bytes = 0
        self._bodies: Bodies = app_state.get("bodies") or Bodies()

        # The request being received, then complete requests, the first of which is being answered.
        self._next: HttpExchange
        self._exchanges: deque[HttpExchange] = deque()
        self.served = 0
        # A refusal to send after the responses to earlier requests.
        self._pending_refusal: RequestRefused | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        # Response bytes that the client had not acknowledged at the last check, and the number of
        # checks since it last acknowledged any.
        self._unread: float = math.inf
        self._still = 0

    # -- transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._connections.add(self)
        self._restart_timer(self._patience_s)
        limits: AddressLimits | None = self._app_state.get("address_limits")
        peer = transport.get_extra_info("peername")
        if limits is not None and peer:
            self._address = limits.of_peer(peer[0])
        if self._address is not None:
            self._address.connections += 1
            self._check_address(self._address)
        self._check_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._is_over = True
        self._stop_timer()
        self._leave_address()
        self._release_bodies()
        self._writable.set()
        for exchange in self._exchanges:
            exchange.is_done.set()
        self._exchanges.clear()
        self._parser = None  # Break the reference cycle: garbage collections are rare.

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    @property
    def _connections(self) -> set[Any]:
        return self._server.connections

    def _check_address(self, address: AddressLimiter) -> None:
        """Refuse a client over its address's limits, before parsing its request."""
        wait_s = address.shut_out_s(self._loop.time())
        reason = messages.SHUT_OUT
        if not wait_s and address.connections > address.limits.connections_max:
            wait_s, reason = _BUSY_RETRY_S, messages.ADDRESS
        if wait_s:
            headers = [(b"retry-after", b"%d" % wait_s)]
            self._refuse(RequestRefused(HTTPStatus.TOO_MANY_REQUESTS, headers, reason))

    def _check_room(self) -> None:
        """Enforce `http_connections_max`.

        The oldest connection that has sent no complete request is closed to make room. If there is
        none, the new connection is refused.
        """
        limit: int | None = getattr(self._config, "http_connections_max", None)
        if limit is None or len(self._connections) <= limit:
            return
        others = [
            each for each in self._connections
            if isinstance(each, FeedHttpProtocol) and not each.served and each is not self
        ]  # fmt: skip
        if others:
            oldest = min(others, key=lambda each: each._due_s)
            oldest.reset_stalled()
            oldest._note_refusal()
        elif not self._is_over:
            headers = [(b"retry-after", b"%d" % _BUSY_RETRY_S)]
            self._refuse(RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, headers, messages.FULL))

    def _note_refusal(self) -> None:
        if self._address is not None:
            self._address.note_refusal(self._loop.time())

    def _leave_address(self) -> None:
        if self._address is not None:
            self._address.connections -= 1
            self._address = None

    # -- time

    def _restart_timer(self, wait_s: float) -> None:
        self._due_s = self._loop.time() + wait_s
        if self._timer is None:
            self._timer = self._loop.call_later(wait_s, self._on_timer)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        """Close the connection if its time is up, unless it is being answered."""
        # Postponing this timer is cheaper than creating one for each request.
        wait_s = self._due_s - self._loop.time()
        self._timer = self._loop.call_later(wait_s, self._on_timer) if wait_s > 0 else None
        if self._timer is not None:
            return
        if self._exchanges or self.transport.get_write_buffer_size():
            self._restart_timer(self._patience_s)
        elif self._is_receiving:
            self._refuse(RequestRefused(_TIMEOUT, reason=STALLED))
        else:
            if not self.served:
                self._refused[STALLED] += 1
            self._close()

    def note_progress(self) -> int:
        """Check whether the client is reading its responses; the server calls this twice a second.

        Returns:
            The number of consecutive checks in which the client read nothing, although data was
            waiting for it.
        """
        waiting = self.transport.get_write_buffer_size()
        unread = waiting + _unacknowledged(self.transport) if waiting else math.inf
        self._still = self._still + 1 if waiting and unread >= self._unread else 0
        self._unread = unread
        return self._still

    @property
    def patience_checks(self) -> int:
        """How many such checks are too many while few clients are stuck; about 10 s by default."""
        return max(1, round(4 * self._patience_s))

    def reset_stalled(self) -> None:
        """Reset the connection of a client that does not send or does not read."""
        self._refused[STALLED] += 1
        self._is_over = True
        _reset(self.transport)

    # -- requests

    def data_received(self, data: bytes) -> None:
        """Parse in small slices, so that an exceeded limit is noticed early.

        If the loop has no time left in this turn, the rest is parsed later. Reading pauses until
        then.
        """
        if self._is_over:
            return
        if self._received:
            self._received += data
            return
        self._received = data
        if self._turns.run(self._parse):
            self._pause_reading()

    def _pause_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if not self._is_reading and not self.transport.is_closing():
            self._is_reading = True
            self.transport.resume_reading()

    def _parse(self, deadline_s: float) -> bool:
        """Parse received data until a deadline; return whether some of it is left."""
        while self._received and not self._is_over:
            data, self._received = self._received[:SLICE_BYTES], self._received[SLICE_BYTES:]
            self._parse_slice(data)
            if perf_counter() >= deadline_s and self._received and not self._is_over:
                return True
        self._received = b""
        if not (self._is_handshake or len(self._exchanges) > 1):
            self._resume_reading()
        return False

    def _parse_slice(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
            if self._is_receiving:
                self._size += len(data)
                messages.check_size(
                    self._size, len(self._headers), self._body_max, in_head=self._in_head
                )
        except httptools.HttpParserUpgrade as upgrade:
            rest = data[upgrade.args[0] :]
            if self._is_handshake:
                self._upgrade_soon(rest + self._received)
            elif rest:
                # An upgrade to an unknown protocol is ignored (RFC 9110, section 7.8).
                self._parse_slice(rest)
        except RequestRefused as refusal:
            self._refuse(refusal)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, RequestRefused) else RequestRefused(_BAD))

    def on_message_begin(self) -> None:
        if self.served or self._exchanges:
            self._restart_timer(self._patience_s)
        self._is_receiving = self._in_head = True
        self._is_handshake = False
        self._url, self._headers, self._size = b"", [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url
        messages.check_url_size(self._url)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers are checked, but have no meaning (RFC 9110, section 6.5.1).
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._size = 0
        version = self._parser.get_http_version()
        headers = self._headers
        self._body_max = messages.body_max_bytes(self._parser.get_method(), self._url)
        has_body = messages.check_head(self._url, version, headers, self._body_max)
        if self._parser.should_upgrade():
            # HTTP/1.0 has no upgrades (RFC 9110, section 7.8).
            can_upgrade = version == "1.1" and self._config.ws_protocol_class is not None
            self._is_handshake = can_upgrade and messages.is_websocket_upgrade(headers)
            if self._is_handshake:
                messages.check_handshake(self._parser.get_method(), self._url, headers)
                if self._exchanges:
                    # The response to an earlier request would end up among WebSocket frames.
                    raise RequestRefused(_BAD)
            if has_body:
                # After an upgrade, the parser would take the body for the next request.
                raise RequestRefused(_BAD)
        if has_body and (b"expect", b"100-continue") in ((n, v.lower()) for n, v in headers):
            raise RequestRefused(HTTPStatus.EXPECTATION_FAILED)
        if len(self._exchanges) > _PIPELINE_MAX:
            raise RequestRefused(HTTPStatus.TOO_MANY_REQUESTS)
        if not self._is_handshake:
            keep_alive = version == "1.1" and self._parser.should_keep_alive()
            self._next = HttpExchange(
                self._scope(version), self.transport, self._writable,
                lambda: self._server.default_headers, self._finish_exchange,
                keep_alive=keep_alive,
            )  # fmt: skip
            # Trailers are not added to the headers of the scope.
            self._headers = list(headers)

    def _scope(self, version: str) -> dict[str, Any]:
        url = httptools.parse_url(self._url)
        path, query, headers = url.path, url.query or b"", self._headers
        return connection_scope(self.transport, path, query, headers, self._app_state) | {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": "https" if self.transport.get_extra_info("sslcontext") else "http",
        }

    def on_body(self, body: bytes) -> None:
        """Keep the body of a request to publish. Other endpoints read none."""
        if self._is_handshake or self._body_max != messages.PUBLISH_BODY_MAX_BYTES:
            return
        self._body_bytes += len(body)
        self._bodies.used += len(body)
        if self._bodies.used > messages.BODIES_MAX_BYTES:
            headers = [(b"retry-after", b"%d" % _BUSY_RETRY_S)]
            raise RequestRefused(HTTPStatus.SERVICE_UNAVAILABLE, headers, messages.FULL)
        self._next.body += body

    def _release_bodies(self) -> None:
        self._bodies.used -= self._body_bytes
        self._body_bytes = 0

    def on_message_complete(self) -> None:
        self._is_receiving = False
        if self._is_handshake:
            return
        self._exchanges.append(self._next)
        if len(self._exchanges) == 1:
            self._start_next()
        else:
            self._pause_reading()

    # -- responses

    def _start_next(self) -> None:
        self.served += 1
        exchange = self._exchanges[0]
        task = self._loop.create_task(self._run(exchange))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    async def _run(self, exchange: HttpExchange) -> None:
        """Answer a request, in a turn of the loop that starts only a few of them."""
        try:
            await self._turns.wait_for_start(urgent=exchange.scope["path"] in PROBES)
            app: Any = self._config.loaded_app
            await app(exchange.scope, exchange.receive, exchange.send)
        except BaseException:
            logger.exception("a bug in the application")
        if exchange.is_done.is_set():
            return
        if not exchange.has_started:
            await exchange.send_failure()
        else:
            self.transport.close()

    def _finish_exchange(self) -> None:
        """Go on with the next request after a complete response."""
        self._server.total_requests += 1
        if not self._exchanges.popleft().keep_alive:
            self.transport.close()
        if self.transport.is_closing():
            return
        if self._exchanges:
            self._start_next()
            return
        self._release_bodies()
        if not self._is_receiving:
            self._restart_timer(self._keep_alive_s)
        if self._pending_refusal is not None:
            self._refuse(self._pending_refusal)
        elif not self._received:
            self._resume_reading()

    def shutdown(self) -> None:
        if self._exchanges:
            self._exchanges[-1].keep_alive = False
        else:
            self._close()

    def _refuse(self, refusal: RequestRefused) -> None:
        """Send an error response and close the connection.

        Earlier requests are answered first.
        """
        self._is_over, self._is_handshake = True, False
        if self._exchanges:
            # The traceback would keep this object alive.
            self._pending_refusal = refusal.with_traceback(None)
            return
        logger.debug("refused a request: %d %s", refusal.status, refusal)
        self._refused[refusal.reason] += 1
        if refusal.reason in (STALLED, MALFORMED):
            self._note_refusal()
        if self.transport.is_closing():
            self._close()
            return
        self.transport.write(refusal.to_response(self._server.default_headers))
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
        self._stop_timer()
        self._timer = self._loop.call_later(CLOSE_GRACE_S, self.transport.abort)

    # -- WebSocket

    def _upgrade_soon(self, frames: bytes) -> None:
        """Switch to WebSocket, in a turn of the loop that has time for it.

        An upgrade takes most of a millisecond, and one turn may read a thousand handshakes.

        Args:
            frames: what the client has sent without waiting for the handshake's response.
        """
        self._is_over = True
        self._stop_timer()
        if not self.transport.is_closing():
            self._pause_reading()
            self._turns.run(partial(self._upgrade, frames))

    def _upgrade(self, frames: bytes, deadline_s: float) -> bool:
        """Hand the connection to the WebSocket protocol and release this object's resources."""
        self._parser = None  # Break the reference cycle: garbage collections are rare.
        if self.transport.is_closing():
            return False
        self._leave_address()
        self._connections.discard(self)
        protocol: Any = self._config.ws_protocol_class(  # type: ignore[call-arg, misc]
            config=self._config, server_state=self._server, app_state=self._app_state
        )
        lines = [b"%b: %b\r\n" % header for header in self._headers]
        request = b"GET %b HTTP/1.1\r\n%b\r\n" % (self._url, b"".join(lines))
        # This comes first because the WebSocket protocol may pause reading itself.
        self._resume_reading()
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.begin_handshake(request)
        if frames:
            protocol.data_received(frames)
        return False


def _reset(transport: asyncio.Transport) -> None:
    """Reset a connection and discard the data in the kernel's send buffer.

    Otherwise the kernel would keep trying to deliver it for minutes.
    """
    socket = transport.get_extra_info("socket")
    if socket is not None:
        with contextlib.suppress(OSError):
            socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _unacknowledged(transport: asyncio.Transport) -> int:
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
