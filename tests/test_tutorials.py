"""The tutorials, followed word for word: each shell block must print what the page shows."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.children import Child, plain_environment, until

TUTORIALS = sorted((Path(__file__).resolve().parents[1] / "docs" / "tutorials").glob("*.md"))
PATIENCE_S = 60.0


class Block(NamedTuple):
    """A block of a page: `sh`, `sh server` for what runs until the end, `python` or `text`."""

    kind: str
    text: str


def blocks_of(page: Path) -> Iterator[Block]:
    for match in re.finditer(r"^```(\S.*?)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        yield Block(match[1], match[2])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def matches(expected: str, said: str) -> bool:
    """Return whether the last lines match the page, where `…` matches anything."""
    wanted = expected.rstrip("\n").split("\n")
    lines = said.rstrip("\n").split("\n")[-len(wanted) :]
    patterns = [".*".join(map(re.escape, line.split("…"))) for line in wanted]
    return len(lines) == len(wanted) and all(map(re.fullmatch, patterns, lines))


class Reader:
    """A reader who follows a page, in a separate directory."""

    def __init__(self, directory: Path, runtime: Path) -> None:
        self._directory = directory
        self._address = f"127.0.0.1:{free_port()}"
        self._servers: list[Child] = []
        programs = Path(sys.executable).parent
        self._environment = plain_environment() | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONUNBUFFERED": "1",
            "TICKCAST_PORT": self._address.partition(":")[2],
            "TICKCAST_RUNTIME_DIR": str(runtime),
        }

    def _script(self, text: str) -> list[str]:
        moved = text.replace("127.0.0.1:8000", self._address)
        # A reader needs time to watch; the verdict does not.
        moved = moved.replace("--duration 2s", "--duration 1s")
        return ["sh", "-ec", f"cd {self._directory}\n{moved}"]

    async def serve(self, text: str) -> None:
        name = f"server{len(self._servers)}"
        server = Child(name, self._directory / f"{name}.log")
        self._servers.append(server)
        server.launch(self._script(f"exec {text}"), self._environment)
        await until(lambda: re.search("listening|making bars", server.said()), 20, server.name)

    async def run(self, text: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *self._script(text), env=self._environment, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        try:
            async with asyncio.timeout(PATIENCE_S):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, said.decode()
        return said.decode()

    def save(self, name: str, text: str) -> None:
        (self._directory / name).write_text(text.replace("127.0.0.1:8000", self._address))

    def leave(self) -> None:
        for server in reversed(self._servers):
            server.terminate()
            server.process.wait()


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
@pytest.mark.timeout(240)
async def test_a_tutorial_can_be_followed(page: Path, tmp_path: Path, runtime_dir: Path) -> None:
    reader = Reader(tmp_path, runtime_dir)
    said = ""
    try:
        for block in blocks_of(page):
            match block.kind:
                case "sh server":
                    await reader.serve(block.text)
                case "sh":
                    said = await reader.run(block.text)
                case "python":
                    reader.save("bot.py", block.text)
                case "text":
                    assert matches(block.text, said), (block.text, said)
                case _:
                    raise AssertionError(f"{block.kind}: what is to be done with it?")
    finally:
        reader.leave()
