"""NATS: nats-server, with clients on its WebSocket port and the publisher on its TCP port."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from cache import CannotInstall, folder, run

from peers import Feed, frame, handshake

_CONNECT = b'CONNECT {"verbose":false,"pedantic":false}\r\n'
_BINARY = 0x2


class Peer:
    """nats-server from PATH, or from Debian's package, unpacked into the cache."""

    name = "nats"
    about = "nats-server, WebSocket"

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self._binary = ""
        self.port = 0

    def install(self) -> None:
        home = folder("nats")
        unpacked = home / "usr" / "sbin" / "nats-server"
        if not unpacked.exists() and not shutil.which("nats-server"):
            run(["apt-get", "download", "nats-server"], cwd=home)
            for package in home.glob("nats-server_*.deb"):
                run(["dpkg-deb", "-x", package, home])
        self._binary = shutil.which("nats-server") or str(unpacked)
        version = run([self._binary, "--version"]).rpartition(" ")[2]
        self.about = f"nats-server {version.lstrip('v')}, WebSocket"

    def command(self, directory: Path) -> list[str]:
        feed_port, self.port = _free_ports(2)
        (directory / "port").write_text(str(feed_port))
        config = directory / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{feed_port}"\nping_interval: "1h"\nlogfile: "{directory}/log"\n'
            f'websocket {{ listen: "127.0.0.1:{self.port}", no_tls: true, compression: false }}\n'
        )
        return [self._binary, "-c", str(config)]

    def hello(self) -> bytes:
        return handshake("/")

    def steps(self, symbols: Sequence[str]) -> list[tuple[bytes, bytes]]:
        wishes = b"".join(b"SUB %s %d\r\n" % (s.encode(), n) for n, s in enumerate(symbols, 1))
        return [(b"INFO", frame(_CONNECT + wishes + b"PING\r\n", _BINARY)), (b"PONG", b"")]

    def feed(self, directory: Path) -> Feed:
        return PubFeed(int((directory / "port").read_text()))


def _free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [sock.getsockname()[1] for sock in socks]
    finally:
        for sock in socks:
            sock.close()


class PubFeed:
    """A plain TCP client that only publishes."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        self._sock = socket.create_connection(("127.0.0.1", self._port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.settimeout(1.0)
        self._sock.recv(65_536)
        self._sock.sendall(_CONNECT + b"PING\r\n")
        if b"PONG" not in self._sock.recv(65_536):
            raise CannotInstall("nats-server does not answer")

    def prepare(self, symbol: str, text: bytes, time_ns: int) -> bytes:
        return b"PUB %s %d\r\n%s\r\n" % (symbol.encode(), len(text), text)

    async def send(self, prepared: Sequence[bytes]) -> None:
        self._sock.sendall(b"".join(prepared))

    async def close(self) -> None:
        self._sock.close()
