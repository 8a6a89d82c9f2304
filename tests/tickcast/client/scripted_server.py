"""A scripted server, for faults that a correct server does not produce."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from tickcast.wire.messages import JSON_SUBPROTOCOL

EPOCH: Final = "e1"


class Peer:
    """The server's side of one connection."""

    def __init__(self, socket: ServerConnection) -> None:
        self._socket = socket
        self.received: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        """Receive the client's next message."""
        self.received.append(json.loads(await self._socket.recv()))
        return self.received[-1]

    async def send(self, *messages: dict[str, Any]) -> None:
        """Send a frame with these messages."""
        await self._socket.send(json.dumps(messages))

    async def send_text(self, text: str) -> None:
        """Send a frame with exactly this text."""
        await self._socket.send(text)

    async def confirm(self, request: dict[str, Any], **more: Any) -> None:
        """Confirm a subscription, as the only one."""
        subscribed = {key: request.get(key, []) for key in ("trades", "quotes", "bars")}
        await self.send(
            {"T": "subscription", **subscribed, "epoch": EPOCH, "id": request["id"], **more}
        )

    async def reject(self, request: dict[str, Any], code: int) -> None:
        await self.send({"T": "error", "code": code, "msg": "no", "id": request["id"]})

    async def send_ticks(self, *seqs: int | None, symbol: str = "ES") -> None:
        """Send trades with these numbers, one frame each."""
        for seq in seqs:
            tick = {"T": "t", "S": symbol, "p": 1.0, "s": 1.0, "t": "2026-01-05T14:30:00Z"}
            await self.send(tick if seq is None else {**tick, "seq": seq})

    async def close(self, code: int) -> None:
        await self._socket.close(code)

    def abort(self) -> None:
        """Drop the connection without a close frame."""
        self._socket.transport.abort()

    async def until_closed(self) -> None:
        await self._socket.wait_closed()


Script = Callable[[Peer], Awaitable[None]]


class ScriptedServer:
    """Play one script for each connection; repeat the last script for further connections.

    Attributes:
        refusals: HTTP responses for the next handshakes, which are refused.
        peers: all connections so far.
        handshakes_s: the time of each handshake, on the loop's clock.
    """

    def __init__(self, scripts: Sequence[Script]) -> None:
        self._scripts = list(scripts)
        self.refusals: list[tuple[int, dict[str, str]]] = []
        self.peers: list[Peer] = []
        self.handshakes_s: list[float] = []
        self.url = ""
        self.failed: BaseException | None = None

    def greet(self, socket: ServerConnection, request: Request) -> Response | None:
        self.handshakes_s.append(asyncio.get_running_loop().time())
        if not self.refusals:
            return None
        status, headers = self.refusals.pop(0)
        response = socket.respond(status, "no\n")
        response.headers.update(headers)
        return response

    async def play(self, socket: ServerConnection) -> None:
        peer = Peer(socket)
        script = self._scripts[min(len(self.peers), len(self._scripts) - 1)]
        self.peers.append(peer)
        try:
            await peer.send({"T": "success", "msg": "connected"})
            await script(peer)
            await peer.until_closed()
        except ConnectionClosed:
            pass
        except Exception as error:
            self.failed = error
            raise


@asynccontextmanager
async def scripted_server(
    *scripts: Script, subprotocols: Sequence[str] = (JSON_SUBPROTOCOL,)
) -> AsyncIterator[ScriptedServer]:
    """Run a server with these scripts on a free port."""
    scripted = ScriptedServer(scripts)
    async with serve(
        scripted.play,
        "127.0.0.1",
        0,
        subprotocols=[Subprotocol(each) for each in subprotocols] or None,
        process_request=scripted.greet,
        close_timeout=0.2,
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        scripted.url = f"ws://127.0.0.1:{port}/stream"
        yield scripted
    assert scripted.failed is None


async def confirm_all(peer: Peer) -> None:
    """Confirm every action."""
    while True:
        request = await peer.receive()
        more: dict[str, Any] = {"positions": []} if request.get("positions") else {}
        await peer.confirm(request, **more)
