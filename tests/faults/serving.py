"""Tickcast's server in a separate process, to be killed and observed from outside."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Final

import httpx

from tests.faults.children import Child, plain_environment, until

_START_TIMEOUT_S: Final = 20.0
_PROC: Final = Path("/proc")


class ServerProcess(Child):
    """`tickcast serve` on a free port, which stays the same after a restart.

    Args:
        settings: by name, as environment variables give them.

    Attributes:
        port: the port it listens on, once started.
    """

    def __init__(self, log: Path, redis_url: str, **settings: object) -> None:
        super().__init__("the server", log)
        self._redis_url = redis_url
        self.port = 0
        self._settings = {f"TICKCAST_{name.upper()}": str(each) for name, each in settings.items()}

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stream(self, port: int | None = None) -> str:
        """Return the address of the default feed; `port` is that of a proxy in between."""
        return f"ws://127.0.0.1:{port or self.port}/stream"

    async def start(self) -> None:
        """Start or restart the server; return when it listens."""
        before = len(self.said())
        words = ["--port", str(self.port), "--redis", self._redis_url]
        environment = {**plain_environment(), **self._settings, "PYTHONUNBUFFERED": "1"}
        self.launch([sys.executable, "-m", "tickcast", "serve", *words], environment)

        def listening() -> re.Match[str] | None:
            assert self.is_running, self.said()
            return re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.said()[before:])

        await until(listening, _START_TIMEOUT_S, "a listening server")
        found = listening()
        assert found is not None
        self.port = int(found[1])

    async def status(self, path: str) -> int:
        async with httpx.AsyncClient(timeout=5) as client:
            return (await client.get(self.http + path)).status_code

    async def until_ready(self, ready: bool, timeout_s: float) -> float:
        """Wait until `/ready` reports ready, or no longer does; return how long it took."""
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(timeout_s):
            while (await self.status("/ready") == 200) != ready:
                await asyncio.sleep(0.02)
        return asyncio.get_running_loop().time() - began

    async def metrics(self) -> dict[str, float]:
        """Return the samples of `/metrics` by name; those with labels are summed up."""
        # A busy machine may stall for some seconds, which must not fail this request.
        async with httpx.AsyncClient(timeout=30) as client:
            text = (await client.get(self.http + "/metrics")).text
        found: dict[str, float] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                name = name.partition("{")[0]
                found[name] = found.get(name, 0.0) + float(value)
        return found

    def rss_bytes(self) -> int:
        """Return the resident memory, as the kernel reports it."""
        status = (_PROC / str(self.pid) / "status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None, status
        return int(found[1]) * 1024

    def cpu_s(self) -> float:
        """Return the processor time used so far, user and system, in seconds."""
        fields = (_PROC / str(self.pid) / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def open_files(self) -> int:
        return sum(1 for _ in (_PROC / str(self.pid) / "fd").iterdir())


def can_look_inside() -> bool:
    """Return whether this system reports the memory and files of a process."""
    return (_PROC / "self" / "status").exists()
