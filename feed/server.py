"""Runs the application on uvicorn, with our protocol classes and our way to stop."""

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

from feed.errors import TickcastError
from feed.http import FeedHttpProtocol
from feed.memory import give_back, spare_collections
from feed.rates import FrameLimit
from feed.settings import Settings
from feed.tasks import stop_signals
from feed.tls import Certificate
from feed.websocket import FeedProtocol

_BACKLOG: Final = 2048
_FREE_PORT_TRIES: Final = 20
_SEND_BUFFER_BYTES: Final = 256 * 1024
_RECEIVE_BUFFER_BYTES: Final = 64 * 1024
_GIVE_BACK_AFTER_TICKS: Final = 100
"""Ten seconds: uvicorn's ticks come ten times in one."""
_WARN_AGAIN_S: Final = 60.0
_STUCK_READERS: Final = 4
"""Clients that read nothing of their HTTP answers are cut soon where there are this many."""
_CROWD_LOOKS: Final = 2
_TLS_SHUTDOWN_TIMEOUT_S: Final = 2.0
"""How long a client may take to read its last bytes and say good-bye on the level of TLS."""


logger = logging.getLogger("tickcast.server")


class Server(uvicorn.Server):
    """A uvicorn server that says when it listens and ends without raising the signal again.

    Args:
        certificate: for TLS; None serves without.
        handshake_timeout_s: how long a client's TLS handshake may take.
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
        # uvicorn's own would leave a client a minute for its TLS handshake.
        await super().startup(sockets=[])
        for listener in sockets or []:
            await self._listen(listener)
        try:
            self._on_started()
        except TickcastError as error:
            # Raised when everything has been shut down, which takes the main loop to have begun.
            self._failure = error

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal ends it. Raises the TickcastError that `on_started` raises."""
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
        # uvicorn calls it ten times a second. Once is enough to look after all connections.
        if counter % 10 == 0:
            if self._certificate is not None:
                await asyncio.to_thread(self._certificate.look)
            self._keep_alive()
        if counter % 5 == 0:
            self._cut_stuck_readers()
        if counter % _GIVE_BACK_AFTER_TICKS == 0:
            give_back()
        return await super().on_tick(counter)

    def _check_descriptors(self) -> None:
        """Log once in a while that new connections are dropped because too many files are open.

        libuv drops them without a word, so this looks whether one more could be opened.
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
            if isinstance(connection, FeedProtocol):
                connection.keep_alive(now)

    def _cut_stuck_readers(self) -> None:
        """Cut clients that read nothing of their HTTP answers: sooner where there are many."""
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
        """Stop in good order, however often one asks: it takes less than two seconds.

        uvicorn's own would take a second Ctrl-C as leave to drop everything.
        """
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop on SIGINT, SIGTERM and SIGHUP; then end normally, with exit code 0."""
        previous = {number: signal.signal(number, self.handle_exit) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def raise_file_limit() -> None:
    """Allow this process as many open files as it may have; each client needs one.

    The limit that processes start with is often 1,024, for the sake of programs that use select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # macOS refuses an unlimited number.
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        OSError: the address is in use, or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # One of IPv6 takes no IPv4: IPv4 clients would come with addresses such as ::ffff:10.0.0.1,
    # which the networks of settings, proxies among them, do not match everywhere.
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    # Connections inherit it. By itself, Linux would let some 4 MB pile up for a client that does
    # not read, on top of what its outbox may hold. (It doubles the figure, for its own overhead.)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    # Clients say little. What waits here of a flood has to be thrown away.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    return listener


def bind_all(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """Listening sockets on every address of some hosts, all on one port; 0 takes any free one.

    `::` is every address of the machine, of IPv4 as well, and `localhost` both loopback addresses.

    Raises:
        TickcastError: an address is not ours, a name is unknown, or the port is in use.
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
            # What is free on one address may be taken on the next.
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
    """Whether `localhost` is served without ::1: there may be no IPv6 on the machine."""
    return (
        address == "::1"
        and "::1" not in hosts
        and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    )


class CannotListen(TickcastError):
    """A socket that could not be opened.

    Attributes:
        is_in_use: because its port is taken; another one may be free.
    """

    def __init__(self, host: str, port: int, error: OSError) -> None:
        # Not error.strerror, where the loop or Python has its own words around it.
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
    """uvicorn's configuration, with what our protocol classes look for besides."""

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
    """How uvicorn runs our application.

    Args:
        options: of uvicorn's configuration, in place of what it would be; and
            `http_connections_max`, how many connections may be open that are not WebSockets.
    """
    ours: dict[str, Any] = {
        "handshake_timeout_s": settings.handshake_timeout_s,
        "frame_limit": FrameLimit(settings.frames_per_s, settings.frames_burst),
        "proxy_headers": bool(settings.trusted_proxies),
        "forwarded_allow_ips": list(settings.trusted_proxies),
        "http": FeedHttpProtocol,
        "ws": FeedProtocol,
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
    """Serve until a signal ends it, then close every connection with 1012 and return."""

    def started() -> None:
        spare_collections()
        on_started()

    config = server_config(app, settings)
    server = Server(config, started, certificate, settings.handshake_timeout_s)
    await server.serve(list(listeners))
