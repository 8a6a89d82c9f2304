"""Runs the application on uvicorn, with our protocol classes and our way to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from feed.http import FeedHttpProtocol
from feed.memory import give_back, spare_collections
from feed.rates import FrameLimit
from feed.settings import Settings
from feed.tls import Certificate
from feed.websocket import FeedProtocol

_BACKLOG: Final = 2048
_SEND_BUFFER_BYTES: Final = 256 * 1024
_GIVE_BACK_AFTER_TICKS: Final = 100
"""Ten seconds: uvicorn's ticks come ten times in one."""
_TLS_SHUTDOWN_TIMEOUT_S: Final = 2.0
"""How long a client may take to read its last bytes and say good-bye on the level of TLS."""


class Server(uvicorn.Server):
    """A uvicorn server that says when it listens and ends without raising the signal again.

    Args:
        certificate: for TLS; None serves without.
        handshake_timeout_s: how long a client's TLS handshake may take.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_started: Callable[[], None],
        certificate: Certificate | None = None,
        handshake_timeout_s: float | None = None,
    ) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._certificate = certificate
        self._handshake_timeout_s = handshake_timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn's own would leave a client a minute for its TLS handshake.
        await super().startup(sockets=[])
        for listener in sockets or []:
            await self._listen(listener)
        self._on_started()

    async def _listen(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        config = self.config

        def create_protocol() -> asyncio.Protocol:
            return config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        if self._certificate is None:
            server = await loop.create_server(
                create_protocol, sock=listener, backlog=config.backlog
            )
        else:
            server = await loop.create_server(
                create_protocol,
                sock=listener,
                backlog=config.backlog,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._handshake_timeout_s,
                ssl_shutdown_timeout=_TLS_SHUTDOWN_TIMEOUT_S,
            )
        self.servers.append(server)

    async def on_tick(self, counter: int) -> bool:
        # uvicorn calls it ten times a second. Once is enough to look after all connections.
        if counter % 10 == 0:
            if self._certificate is not None:
                await asyncio.to_thread(self._certificate.look)
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, FeedProtocol):
                    connection.keep_alive(now)
        if counter % _GIVE_BACK_AFTER_TICKS == 0:
            give_back()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop in good order, however often one asks: it takes less than two seconds.

        uvicorn's own would take a second Ctrl-C as leave to drop everything.
        """
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM; then end normally, with exit code 0."""
        previous = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        OSError: the address is in use, or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    # Connections inherit it. By itself, Linux would let some 4 MB pile up for a client that does
    # not read, on top of what its outbox may hold. (It doubles the figure, for its own overhead.)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    return listener


def address_of(listener: socket.socket, *, tls: bool = False) -> str:
    """The URL that reaches a listening socket."""
    scheme = "https" if tls else "http"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class _Config(uvicorn.Config):
    """uvicorn's configuration, with what our protocol classes look for besides."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        handshake_timeout_s: float,
        frame_limit: FrameLimit,
        **options: Any,
    ) -> None:
        super().__init__(app, **options)
        self.handshake_timeout_s = handshake_timeout_s
        self.frame_limit = frame_limit


def server_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """How uvicorn runs our application."""
    return _Config(
        app,
        handshake_timeout_s=settings.handshake_timeout_s,
        frame_limit=FrameLimit(settings.frames_per_s, settings.frames_burst),
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        http=FeedHttpProtocol,
        ws=FeedProtocol,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        ws_max_size=settings.message_max_bytes,
        ws_ping_interval=settings.ping_interval_s,
        ws_ping_timeout=settings.ping_timeout_s,
        ws_per_message_deflate=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=1,
    )


async def serve(
    app: ASGIApp,
    settings: Settings,
    listener: socket.socket,
    on_started: Callable[[], None],
    certificate: Certificate | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then close every connection with 1012 and return."""

    def started() -> None:
        spare_collections()
        on_started()

    config = server_config(app, settings)
    server = Server(config, started, certificate, settings.handshake_timeout_s)
    await server.serve([listener])
