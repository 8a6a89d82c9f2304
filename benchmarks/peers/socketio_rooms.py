"""python-socketio under uvicorn: a room per symbol, `emit` to the room."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

from peers import PythonPeer, frame, handshake, serve_lines


class Peer(PythonPeer):
    """python-socketio. Our clients speak Engine.IO 4 over WebSocket, without its client library."""

    name = "socketio"
    package = "python-socketio"
    how = "emit to a room"

    def hello(self) -> bytes:
        return handshake("/socket.io/?EIO=4&transport=websocket")

    def steps(self, symbols: Sequence[str]) -> list[tuple[bytes, bytes]]:
        wish = "42" + json.dumps(["subscribe", list(symbols)])
        # "open" is answered with "connect", and that with "subscribe" (Socket.IO protocol 5).
        return [
            (b'0{"sid"', frame(b"40")),
            (b'40{"sid"', frame(wish.encode())),
            (b"subscribed", b""),
        ]


async def listen(path: str) -> None:
    import socketio  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415
    import uvicorn  # noqa: PLC0415

    # Clients don't answer pings. With an interval of an hour, there are none.
    sio: Any = socketio.AsyncServer(
        async_mode="asgi", ping_interval=3600, http_compression=False, monitor_clients=False
    )

    @sio.event  # type: ignore[untyped-decorator, unused-ignore]
    async def subscribe(sid: str, symbols: list[str]) -> None:
        for symbol in symbols:
            await sio.enter_room(sid, symbol)
        await sio.emit("subscribed", to=sid)

    lines: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    def take(symbol: str, text: str) -> None:
        lines.put_nowait((symbol, text))

    async def publish() -> None:
        while True:
            symbol, text = await lines.get()
            # Send an object, so that clients get the same JSON as elsewhere, not JSON in a string.
            await sio.emit("ticks", json.loads(text), room=symbol)

    config = uvicorn.Config(
        socketio.ASGIApp(sio),
        port=0,
        log_level="critical",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    await serve_lines(path, take)
    publishing = asyncio.create_task(publish())
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving
    publishing.cancel()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(listen(sys.argv[1]))
