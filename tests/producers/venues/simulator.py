"""A venue on a loopback port: plays frames over a real WebSocket, and misbehaves when told to."""

from __future__ import annotations

import http
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from enum import Enum

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response


class Act(Enum):
    """What a venue does beside sending frames."""

    CUT = "the connection is gone without a word"
    CLOSE = "the connection is closed in good order"
    STALL = "nothing is sent and nothing read, not even pings"


Scene = Iterable[bytes | Act]
"""What happens on one connection, after it was asked for something."""


class Simulator:
    """Plays one scene after the other, one for each connection; then a connection stays silent.

    Args:
        asks: messages that it waits for before a scene begins.
        refusals: handshakes that are refused, with this status, before the first scene.

    Attributes:
        url: where it is.
        asked: for each connection the messages that came.
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
        """One connection."""
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
    """A running simulator on a free port."""
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
