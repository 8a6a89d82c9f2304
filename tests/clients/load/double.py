"""A test double of a server: speaks the protocol over real sockets, and sends what it is given."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from clients.load.wire import CLOSE, FrameFault, mask_payload
from tickcast.wire.encoding import Encoding, build_frame

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
Message = dict[str, Any]


def frame(*messages: Message) -> bytes:
    return build_frame(msgspec.json.encode(messages), Encoding.JSON)


def tick(seq: int | None, symbol: str = "ES", **more: Any) -> Message:
    fields = {"T": "t", "S": symbol, "p": 1640.25, "s": 1, "t": "2026-01-05T14:30:00Z", **more}
    return fields if seq is None else {**fields, "seq": seq}


def read_frames(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Split a buffer into the masked frames of a client and the remaining bytes."""
    found = []
    while len(data) >= 2:
        if not data[1] & 0x80:
            raise FrameFault("a client masks its frames")
        size, begin = data[1] & 0x7F, 2
        if size == 126:
            size, begin = int.from_bytes(data[2:4], "big"), 4
        if len(data) < begin + 4 + size:
            break
        mask = data[begin : begin + 4]
        payload = mask_payload(data[begin + 4 : begin + 4 + size], mask)
        found.append((data[0] & 0x0F, payload))
        data = data[begin + 4 + size :]
    return found, data


class Double:
    """A scripted server, and what it records about its clients.

    Args:
        script: what the client with a given number receives once it is subscribed, in pieces.
        extended: whether it accepts the subprotocol and grants `configure`.
        status: the reply to the handshake.
    """

    def __init__(
        self, script: Callable[[int], Sequence[bytes]], extended: bool = True, status: int = 101
    ) -> None:
        self.script = script
        self.extended = extended
        self.status = status
        self.clients = 0
        self.heard: list[list[tuple[int, bytes]]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.clients = self.clients, self.clients + 1
        heard: list[tuple[int, bytes]] = []
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heard.append(heard)
            writer.write(self.handshake(head))
            if self.status == 101:
                await self.talk(number, reader, writer, heard)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def handshake(self, head: bytes) -> bytes:
        if self.status != 101:
            return b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % self.status
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", head)
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key[1] + GUID).digest())
        chosen = b"Sec-WebSocket-Protocol: tickcast.v1.json\r\n" if self.extended else b""
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n" + chosen + b"\r\n"
        ) + frame({"T": "success", "msg": "connected"})

    async def talk(
        self,
        number: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        heard: list[tuple[int, bytes]],
    ) -> None:
        data = b""
        sending: asyncio.Task[None] | None = None
        try:
            while chunk := await reader.read(65_536):
                frames, data = read_frames(data + chunk)
                for opcode, payload in frames:
                    heard.append((opcode, payload))
                    if opcode == CLOSE:
                        writer.write(bytes((0x80 | CLOSE, 2)) + payload[:2])
                        await writer.drain()
                        return
                    if opcode == 1 and self.answer(msgspec.json.decode(payload), writer):
                        sending = asyncio.create_task(self.send(number, writer))
        finally:
            if sending is not None:
                sending.cancel()

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
        for piece in self.script(number):
            writer.write(piece)
            await writer.drain()


@asynccontextmanager
async def doubling(double: Double) -> AsyncIterator[str]:
    """Run the double; yield its URL."""
    server = await asyncio.start_server(double.serve, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/stream"
    finally:
        server.close()
