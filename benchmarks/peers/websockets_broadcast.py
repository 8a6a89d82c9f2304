"""The websockets library: its server, with `broadcast` to the subscribers of a symbol."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict

from peers import PythonPeer, serve_lines


class Peer(PythonPeer):
    """websockets."""

    name = "websockets"
    package = "websockets"
    how = "broadcast()"


async def listen(path: str) -> None:
    from websockets.asyncio.server import ServerConnection, broadcast, serve  # noqa: PLC0415

    subscribers: dict[str, set[ServerConnection]] = defaultdict(set)

    async def handler(connection: ServerConnection) -> None:
        for symbol in json.loads(await connection.recv())["subscribe"]:
            subscribers[symbol].add(connection)
        await connection.send("subscribed")
        await connection.wait_closed()

    def publish(symbol: str, text: str) -> None:
        broadcast(subscribers[symbol], text)

    await serve_lines(path, publish)
    async with serve(handler, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(listen(sys.argv[1]))
