"""Hostile clients, in a separate process so that they do not slow down the measuring client.

They are written from the protocol's description alone, and ignore its rules.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import random
import socket as sockets
import struct
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import uvloop

from tests.faults.children import end_with_parent

_SEND_BYTES: Final = 128 * 1024
_MESSAGE_BYTES: Final = 65_000
_PAUSE_S: Final = 0.05
_ESTABLISHED: Final = 1
"""The state of an open connection, see tcp(7)."""
_PATIENCE_S: Final = 10.0
"""How much longer than the attack a connection may last."""
_REFUSED_PAUSE_S: Final = 0.2


@dataclass
class Attack:
    """A kind of attack, and where it comes from.

    Attributes:
        kind: one of `KINDS`.
        port, metrics_port: of the server, on 127.0.0.1.
        addresses: loopback addresses to connect from.
        connections: how many at a time from each address.
        seconds: the duration. A client that is cut connects again.
    """

    kind: str
    port: int
    metrics_port: int
    addresses: list[str]
    connections: int
    seconds: float


@dataclass
class Outcome:
    """The result of an attack.

    Attributes:
        cut: connections that the server ended.
        refused: connections that the server refused before they could do anything.
        answered: HTTP responses that were read completely.
        turned_away: HTTP responses that said to come back later.
        survived: connections that were never ended.
        longest_s: the longest that a connection lasted.
    """

    cut: int = 0
    refused: int = 0
    answered: int = 0
    turned_away: int = 0
    survived: int = 0
    longest_s: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)


async def attacked(attack: Attack) -> Outcome:
    """Carry out an attack; return when it is over."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, json.dumps(asdict(attack)),
        stdout=asyncio.subprocess.PIPE, preexec_fn=end_with_parent,
    )  # fmt: skip
    try:
        async with asyncio.timeout(attack.seconds + 30):
            said, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, f"the attackers failed: {attack}"
    return Outcome(**json.loads(said))


# ------------------------------------------------------------------------------ the other end


def _frame(opcode: int, payload: bytes) -> bytes:
    """Make a client frame, masked with zeros (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, 0x80 | size)) + bytes(4) + payload
    return struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size) + bytes(4) + payload


def _numbers() -> bytes:
    digits = b",".join(b"1" + b"0" * 400 for _ in range(150))
    return b'{"action":"subscribe","start":[' + digits + b"]}"


_MESSAGES: Final[dict[str, Callable[[], bytes]]] = {
    "text": lambda: _frame(1, b"x"),
    "garbage": lambda: _frame(2, random.randbytes(60)),
    "numbers": lambda: _frame(1, _numbers()),
    "nesting": lambda: _frame(1, b'{"action":' + b"[" * _MESSAGE_BYTES),
    "large": lambda: _frame(1, json.dumps({"action": "subscribe", "trades": _names()}).encode()),
    "pings": lambda: _frame(9, b""),
}


def _names() -> list[str]:
    return [f"SYMBOL{number:04}" for number in range(_MESSAGE_BYTES // 15)]


_HTTP: Final = ("/snapshot?symbols=*", "/symbols")
KINDS: Final = (*_MESSAGES, "http", "unread", "stalled", "metrics")


class Attackers:
    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.outcome = Outcome()
        self._loop = asyncio.get_running_loop()
        self._end_s = self._loop.time() + attack.seconds
        make = _MESSAGES.get(attack.kind)
        self._flood = b""
        if make is not None:
            piece = make()
            self._flood = piece * max(1, _SEND_BYTES // len(piece))

    async def run(self) -> Outcome:
        way = {
            "http": self._burst, "unread": self._never_read,
            "stalled": self._stall, "metrics": self._stall,
        }.get(self.attack.kind, self._talk)  # fmt: skip
        places = [each for each in self.attack.addresses for _ in range(self.attack.connections)]
        await asyncio.gather(*(self._keep_coming(each, way) for each in places))
        return self.outcome

    @property
    def _is_over(self) -> bool:
        return self._loop.time() >= self._end_s

    async def _keep_coming(
        self, address: str, way: Callable[[sockets.socket], Awaitable[bool]]
    ) -> None:
        port = self.attack.metrics_port if self.attack.kind == "metrics" else self.attack.port
        while not self._is_over:
            began_s = self._loop.time()
            raw = sockets.socket()
            raw.setblocking(False)
            raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
            raw.bind((address, 0))
            served = False
            try:
                async with asyncio.timeout(self.attack.seconds + _PATIENCE_S):
                    if self.attack.kind == "unread":
                        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
                    await self._loop.sock_connect(raw, ("127.0.0.1", port))
                    served = await way(raw)
            except TimeoutError:
                self.outcome.survived += 1
            except OSError:
                served = True
            finally:
                raw.close()
            if served:
                self.outcome.cut += 1
                lasted_s = self._loop.time() - began_s
                self.outcome.longest_s = max(self.outcome.longest_s, lasted_s)
            else:
                await asyncio.sleep(_REFUSED_PAUSE_S)

    async def _talk(self, raw: sockets.socket) -> bool:
        """Flood a WebSocket until it ends; return False if it was refused."""
        key = base64.b64encode(os.urandom(16)).decode()
        await self._loop.sock_sendall(
            raw,
            b"GET /stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: " + key.encode() + b"\r\n\r\n",
        )
        if not await self._is_accepted(raw, b" 101 "):
            return False
        while True:
            await self._loop.sock_sendall(raw, self._flood)

    async def _is_accepted(self, raw: sockets.socket, wanted: bytes) -> bool:
        line = (await self._loop.sock_recv(raw, 4096)).partition(b"\r\n")[0]
        status = line[9:12].decode("latin-1")
        self.outcome.statuses[status] = self.outcome.statuses.get(status, 0) + 1
        if wanted in line:
            return True
        self.outcome.refused += 1
        return False

    async def _burst(self, raw: sockets.socket) -> bool:
        """Request something expensive, read the response, and repeat."""
        reader, writer = await asyncio.open_connection(sock=raw, limit=1 << 22)
        while not self._is_over:
            path = random.choice(_HTTP)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            status = head[9:12].decode("latin-1")
            self.outcome.statuses[status] = self.outcome.statuses.get(status, 0) + 1
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(size)
            if status != "200":
                self.outcome.turned_away += 1
                await asyncio.sleep(_PAUSE_S)
                if b"connection: close" in head.lower():
                    return False
            else:
                self.outcome.answered += 1
        return False

    async def _never_read(self, raw: sockets.socket) -> bool:
        """Request a lot, and read none of it."""
        request = b"GET /snapshot?symbols=* HTTP/1.1\r\nHost: localhost\r\n\r\n"
        await self._loop.sock_sendall(raw, request * 8)
        return await self._wait_for_end(raw, b"")

    async def _stall(self, raw: sockets.socket) -> bool:
        """Begin a request, and never finish it."""
        head = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n"
        await self._loop.sock_sendall(raw, head)
        return await self._wait_for_end(raw, b"X-More: %b\r\n" % (b"x" * 50))

    async def _wait_for_end(self, raw: sockets.socket, more: bytes) -> bool:
        while True:
            await asyncio.sleep(_PAUSE_S)
            # Unread data hides the end of the stream, but not the state of the connection.
            if raw.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, 1)[0] != _ESTABLISHED:
                return True
            if more:
                await self._loop.sock_sendall(raw, more)


async def _serve(words: dict[str, Any]) -> Outcome:
    return await Attackers(Attack(**words)).run()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        outcome = runner.run(_serve(json.loads(sys.argv[1])))
    print(json.dumps(asdict(outcome)))  # noqa: T201
