"""The client's side of WebSocket, without I/O: the handshake and frames (RFC 6455)."""

from __future__ import annotations

import base64
import hashlib
import os
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from tickcast.wire.errors import ConnectionFailed, InvalidSettings, TickcastError

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA
MESSAGE_MAX_BYTES: Final = 64 * 1024 * 1024
_HEAD_MAX_BYTES: Final = 16 * 1024
_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_DEFAULT_PORTS: Final = {"ws": 80, "wss": 443}

Message = tuple[int, bytes]
"""Opcode and payload; fragmented messages are reassembled."""


class FrameFault(TickcastError):
    """The server violated RFC 6455. `messages` are the complete ones received before."""

    messages: tuple[Message, ...] = ()


class StreamAddress(NamedTuple):
    """The parts of a stream's URL; `target` is the path and query."""

    host: str
    port: int
    target: str
    secure: bool

    @property
    def authority(self) -> str:
        """Host and port in the format of the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def scheme(self) -> str:
        """`ws` or `wss`."""
        return "wss" if self.secure else "ws"


def parse_url(url: str) -> StreamAddress:
    """Parse a URL.

    Raises:
        InvalidSettings: the URL is not ws:// or wss://, or contains credentials.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidSettings(f"{url!a}: {error}") from None
    if parts.scheme not in _DEFAULT_PORTS:
        raise InvalidSettings(f"{url!a} does not begin with ws:// or wss://")
    if not parts.hostname:
        raise InvalidSettings(f"{url!a} names no host")
    if parts.username is not None or parts.fragment:
        raise InvalidSettings(f"{parts.scheme}://{parts.hostname}: neither user nor # in this URL")
    if not (url.isascii() and url.isprintable()) or " " in url:
        raise InvalidSettings(f"{url!a}: encode what is not plain ASCII as %XX")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    port = _DEFAULT_PORTS[parts.scheme] if port is None else port
    return StreamAddress(parts.hostname, port, target, parts.scheme == "wss")


class Handshake:
    """One opening handshake: builds the request and parses the reply."""

    def __init__(
        self, address: StreamAddress, subprotocol: str | None, headers: Iterable[tuple[str, str]]
    ) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        digest = hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()
        self._accept = base64.b64encode(digest).decode()
        self._received = b""
        self.subprotocol: str | None = None
        lines = [
            f"GET {address.target} HTTP/1.1", f"Host: {address.authority}", "Upgrade: websocket",
            "Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}",
        ]  # fmt: skip
        if subprotocol:
            lines.append(f"Sec-WebSocket-Protocol: {subprotocol}")
        lines += (f"{name}: {value}" for name, value in headers)
        self.request = ("\r\n".join(lines) + "\r\n\r\n").encode()

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes of the reply; return None until it is complete, then the bytes after it.

        Raises:
            ConnectionFailed: the server refused the handshake; the text says how.
        """
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            if len(head) > _HEAD_MAX_BYTES:
                raise ConnectionFailed("the reply to the handshake never ends")
            return None
        status, *lines = head.decode("latin-1").split("\r\n")
        words = status.split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
            raise ConnectionFailed("the server does not speak HTTP")
        if words[1] != "101":
            raise ConnectionFailed(f"HTTP {words[1]}")
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        if fields.get("sec-websocket-accept") != self._accept:
            raise ConnectionFailed("the server does not speak WebSocket")
        self.subprotocol = fields.get("sec-websocket-protocol")
        return rest


class FrameReader:
    """Parses bytes into complete messages, copying each payload once."""

    __slots__ = ("_chunks", "_fragments", "_have", "_need", "_opcode")

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = 0
        self._opcode = CONTINUATION
        self._fragments: list[bytes] = []

    def feed(self, data: bytes) -> list[Message]:
        """Take bytes from the socket, in chunks of any size; return the complete messages.

        Raises:
            FrameFault: the server sent an invalid frame.
        """
        if self._chunks:
            self._chunks.append(data)
            self._have += len(data)
            # A large frame arrives in many chunks: join them only once it is complete.
            if self._have < self._need:
                return []
            data = b"".join(self._chunks)
            self._chunks.clear()
        messages: list[Message] = []
        start, size = 0, len(data)
        try:
            while True:
                begin, end = _locate(data, start, size)
                if end > size:
                    break
                self._take(data[start], data[begin:end], messages)
                start = end
        except FrameFault as fault:
            fault.messages = tuple(messages)
            raise
        if start < size:
            self._chunks.append(data[start:])
            self._have, self._need = size - start, end - start
        return messages

    def _take(self, first: int, payload: bytes, messages: list[Message]) -> None:
        opcode = first & 0x0F
        if first in {0x80 | TEXT, 0x80 | BINARY} and self._opcode == CONTINUATION:
            messages.append((opcode, payload))
        elif first & 0x70:
            raise FrameFault("reserved bits are set")
        elif opcode in {CLOSE, PING, PONG}:
            if not first & 0x80 or len(payload) > 125:
                raise FrameFault("a control frame in parts, or too long")
            messages.append((opcode, payload))
        else:
            self._take_fragment(first, opcode, payload, messages)

    def _take_fragment(
        self, first: int, opcode: int, payload: bytes, messages: list[Message]
    ) -> None:
        if opcode > BINARY or (opcode == CONTINUATION) != bool(self._fragments):
            raise FrameFault("frames out of order")
        self._opcode = opcode or self._opcode
        self._fragments.append(payload)
        if sum(map(len, self._fragments)) > MESSAGE_MAX_BYTES:
            raise FrameFault("a message without end")
        if first & 0x80:
            messages.append((self._opcode, b"".join(self._fragments)))
            self._fragments.clear()
            self._opcode = CONTINUATION


def _locate(data: bytes, start: int, size: int) -> tuple[int, int]:
    """Return the bounds of the payload of the frame at `start`; past `size` if incomplete."""
    if size - start < 2:
        return start, start + 2 if size > start else size + 1
    length = data[start + 1]
    if length < 126:
        begin = start + 2
    elif length == 126:
        begin = start + 4
        if begin > size:
            return begin, begin
        length = data[start + 2] << 8 | data[start + 3]
    elif length == 127:
        begin = start + 10
        if begin > size:
            return begin, begin
        length = int.from_bytes(data[start + 2 : begin], "big")
        if length > MESSAGE_MAX_BYTES:
            raise FrameFault("a frame without end")
    else:
        raise FrameFault("the server masks its frames")
    return begin, begin + length


def build_frame(opcode: int, payload: bytes) -> bytes:
    """Build a masked frame (RFC 6455, section 5.3). Clients send only few, short frames."""
    size = len(payload)
    mask = os.urandom(4)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + mask + mask_payload(payload, mask)


def mask_payload(payload: bytes, mask: bytes) -> bytes:
    """Apply a mask to a payload; applying it twice restores the payload."""
    size = len(payload)
    repeated = (mask * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return masked.to_bytes(size, "big")


def close_payload(code: int) -> bytes:
    """Return the payload of a close frame."""
    return code.to_bytes(2, "big")


def close_code(payload: bytes) -> int:
    """Return the code of a close frame, or 1005 if it has none (RFC 6455, section 7.1.5)."""
    return int.from_bytes(payload[:2], "big") if len(payload) >= 2 else 1005
