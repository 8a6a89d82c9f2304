"""picows: a WebSocket server in Cython that sends to each subscriber of a symbol in turn."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from typing import Any

from peers import PythonPeer, serve_lines


class Peer(PythonPeer):
    """picows."""

    name = "picows"
    package = "picows"
    how = "send to each"


async def listen(path: str) -> None:
    import picows  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415

    text_frame = picows.WSMsgType.TEXT
    subscribers: dict[str, list[Any]] = defaultdict(list)

    class Listener(picows.WSListener):  # type: ignore[misc, unused-ignore]
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == text_frame:
                for symbol in json.loads(frame.get_payload_as_bytes())["subscribe"]:
                    subscribers[symbol].append(transport)
                transport.send(text_frame, b"subscribed")

    def publish(symbol: str, text: str) -> None:
        message = text.encode()
        for transport in subscribers[symbol]:
            transport.send(text_frame, message)

    await serve_lines(path, publish)
    server = await picows.ws_create_server(lambda request: Listener(), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(listen(sys.argv[1]))
