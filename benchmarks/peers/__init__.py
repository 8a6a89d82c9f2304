"""Tickcast and its peers: one file each tells how to install, start, subscribe and publish.

The Python peers' servers run from these files too, in an environment that lacks Tickcast's own
packages: what stands here needs the standard library only.
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
    """A server that brings ticks to WebSocket clients.

    Attributes:
        name: as in `NAMES`.
        about: what it is, with its version where that is known after `install`.
        environment: on top of our own.
        port: where clients connect, if `command` chose it; 0 where the server prints it.
    """

    name: str
    about: str
    port: int
    environment: dict[str, str]

    def install(self) -> None:
        """Make sure that it is there.

        Raises:
            cache.CannotInstall: it isn't, and can't be had.
        """

    def command(self, directory: Path) -> list[str]:
        """What starts the server.

        It prints a line that ends in the port it listens on, unless that is in `port` then.

        Args:
            directory: for its files, of this run only.
        """

    def hello(self) -> bytes:
        """A client's first words."""

    def steps(self, symbols: Sequence[str]) -> list[tuple[bytes, bytes]]:
        """What the client waits for and says then, in turn, until it is subscribed."""

    def feed(self, directory: Path) -> Feed:
        """How ticks get in. Used in the publisher's process."""


class Feed(Protocol):
    """The way of ticks into a server."""

    async def open(self) -> None: ...

    def prepare(self, symbol: str, text: bytes, time_ns: int) -> Any:
        """Do beforehand what can be done for a tick; `text` is its JSON as clients get it."""

    async def send(self, prepared: Sequence[Any]) -> None:
        """Publish ticks that are due at the same time."""

    async def close(self) -> None: ...


def load(name: str) -> Peer:
    """The peer of this name."""
    peer: Peer = import_module(f"peers.{_MODULES.get(name, name)}").Peer()
    return peer


def handshake(path: str, protocol: str = "") -> bytes:
    """A WebSocket client's request."""
    offer = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{offer}\r\n"
    ).encode()


def frame(payload: bytes, opcode: int = 0x1) -> bytes:
    """A client's frame. The mask is all zeros, which leaves the payload as it is."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes((0x80 | opcode,)) + length + bytes(4) + payload


def subscribe_steps(symbols: Sequence[str]) -> list[tuple[bytes, bytes]]:
    """For the servers in this folder that speak a protocol of our own making."""
    wish = json.dumps({"subscribe": list(symbols)}).encode()
    return [(b"\r\n\r\n", frame(wish)), (b"subscribed", b"")]


# -- the line feed: how ticks reach the peers that have no broker of their own

SOCKET = "feed.sock"
"""A unix socket in the run's directory: the cheapest way in there is, so it favours the peers."""


class PythonPeer:
    """What the peers written in Python share: environment, start, line feed.

    The server is the same file, run as a module in the environment in the cache.
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
    """Writes each tick as a line: symbol, a blank, the text of the message."""

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
        """One write for all. It blocks where the server reads no more: that is what we'd see.

        Raises:
            TimeoutError: it has not read for a second.
        """
        self._sock.sendall(b"".join(prepared))

    async def close(self) -> None:
        self._sock.close()


_listening: list[object] = []


async def serve_lines(path: str, publish: Callable[[str, str], object]) -> None:
    """Listen at a unix socket, and call `publish(symbol, text)` for every line that comes."""
    import asyncio  # noqa: PLC0415

    class Lines(asyncio.Protocol):
        rest = b""

        def data_received(self, data: bytes) -> None:
            *lines, self.rest = (self.rest + data).split(b"\n")
            for line in lines:
                symbol, _, text = line.decode().partition(" ")
                publish(symbol, text)

    # Kept, because uvloop closes a server that nobody holds.
    _listening.append(await asyncio.get_running_loop().create_unix_server(Lines, path))
