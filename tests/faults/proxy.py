"""A small TCP proxy that can cut, stall and redirect connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from tickcast.tasks import cancel_and_wait


class Proxy:
    """Forward connections to a port of this machine.

    Attributes:
        port: the port it listens on.
        target: the port it forwards to; a change applies to new connections.
        open: False rejects new connections.
        flows: False while data is held back.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.target = target
        self.open = True
        self.flows = True
        self._ends: set[_End] = set()
        self._joining: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Reset every connection; new ones are possible while it is open."""
        for end in self._ends:
            end.transport.abort()

    def stall(self) -> None:
        """Hold back all data from now on, with the connections open."""
        self.flows = False

    def flow(self) -> None:
        """Forward the data held back and all further data."""
        self.flows = True
        for end in self._ends:
            end.pass_on()

    def enter(self, end: _End) -> None:
        """Accept a new connection, or reject it."""
        if not self.open:
            end.transport.abort()
            return
        self._ends.add(end)
        task = asyncio.create_task(self._join(end))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, near: _End) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, far = await loop.create_connection(lambda: _End(self), "127.0.0.1", self.target)
        except OSError:
            near.transport.abort()
            return
        self._ends.add(far)
        near.peer, far.peer = far, near
        if near.transport.is_closing():
            far.transport.abort()
        near.pass_on()
        far.pass_on()

    def leave(self, end: _End) -> None:
        """Remove a closed connection, and abort the connection that it was paired with."""
        self._ends.discard(end)
        if end.peer is not None:
            end.peer.transport.abort()

    async def end(self) -> None:
        """Cut every connection and accept no more."""
        self.open = False
        self.cut()
        await cancel_and_wait(self._joining)


class _End(asyncio.Protocol):
    """One side of a connection through the proxy."""

    transport: asyncio.Transport

    def __init__(self, proxy: Proxy, is_near: bool = False) -> None:
        self.peer: _End | None = None
        self._proxy = proxy
        self._is_near = is_near
        self._held: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self._is_near:
            self._proxy.enter(self)

    def data_received(self, data: bytes) -> None:
        self._held.append(data)
        self.pass_on()

    def pass_on(self) -> None:
        """Forward the data held back, if the other side is connected and data may flow."""
        if self.peer is not None and self._proxy.flows:
            if not self.peer.transport.is_closing():
                self.peer.transport.writelines(self._held)
            self._held = []

    def connection_lost(self, exc: Exception | None) -> None:
        self._proxy.leave(self)


@asynccontextmanager
async def running_proxy(target: int) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _End(proxy, is_near=True), "127.0.0.1", 0)
    proxy.port = listener.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        listener.close()
        await proxy.end()
