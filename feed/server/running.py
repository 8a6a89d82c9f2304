"""Runs the application on uvicorn, with our protocol classes and shutdown behaviour."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

from feed.server.sockets import BACKLOG
from feed.transport.address_limits import FrameLimit
from feed.transport.handshake import WebSocketProtocol
from feed.transport.http import FeedHttpProtocol
from feed.transport.tls import Certificate
from tickcast.settings import Settings
from tickcast.tasks import stop_signals
from tickcast.wire.errors import TickcastError

# Ten seconds: uvicorn ticks ten times per second.
_TRIM_MEMORY_TICKS: Final = 100
# Ten times fewer full garbage collections than with Python's defaults.
_GC_THRESHOLDS: Final = (1000, 10, 100)
_WARN_AGAIN_S: Final = 60.0
# With this many clients that do not read their HTTP responses, each is disconnected sooner.
_MANY_STALLED: Final = 4
_MANY_STALLED_CHECKS: Final = 2
# Time for a client to read its last bytes and complete the TLS shutdown.
_TLS_SHUTDOWN_TIMEOUT_S: Final = 2.0


logger = logging.getLogger("tickcast.server")


class FeedServer(uvicorn.Server):
    """A uvicorn server that reports when it listens and does not raise the signal again.

    Args:
        certificate: for TLS; None serves without TLS.
        handshake_timeout_s: time limit for a client's TLS handshake.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_started: Callable[[], None] = lambda: None,
        certificate: Certificate | None = None,
        handshake_timeout_s: float | None = None,
    ) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._certificate = certificate
        self._handshake_timeout_s = handshake_timeout_s
        self._failure: TickcastError | None = None
        self._warn_again_at = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Listen without uvicorn's help: it would give clients a minute for the TLS handshake.
        await super().startup(sockets=[])
        for listener in sockets or []:
            await self._listen(listener)
        try:
            self._on_started()
        except TickcastError as error:
            # Raised by `serve` after the shutdown, which needs the main loop to have started.
            self._failure = error

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal arrives. Raises the TickcastError that `on_started` raised."""
        await super().serve(sockets)
        if self._failure is not None:
            raise self._failure

    async def _listen(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        config = self.config

        def create_protocol() -> asyncio.Protocol:
            return config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        tls: dict[str, Any] = {}
        if self._certificate is not None:
            tls = {
                "ssl": self._certificate.context,
                "ssl_handshake_timeout": self._handshake_timeout_s,
                "ssl_shutdown_timeout": _TLS_SHUTDOWN_TIMEOUT_S,
            }
        self.servers.append(
            await loop.create_server(create_protocol, sock=listener, backlog=config.backlog, **tls)
        )

    async def on_tick(self, counter: int) -> bool:
        if self._failure is not None:
            return True
        self._check_descriptors()
        # uvicorn calls this ten times a second. Once a second is enough for all connections.
        if counter % 10 == 0:
            if self._certificate is not None:
                await asyncio.to_thread(self._certificate.reload_if_changed)
            self._keep_alive()
        if counter % 5 == 0:
            self._reset_stuck_readers()
        if counter % _TRIM_MEMORY_TICKS == 0:
            trim_memory()
        return await super().on_tick(counter)

    def _check_descriptors(self) -> None:
        """Log, at most once a minute, that connections are dropped for lack of file descriptors.

        libuv drops them silently, so this checks whether one more descriptor can be opened.
        """
        try:
            os.close(os.dup(self.servers[0].sockets[0].fileno()))
        except OSError as error:
            now = time.monotonic()
            if error.errno in (errno.EMFILE, errno.ENFILE) and now >= self._warn_again_at:
                self._warn_again_at = now + _WARN_AGAIN_S
                soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                logger.error(
                    "out of file descriptors, new connections are dropped: %s, and this process may"
                    " have %d; raise `ulimit -n`, or lower connections_max",
                    os.strerror(error.errno).lower(), soft,
                )  # fmt: skip

    def _keep_alive(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, WebSocketProtocol):
                connection.keep_alive(now)

    def _reset_stuck_readers(self) -> None:
        """Disconnect clients that do not read their HTTP responses, sooner if there are many."""
        stuck = [
            (checks, connection)
            for connection in self.server_state.connections
            if isinstance(connection, FeedHttpProtocol) and (checks := connection.note_progress())
        ]
        are_many = len(stuck) >= _MANY_STALLED
        for checks, connection in stuck:
            if checks >= (_MANY_STALLED_CHECKS if are_many else connection.stall_checks_max):
                connection.reset_stalled()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Shut down gracefully, even if the signal is repeated; it takes less than two seconds.

        In uvicorn, a second Ctrl-C would drop everything at once.
        """
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT, SIGTERM and SIGHUP, then exit normally with code 0."""
        previous = {number: signal.signal(number, self.handle_exit) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Config(uvicorn.Config):
    """uvicorn's configuration, with the extra options of our protocol classes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        handshake_timeout_s: float,
        frame_limit: FrameLimit,
        http_connections_max: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(app, **options)
        self.handshake_timeout_s = handshake_timeout_s
        self.frame_limit = frame_limit
        self.http_connections_max = http_connections_max


def server_config(app: ASGIApp, settings: Settings, **options: Any) -> uvicorn.Config:
    """Build uvicorn's configuration for the application.

    Args:
        options: override options of uvicorn's configuration. `http_connections_max` limits the open
            connections other than WebSockets.
    """
    ours: dict[str, Any] = {
        "handshake_timeout_s": settings.handshake_timeout_s,
        "frame_limit": FrameLimit(settings.frames_per_s, settings.frames_burst),
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": list(settings.trusted_proxies),
        "http": FeedHttpProtocol,
        "ws": WebSocketProtocol,
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "ws_max_size": settings.message_max_bytes,
        "ws_ping_interval": settings.ping_interval_s,
        "ws_ping_timeout": settings.ping_timeout_s,
        "ws_per_message_deflate": False,
        "backlog": BACKLOG,
        "timeout_graceful_shutdown": 1,
    }
    return _Config(app, **(ours | options))


async def serve(
    app: ASGIApp,
    settings: Settings,
    listeners: Sequence[socket.socket],
    on_started: Callable[[], None],
    certificate: Certificate | None = None,
) -> None:
    """Serve until a signal arrives, then close every connection with 1012 and return."""

    def started() -> None:
        reduce_collections()
        on_started()

    config = server_config(app, settings)
    server = FeedServer(config, started, certificate, settings.handshake_timeout_s)
    await server.serve(list(listeners))


def reduce_collections() -> None:
    """Tune the garbage collector for a process that only serves.

    With thousands of connections a full collection takes a tenth of a second or more, and nothing
    is sent meanwhile. It finds next to nothing, because the server's objects are freed by
    reference counting.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def trim_memory() -> None:
    """Return unused memory pages to the system.

    On its own, glibc returns memory only from the end of its heap. A rush of clients leaves holes
    below memory that is still in use, and these would stay. With other C libraries this does
    nothing. It takes less than a millisecond if there is little to return, and about 6 ms for
    100 MB (malloc_trim(3)).
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
