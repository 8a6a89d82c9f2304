"""Plain Starlette under uvicorn with a queue per client, as in most tutorials."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from typing import Any

from peers import PythonPeer, serve_lines


class Peer(PythonPeer):
    """Starlette."""

    name = "starlette"
    package = "starlette"
    how = "asyncio.Queue per client"


async def serve(path: str) -> None:
    import uvicorn  # noqa: PLC0415
    from starlette.applications import Starlette  # noqa: PLC0415
    from starlette.routing import WebSocketRoute  # noqa: PLC0415
    from starlette.websockets import WebSocket  # noqa: PLC0415

    queues: dict[str, set[asyncio.Queue[str]]] = defaultdict(set)

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        queue: asyncio.Queue[str] = asyncio.Queue()
        wish: dict[str, Any] = await websocket.receive_json()
        for symbol in wish["subscribe"]:
            queues[symbol].add(queue)
        await websocket.send_text("subscribed")
        while True:
            await websocket.send_text(await queue.get())

    def publish(symbol: str, text: str) -> None:
        for queue in queues[symbol]:
            queue.put_nowait(text)

    app = Starlette(routes=[WebSocketRoute("/", endpoint)])
    config = uvicorn.Config(
        app,
        port=0,
        log_level="critical",
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    await serve_lines(path, publish)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))
