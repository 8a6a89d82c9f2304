"""Bun: `server.publish(topic, text)` on top of uWebSockets, in C++. The server is bun.js."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cache import CannotInstall, folder, run

from peers import SOCKET, Feed, LineFeed, handshake, subscribe_steps


class Peer:
    """Bun from npm."""

    name = "bun"
    about = "Bun, server.publish"

    def __init__(self) -> None:
        self.port = 0
        self.environment: dict[str, str] = {}
        self._binary = Path()

    def install(self) -> None:
        home = folder("bun")
        if not _binaries(home):
            run(["npm", "install", "--no-audit", "--no-fund", "--prefix", home, "bun"], cwd=home)
        said = "npm brought no binary"
        for self._binary in _binaries(home):
            try:
                self.about = f"Bun {run([self._binary, '--version'])}, server.publish"
                return
            except CannotInstall as error:
                said = str(error)
        raise CannotInstall(said)

    def command(self, directory: Path) -> list[str]:
        script = Path(__file__).with_suffix(".js")
        return [str(self._binary), "run", str(script), str(directory / SOCKET)]

    def hello(self) -> bytes:
        return handshake("/")

    def steps(self, symbols: Sequence[str]) -> list[tuple[bytes, bytes]]:
        return subscribe_steps(symbols)

    def feed(self, directory: Path) -> Feed:
        return LineFeed(directory)


def _binaries(home: Path) -> list[Path]:
    """Return possible paths of the binary: npm may or may not run the script that moves it."""
    modules = home / "node_modules"
    places = (*modules.glob("@oven/bun-*/bin/bun"), modules / "bun" / "bin" / "bun.exe")
    # Ignore the package's stub, a small script that prints "not installed".
    return [path for path in places if path.is_file() and path.stat().st_size > 1 << 20]
