"""An application that echoes every message, in each of the ways to receive one.

The Autobahn cases talk to it. They can't use `/stream`, which does not echo the messages that it
receives.
"""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from feed.transport.handshake import EXTENSION, WebSocketProtocol
from tickcast.wire.encoding import Encoding, build_frame


async def _by_asgi(websocket: WebSocket) -> None:
    """Receive and send as every ASGI application does."""
    await websocket.accept()
    try:
        while (event := await websocket.receive())["type"] == "websocket.receive":
            if event.get("text") is None:
                await websocket.send_bytes(event["bytes"])
            else:
                await websocket.send_text(event["text"])
    except WebSocketDisconnect:
        pass  # The client left before its answer.


async def _at_once(websocket: WebSocket) -> None:
    """Hand the connection over, as `/stream` does; answer each message in the callback."""
    await websocket.accept()
    sink: WebSocketProtocol = websocket.scope["extensions"][EXTENSION]

    def take(message: str | bytes) -> None:
        sink.write(_frame(message))

    sink.hand_over(take, lambda code: None)


async def _later(websocket: WebSocket) -> None:
    """Hand the connection over; each message takes a while, and the next one waits for it."""
    await websocket.accept()
    sink: WebSocketProtocol = websocket.scope["extensions"][EXTENSION]

    async def take(message: str | bytes) -> None:
        await asyncio.sleep(0)
        sink.write(_frame(message))

    sink.hand_over(take, lambda code: None)


def _frame(message: str | bytes) -> bytes:
    if isinstance(message, str):
        return build_frame(message.encode(), Encoding.JSON)
    return build_frame(message, Encoding.MSGPACK)


WAYS: Final = {"asgi": _by_asgi, "at-once": _at_once, "later": _later}
"""The routes by name."""

app: Final = Starlette(routes=[WebSocketRoute(f"/{name}", way) for name, way in WAYS.items()])
