"""A venue on a loopback port that plays frames over a real WebSocket and simulates faults."""

from __future__ import annotations

import http
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from enum import Enum

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response


class Act(Enum):
    """What a venue can do apart from sending frames."""

    CUT = "the connection is gone without a word"
    CLOSE = "the connection is closed in good order"
    STALL = "nothing is sent and nothing read, not even pings"


Scene = Iterable[bytes | Act]
"""The events on one connection, after the client's request."""


class Simulator:
    """Play one scene per connection, in order; further connections stay silent.

    Args:
        asks: the number of messages to wait for before a scene begins.
        refusals: the number of handshakes to refuse before the first scene, with this status.

    Attributes:
        url: its address.
        asked: the messages received on each connection.
    """

    def __init__(
        self, scenes: Iterable[Scene], asks: int = 1, refusals: int = 0, status: int = 503
    ) -> None:
        self._scenes = iter(scenes)
        self._asks = asks
        self._refusals = refusals
        self._status = http.HTTPStatus(status)
        self.url = ""
        self.asked: list[list[bytes]] = []

    def admit(self, socket: ServerConnection, request: Request) -> Response | None:
        """Refuse a handshake, or let it pass."""
        if self._refusals:
            self._refusals -= 1
            return socket.respond(self._status, "not now\n")
        return None

    async def serve(self, socket: ServerConnection) -> None:
        """Serve one connection."""
        scene = next(self._scenes, ())
        asked: list[bytes] = []
        self.asked.append(asked)
        try:
            while len(asked) < self._asks:
                asked.append(await socket.recv(decode=False))
            for step in scene:
                if isinstance(step, Act):
                    await self._act(socket, step)
                else:
                    await socket.send(step, text=True)
            while True:
                asked.append(await socket.recv(decode=False))
        except ConnectionClosed:
            pass

    async def _act(self, socket: ServerConnection, act: Act) -> None:
        match act:
            case Act.CUT:
                socket.transport.abort()
            case Act.CLOSE:
                await socket.close(1012, "maintenance")
            case Act.STALL:
                socket.transport.pause_reading()
        if act is not Act.STALL:
            await socket.wait_closed()


@asynccontextmanager
async def simulated(
    *scenes: Scene, asks: int = 1, refusals: int = 0, status: int = 503
) -> AsyncIterator[Simulator]:
    """Run a simulator on a free port."""
    simulator = Simulator(scenes, asks, refusals, status)
    async with serve(
        simulator.serve,
        "127.0.0.1",
        0,
        process_request=simulator.admit,
        ping_interval=None,
        close_timeout=0.1,
        compression=None,
    ) as server:
        (listener,) = server.sockets
        simulator.url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        yield simulator
