"""A venue on a loopback port that plays frames over a real WebSocket and simulates faults."""

from __future__ import annotations

import http
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from enum import Enum

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response


class Step(Enum):
    """What a venue can do apart from sending frames."""

    CUT = "the connection is cut"
    CLOSE = "the connection is closed cleanly"
    STALL = "nothing is sent and nothing read, not even pings"


Script = Iterable[bytes | Step]
"""The events on one connection, after the client's request."""


class Simulator:
    """Play one script per connection, in order; further connections stay silent.

    Args:
        requests_first: the number of messages to wait for before a script begins.
        refusals: the number of handshakes to refuse before the first script, with this status.

    Attributes:
        url: its address.
        requests: the messages received on each connection.
    """

    def __init__(
        self,
        scripts: Iterable[Script],
        requests_first: int = 1,
        refusals: int = 0,
        status: int = 503,
    ) -> None:
        self._scripts = iter(scripts)
        self._request_count = requests_first
        self._refusals = refusals
        self._status = http.HTTPStatus(status)
        self.url = ""
        self.requests: list[list[bytes]] = []

    def process_request(self, socket: ServerConnection, request: Request) -> Response | None:
        """Refuse a handshake, or let it pass."""
        if self._refusals:
            self._refusals -= 1
            return socket.respond(self._status, "not now\n")
        return None

    async def serve(self, socket: ServerConnection) -> None:
        """Serve one connection."""
        script = next(self._scripts, ())
        requests: list[bytes] = []
        self.requests.append(requests)
        try:
            while len(requests) < self._request_count:
                requests.append(await socket.recv(decode=False))
            for step in script:
                if isinstance(step, Step):
                    await self._act(socket, step)
                else:
                    await socket.send(step, text=True)
            while True:
                requests.append(await socket.recv(decode=False))
        except ConnectionClosed:
            pass

    async def _act(self, socket: ServerConnection, step: Step) -> None:
        match step:
            case Step.CUT:
                socket.transport.abort()
            case Step.CLOSE:
                await socket.close(1012, "maintenance")
            case Step.STALL:
                socket.transport.pause_reading()
        if step is not Step.STALL:
            await socket.wait_closed()


@asynccontextmanager
async def simulated(
    *scripts: Script, requests_first: int = 1, refusals: int = 0, status: int = 503
) -> AsyncIterator[Simulator]:
    """Run a simulator on a free port."""
    simulator = Simulator(scripts, requests_first, refusals, status)
    async with serve(
        simulator.serve,
        "127.0.0.1",
        0,
        process_request=simulator.process_request,
        ping_interval=None,
        close_timeout=0.1,
        compression=None,
    ) as server:
        (listener,) = server.sockets
        simulator.url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        yield simulator
