"""Tickcast and its peers. One file each defines how to install, start, subscribe and publish.

The servers of the Python peers run from these files as well, in an environment without Tickcast's
packages. This module therefore uses only the standard library.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

NAMES = ("tickcast", "bun", "nats", "starlette", "websockets", "picows", "socketio")
_MODULES = {
    "starlette": "starlette_queue",
    "websockets": "websockets_broadcast",
    "picows": "picows_server",
    "socketio": "socketio_rooms",
}


class Peer(Protocol):
    """A server that delivers ticks to WebSocket clients.

    Attributes:
        name: one of `NAMES`.
        about: a description, which includes the version, if known, after `install`.
        environment: variables to add to the environment.
        port: the port for clients if `command` chose it, or 0 if the server prints it.
    """

    name: str
    about: str
    port: int
    environment: dict[str, str]

    def install(self) -> None:
        """Install the server unless it is already installed.

        Raises:
            cache.CannotInstall: it can't be installed.
        """

    def command(self, directory: Path) -> list[str]:
        """Return the command that starts the server.

        The server prints a line that ends in the port it listens on, unless `command` sets `port`.

        Args:
            directory: a directory for the server's files, for this run only.
        """

    def hello(self) -> bytes:
        """Return the first bytes that a client sends."""

    def steps(self, symbols: Sequence[str]) -> list[tuple[bytes, bytes]]:
        """Return the subscription steps: the data to wait for, and the bytes to send then."""

    def feed(self, directory: Path) -> Feed:
        """Return the way to publish ticks. Called in the publisher's process."""


class Feed(Protocol):
    """A way to publish ticks into a server."""

    async def open(self) -> None: ...

    def prepare(self, symbol: str, text: bytes, time_ns: int) -> Any:
        """Prepare a tick ahead of time. `text` is its JSON as clients receive it."""

    async def send(self, prepared: Sequence[Any]) -> None:
        """Publish ticks that are due at the same time."""

    async def close(self) -> None: ...


def load(name: str) -> Peer:
    """Return the peer with this name."""
    peer: Peer = import_module(f"peers.{_MODULES.get(name, name)}").Peer()
    return peer


def handshake(path: str, protocol: str = "") -> bytes:
    """Return a WebSocket client's opening handshake."""
    offer = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{offer}\r\n"
    ).encode()


def frame(payload: bytes, opcode: int = 0x1) -> bytes:
    """Return a client's frame. The mask is all zeros, which leaves the payload unchanged."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes((0x80 | opcode,)) + length + bytes(4) + payload


def subscribe_steps(symbols: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """Return the steps for the servers in this folder that use our own simple protocol."""
    wish = json.dumps({"subscribe": list(symbols)}).encode()
    return [(b"\r\n\r\n", frame(wish)), (b"subscribed", b"")]


# -- the line feed: how ticks reach the peers that have no broker

SOCKET = "feed.sock"
"""A unix socket in the run's directory. It is the cheapest way in, which favours the peers."""


class PythonPeer:
    """The common base of the Python peers: environment, start and line feed.

    The server is the peer's own module, run in the Python environment in the cache.
    """

    name = ""
    package = ""
    how = ""

    def __init__(self) -> None:
        self.port = 0
        self.environment: dict[str, str] = {}
        self.about = self.package

    def install(self) -> None:
        import cache  # noqa: PLC0415

        cache.python()
        self.about = f"{self.package} {cache.python_version(self.package)}, {self.how}"

    def command(self, directory: Path) -> list[str]:
        import cache  # noqa: PLC0415

        module = f"peers.{_MODULES[self.name]}"
        return [str(cache.python()), "-m", module, str(directory / SOCKET)]

    def hello(self) -> bytes:
        return handshake("/")

    def steps(self, symbols: Sequence[str]) -> list[tuple[bytes, bytes]]:
        return subscribe_steps(symbols)

    def feed(self, directory: Path) -> Feed:
        return LineFeed(directory)


class LineFeed:
    """Writes each tick as a line: the symbol, a blank, and the text of the message."""

    def __init__(self, directory: Path) -> None:
        self._path = str(directory / SOCKET)

    async def open(self) -> None:
        import socket  # noqa: PLC0415

        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(self._path)
        self._sock.settimeout(1.0)

    def prepare(self, symbol: str, text: bytes, time_ns: int) -> bytes:
        return b"%s %s\n" % (symbol.encode(), text)

    async def send(self, prepared: Sequence[bytes]) -> None:
        """Send all ticks in one write. It blocks while the server doesn't read, which is intended.

        Raises:
            TimeoutError: the server hasn't read for a second.
        """
        self._sock.sendall(b"".join(prepared))

    async def close(self) -> None:
        self._sock.close()


_listening: list[object] = []


async def serve_lines(path: str, publish: Callable[[str, str], object]) -> None:
    """Listen on a unix socket and call `publish(symbol, text)` for every line received."""
    import asyncio  # noqa: PLC0415

    class Lines(asyncio.Protocol):
        rest = b""

        def data_received(self, data: bytes) -> None:
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                symbol, _, text = line.decode().partition(" ")
                publish(symbol, text)

    # Keep a reference, because uvloop closes a server that is garbage collected.
    _listening.append(await asyncio.get_running_loop().create_unix_server(Lines, path))
