"""What every HTTP connection must respect: limits on connections, time to send and time to read.

A client over a limit gets an error response; one that does not read is reset. The requests are in
`feed.transport.http`.
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
from http import HTTPStatus
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from feed.transport import http_messages as messages
from feed.transport.address_limits import AddressLimiter, AddressLimits
from feed.transport.http_messages import MALFORMED, STALLED, HttpExchange, RequestRefused
from tickcast.wire.errors import CLOSE_GRACE_S

# Used when uvicorn's configuration has no `handshake_timeout_s`.
HANDSHAKE_TIMEOUT_S: Final = 5.0
# When a client may try again, if the server or the client's address has too many connections.
BUSY_RETRY_S: Final = 5

_TIMEOUT: Final = HTTPStatus.REQUEST_TIMEOUT

logger = logging.getLogger("tickcast.http")


class HttpConnection(asyncio.Protocol):
    """A connection that is closed if the client does not send, does not read or is over a limit.

    Each connection has one timer. It starts when the connection opens, which covers the first
    request, and restarts with each later request. If a request is incomplete when it expires, the
    connection is closed. Unread responses are found by the server, which calls `note_progress` on
    all connections.

    Refusals are counted in `refused` of the lifespan state, if it exists.

    Attributes:
        served: number of requests for which the application was called.
    """

    __slots__ = (
        "_address", "_app_state", "_config", "_due_s", "_exchanges", "_is_handshake", "_is_over",
        "_is_receiving", "_loop", "_pending_refusal", "_refused", "_request_timeout_s", "_server",
        "_still", "_timer", "_unread", "_writable", "served", "transport",
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
        self._address: AddressLimiter | None = None

        self._request_timeout_s: float = getattr(config, "handshake_timeout_s", HANDSHAKE_TIMEOUT_S)
        self._timer: asyncio.TimerHandle | None = None
        # When the timer should check the connection, on the loop's clock.
        self._due_s = 0.0

        # Whether a request is being received, whether it asks for WebSocket, and whether no more
        # requests are taken.
        self._is_receiving = False
        self._is_handshake = False
        self._is_over = False
        # Complete requests, the first of which is being answered.
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
        self._restart_timer(self._request_timeout_s)
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
        self._writable.set()
        for exchange in self._exchanges:
            exchange.is_done.set()
        self._exchanges.clear()

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
            wait_s, reason = BUSY_RETRY_S, messages.ADDRESS
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
            if isinstance(each, HttpConnection) and not each.served and each is not self
        ]  # fmt: skip
        if others:
            oldest = min(others, key=lambda each: each._due_s)
            oldest.reset_stalled()
            oldest._note_refusal()
        elif not self._is_over:
            headers = [(b"retry-after", b"%d" % BUSY_RETRY_S)]
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
            self._restart_timer(self._request_timeout_s)
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
    def stall_checks_max(self) -> int:
        """How many such checks are too many while few clients are stuck; about 10 s by default."""
        return max(1, round(4 * self._request_timeout_s))

    def reset_stalled(self) -> None:
        """Reset the connection of a client that does not send or does not read."""
        self._refused[STALLED] += 1
        self._is_over = True
        _reset(self.transport)

    # -- refusals and the end

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
