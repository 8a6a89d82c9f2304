"""A server that speaks the protocol over real sockets, and sends exactly what it is given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from tickcast.wire.encoding import Encoding, build_frame

Message = dict[str, Any]


def frame(*messages: Message) -> bytes:
    return build_frame(msgspec.json.encode(messages), Encoding.JSON)


def tick(seq: int | None, symbol: str = "ES", **more: Any) -> Message:
    fields = {"T": "t", "S": symbol, "p": 1640.25, "s": 1, "t": "2026-01-05T14:30:00Z", **more}
    return fields if seq is None else {**fields, "seq": seq}


class ScriptedServer:
    """A scripted server, and what it receives from its clients.

    Args:
        script: what the client with a given number receives once it is subscribed, in writes.
        extended: whether it accepts the subprotocol and grants `configure`.
        status: the reply to the handshake.
    """

    def __init__(
        self, script: Callable[[int], Sequence[bytes]], extended: bool = True, status: int = 101
    ) -> None:
        self.script = script
        self.extended = extended
        self.status = status
        self.received: list[list[tuple[int, bytes]]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.received)
        received: list[tuple[int, bytes]] = []
        self.received.append(received)
        # It also checks that clients mask their frames.
        protocol = ServerProtocol(
            subprotocols=[Subprotocol("tickcast.v1.json")] if self.extended else None,
        )
        sending: asyncio.Task[None] | None = None
        try:
            while data := await reader.read(65_536):
                protocol.receive_data(data)
                for event in protocol.events_received():
                    if isinstance(event, Request):
                        writer.write(self.greeting(protocol, event))
                        continue
                    assert isinstance(event, Frame)
                    received.append((event.opcode, bytes(event.data)))
                    if event.opcode == 1 and self.answer(msgspec.json.decode(event.data), writer):
                        sending = asyncio.create_task(self.send(number, writer))
                writer.writelines(protocol.data_to_send())
                if self.status != 101 or protocol.close_expected():
                    break
            assert protocol.parser_exc is None
            await writer.drain()
        except ConnectionError:
            pass
        finally:
            if sending is not None:
                sending.cancel()
            writer.close()

    def greeting(self, protocol: ServerProtocol, request: Request) -> bytes:
        if self.status != 101:
            protocol.send_response(protocol.reject(self.status, ""))
            return b"".join(protocol.data_to_send())
        protocol.send_response(protocol.accept(request))
        return b"".join(protocol.data_to_send()) + frame({"T": "success", "msg": "connected"})

    def answer(self, action: Message, writer: asyncio.StreamWriter) -> bool:
        name = action.pop("action")
        if name == "subscribe":
            writer.write(frame({"T": "subscription", "trades": action["trades"]}))
        elif name == "configure" and self.extended:
            writer.write(frame({"T": "configured", **action}))
        else:
            writer.write(frame({"T": "error", "code": 400, "msg": "invalid syntax"}))
        return bool(name == "subscribe")

    async def send(self, number: int, writer: asyncio.StreamWriter) -> None:
        for data in self.script(number):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def serving(server: ScriptedServer) -> AsyncIterator[str]:
    """Run the server; yield its URL."""
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/stream"
    finally:
        listening.close()
