"""Runs the application on uvicorn, with our protocol classes and shutdown behaviour."""

from __future__ import annotations

import asyncio
import contextlib
import errno
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

from feed.server.memory import give_back, spare_collections
from feed.transport.address_limits import FrameLimit
from feed.transport.handshake import WebSocketProtocol
from feed.transport.http import FeedHttpProtocol
from feed.transport.tls import Certificate
from tickcast.settings import Settings
from tickcast.tasks import stop_signals
from tickcast.wire.errors import TickcastError

_BACKLOG: Final = 2048
_FREE_PORT_TRIES: Final = 20
_SEND_BUFFER_BYTES: Final = 256 * 1024
_RECEIVE_BUFFER_BYTES: Final = 64 * 1024
_GIVE_BACK_AFTER_TICKS: Final = 100
"""Ten seconds: uvicorn ticks ten times per second."""
_WARN_AGAIN_S: Final = 60.0
_STUCK_READERS: Final = 4
"""With this many clients that do not read their HTTP responses, each is cut sooner."""
_CROWD_LOOKS: Final = 2
_TLS_SHUTDOWN_TIMEOUT_S: Final = 2.0
"""Time for a client to read its last bytes and complete the TLS shutdown."""


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
        if self._failure is not None:
            return True
        self._check_descriptors()
        # uvicorn calls this ten times a second. Once a second is enough for all connections.
        if counter % 10 == 0:
            if self._certificate is not None:
                await asyncio.to_thread(self._certificate.reload_if_changed)
            self._keep_alive()
        if counter % 5 == 0:
            self._cut_stuck_readers()
        if counter % _GIVE_BACK_AFTER_TICKS == 0:
            give_back()
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

    def _cut_stuck_readers(self) -> None:
        """Cut clients that do not read their HTTP responses, sooner if there are many."""
        stuck = [
            (looks, connection)
            for connection in self.server_state.connections
            if isinstance(connection, FeedHttpProtocol) and (looks := connection.note_progress())
        ]
        is_crowd = len(stuck) >= _STUCK_READERS
        for looks, connection in stuck:
            if looks >= (_CROWD_LOOKS if is_crowd else connection.patience_looks):
                connection.give_up_reader()

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


def raise_file_limit() -> None:
    """Raise the limit of open files to the maximum allowed; each client needs one.

    The initial limit is often 1,024, for compatibility with programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # macOS refuses an unlimited number.
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 picks any free port.

    Raises:
        OSError: the address is in use, or does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # An IPv6 socket does not accept IPv4: such clients would have addresses like ::ffff:10.0.0.1,
    # which the networks in settings, such as `trusted_proxies`, do not match everywhere.
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    # Connections inherit this. By default, Linux buffers up to about 4 MB for a client that does
    # not read, on top of its outbox. (Linux doubles the value, for its own overhead.)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    # Clients send little. Data of a flood that waits here must be read and discarded later.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    return listener


def bind_all(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Open listening sockets on all addresses of hosts, on one port; 0 picks any free port.

    `::` means every address of the machine, including IPv4. `localhost` means both loopback
    addresses.

    Raises:
        TickcastError: an address does not belong to this machine, a name is unknown, or the port
            is in use.
    """
    addresses = list(dict.fromkeys(address for host in hosts for address in _addresses(host, port)))
    for tries_left in reversed(range(_FREE_PORT_TRIES)):
        listeners: list[socket.socket] = []
        chosen = port
        try:
            for address in addresses:
                try:
                    listeners.append(bind(address, chosen))
                except OSError as error:
                    if _is_optional(address, hosts, error):
                        continue
                    raise CannotListen(address, chosen, error) from None
                chosen = listeners[0].getsockname()[1]
        except CannotListen as error:
            for listener in listeners:
                listener.close()
            # A port that is free on one address may be in use on another.
            if not (port == 0 and error.is_in_use and tries_left):
                raise
        else:
            break
    return listeners


def _addresses(host: str, port: int) -> list[str]:
    host = host.removeprefix("[").removesuffix("]")
    if host == "::":
        return ["::", "0.0.0.0"]  # noqa: S104 - it was asked for
    if host.rstrip(".").lower() == "localhost":
        return ["127.0.0.1", "::1"]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        unknown = OSError(0, "no such name") if isinstance(error, UnicodeError) else error
        raise CannotListen(host, port, unknown) from None
    return [str(address[0]) for *_, address in found]


def _is_optional(address: str, hosts: Sequence[str], error: OSError) -> bool:
    """Whether `localhost` can be served without ::1, because the machine may have no IPv6."""
    return (
        address == "::1"
        and "::1" not in hosts
        and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    )


class CannotListen(TickcastError):
    """Raised when a listening socket can't be opened.

    Attributes:
        is_in_use: True if the port is in use; another one may be free.
    """

    def __init__(self, host: str, port: int, error: OSError) -> None:
        # Avoid error.strerror if possible: the loop or Python may have added text to it.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        super().__init__(f"can't listen on {where}: {reason}")
        self.is_in_use = error.errno == errno.EADDRINUSE


def address_of(listener: socket.socket, *, tls: bool = False) -> str:
    """The URL that reaches a listening socket."""
    scheme = "https" if tls else "http"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


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
        "backlog": _BACKLOG,
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
        spare_collections()
        on_started()

    config = server_config(app, settings)
    server = FeedServer(config, started, certificate, settings.handshake_timeout_s)
    await server.serve(list(listeners))
