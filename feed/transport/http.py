"""HTTP requests and their responses, on the parser `httptools`.

A request must respect the time limit of `http_connection` and the sizes of `http_messages`. The
application is called only when the request is complete, so that a refusal can't arrive in the
middle of its response. Requests of one connection are answered one after the other. A request for
WebSocket switches the connection to `feed.transport.handshake`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final

import httptools
import uvicorn
from uvicorn.server import ServerState

from feed.transport import http_messages as messages
from feed.transport.http_connection import BUSY_RETRY_S, HttpConnection
from feed.transport.http_messages import (
    SLICE_BYTES,
    HttpExchange,
    RequestRefused,
    connection_scope,
)
from feed.transport.loop_time import TurnBudget

# Paths of the liveness and readiness probes.
PROBES: Final = frozenset(("/health", "/ready"))

_PIPELINE_MAX: Final = 8
_BAD: Final = HTTPStatus.BAD_REQUEST

logger = logging.getLogger("tickcast.http")


@dataclass
class Bodies:
    """The bodies that all connections keep until their requests are answered."""

    used: int = 0


class FeedHttpProtocol(HttpConnection):
    """The class for `uvicorn.Config(http=…)`."""

    __slots__ = (
        "_bodies", "_body_bytes", "_body_max", "_headers", "_in_head", "_is_reading",
        "_keep_alive_s", "_next", "_parser", "_received", "_size", "_turns", "_url",
    )  # fmt: skip

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._turns: TurnBudget = app_state.get("turn_budget") or TurnBudget()
        self._keep_alive_s: float = config.timeout_keep_alive
        self._parser: Any = httptools.HttpRequestParser(self)
        # The parser must not refuse what follows a request with `Connection: close`, because the
        # response to that request may not have been sent yet.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        # Data received but not parsed yet, and whether the transport reads.
        self._received = b""
        self._is_reading = True
        # The request that is being received, and whether its head is incomplete.
        self._next: HttpExchange
        self._in_head = False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        # Bytes received of the request's head, then of its body.
        self._size = 0
        self._body_max = messages.BODY_MAX_BYTES
        # Bytes of bodies that this connection keeps, and those that all connections keep.
        self._body_bytes = 0
        self._bodies: Bodies = app_state.get("bodies") or Bodies()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._release_bodies()
        self._parser = None  # Break the reference cycle: garbage collections are rare.

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
            self._restart_timer(self._request_timeout_s)
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
            headers = [(b"retry-after", b"%d" % BUSY_RETRY_S)]
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
