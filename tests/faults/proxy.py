"""A small TCP proxy, to cut, to stall and to lead elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from feed.tasks import end_tasks

_READ_BYTES: Final = 64 * 1024


class Proxy:
    """Passes connections on to a port of this machine.

    Attributes:
        port: where it listens.
        target: the port it leads to; a change holds for new connections.
        open: False turns new connections away.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.target = target
        self.open = True
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset every connection; new ones may come, while it is open."""
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """Let nothing through from now on, and let nobody know."""
        self._flowing.clear()

    def flow(self) -> None:
        """Let through what was held, and all that comes."""
        self._flowing.set()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self.open:
                await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # Cut, or nobody listens there. A handler that is cancelled would be logged.
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        pumps = [
            asyncio.create_task(self._pump(reader, far_writer)),
            asyncio.create_task(self._pump(far_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(pumps)
            far_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_READ_BYTES):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()

    async def end(self) -> None:
        """Cut everything and wait until it is gone."""
        self.open = False
        self.cut()
        await end_tasks(self._tasks)


@asynccontextmanager
async def running_proxy(target: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    listener = await asyncio.start_server(proxy._take, "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.end()
