"""A WebSocket client without rules: it sends frames as bytes, in any form that a test needs."""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
import struct
from collections.abc import AsyncIterator
from typing import Final

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
"""The example of RFC 6455, section 1.3."""
_MASK: Final = b"\x37\xfa\x21\x3d"
_DROPS: Final = 200
_READ_BYTES: Final = 64 * 1024
_TIMEOUT_S: Final = 10.0

Frame = tuple[int, bytes]
"""The opcode and payload of a frame from the server."""


def frame(
    opcode: int, payload: bytes = b"", *, final: bool = True, reserved: int = 0, masked: bool = True
) -> bytes:
    """Make one frame (RFC 6455, section 5.2).

    Args:
        reserved: the three reserved bits as a number, RSV1 being 4.
    """
    size = len(payload)
    form = 0 if size < 126 else 2 if size < 1 << 16 else 8
    head = header(opcode, size, form, final=final, reserved=reserved, masked=masked)
    return head + (mask(payload) if masked else payload)


def header(
    opcode: int,
    size: int,
    form: int,
    *,
    final: bool = True,
    reserved: int = 0,
    masked: bool = True,
) -> bytes:
    """Make the bytes before a masked payload, mask included; they need not be correct.

    Args:
        size: the stated length.
        form: how many bytes after the second state the length: 0, 2 or 8.
    """
    first = final << 7 | reserved << 4 | opcode
    second = masked << 7 | {0: size, 2: 126, 8: 127}[form]
    length = {0: b"", 2: struct.pack("!H", size & 0xFFFF), 8: struct.pack("!Q", size)}[form]
    return bytes((first, second)) + length + (_MASK if masked else b"")


def mask(payload: bytes) -> bytes:
    whole = _MASK * (len(payload) // 4 + 1)
    size = len(payload)
    masked = int.from_bytes(payload) ^ int.from_bytes(whole[:size])
    return masked.to_bytes(size)


def close_frame(code: int | None = None, reason: bytes = b"") -> bytes:
    return frame(CLOSE, closing(code, reason))


def closing(code: int | None, reason: bytes = b"") -> bytes:
    """Make the payload of a close frame."""
    return b"" if code is None else struct.pack("!H", code) + reason


def handshake(path: str = "/stream", /, **headers: str | None) -> bytes:
    """Make a valid request, changed by the given headers; None leaves a header out."""
    fields: dict[str, str | None] = {
        "Host": "localhost", "Upgrade": "websocket", "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": KEY,
    }  # fmt: skip
    fields.update((name.replace("_", "-"), value) for name, value in headers.items())
    lines = [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join((f"GET {path} HTTP/1.1", *lines, "", "")).encode()


class Wire:
    """One connection, from its first byte."""

    def __init__(self, socket: sockets.socket) -> None:
        self._socket = socket
        self._unread = b""

    async def say(self, data: bytes, *, in_drops: bool = False) -> bool:
        """Send bytes, the first ones singly if requested; return whether they were accepted."""
        loop = asyncio.get_running_loop()
        drops = min(len(data), _DROPS) if in_drops else 0
        pieces = [*(data[at : at + 1] for at in range(drops)), data[drops:]]
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                for piece in pieces:
                    await loop.sock_sendall(self._socket, piece)
                    if in_drops:
                        await asyncio.sleep(0)  # The server, on the same loop, reads it now.
        except OSError:
            return False
        return True

    async def answer(self) -> tuple[int, dict[str, str]]:
        """Return the server's answer to the handshake: status, and headers in lower case."""
        while b"\r\n\r\n" not in self._unread:
            assert await self._read_more(), self._unread
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        return int(status.split()[1]), {name.lower(): value.strip() for name, value in pairs}

    async def hear(self) -> Frame | None:
        """Return the next frame, or None once the server has hung up.

        Raises:
            AssertionError: it is masked, fragmented or truncated, or has a reserved bit.
        """
        while (size := self._frame_bytes()) is None:
            if not await self._read_more():
                assert self._unread == b"", self._unread
                return None
        whole, self._unread = self._unread[:size], self._unread[size:]
        assert whole[0] & 0xF0 == 0x80, whole
        assert whole[1] < 0x80, whole
        return whole[0] & 0x0F, whole[{126: 4, 127: 10}.get(whole[1], 2) :]

    async def rest(self) -> list[Frame]:
        """Return all frames until the server hangs up."""
        frames = []
        while (each := await self.hear()) is not None:
            frames.append(each)
        return frames

    def _frame_bytes(self) -> int | None:
        """Return the length of the first frame, if it has arrived completely."""
        data = self._unread
        if len(data) < 2:
            return None
        head = {126: 4, 127: 10}.get(data[1] & 0x7F, 2)
        if len(data) < head:
            return None
        size = head + (data[1] & 0x7F if head == 2 else int.from_bytes(data[2:head]))
        return size if len(data) >= size else None

    async def _read_more(self) -> bool:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                data = await loop.sock_recv(self._socket, _READ_BYTES)
        except ConnectionError:
            return False  # The server closed without waiting for the rest.
        self._unread += data
        return data != b""


@contextlib.asynccontextmanager
async def wired(url: str) -> AsyncIterator[Wire]:
    """Connect to a server without sending anything."""
    host, _, port = url.partition("://")[2].rpartition(":")
    with sockets.socket() as socket:
        socket.setblocking(False)
        socket.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(socket, (host, int(port)))
        yield Wire(socket)


@contextlib.asynccontextmanager
async def greeted(url: str, path: str = "/stream", /, **headers: str | None) -> AsyncIterator[Wire]:
    """Like `wired`, after the handshake and the greeting."""
    async with wired(url) as wire:
        await wire.say(handshake(path, **headers))
        status, _ = await wire.answer()
        assert status == 101
        assert await wire.hear() == (TEXT, b'[{"T":"success","msg":"connected"}]')
        yield wire
