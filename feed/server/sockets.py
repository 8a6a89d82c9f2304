"""Listening sockets: the addresses that the server accepts connections on."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Sequence
from typing import Final

from tickcast.wire.errors import TickcastError

BACKLOG: Final = 2048
_FREE_PORT_TRIES: Final = 20
_SEND_BUFFER_BYTES: Final = 256 * 1024
_RECEIVE_BUFFER_BYTES: Final = 64 * 1024


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
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
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
