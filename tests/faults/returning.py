"""Thousands of cheap clients in a separate process, which all connect and reconnect at once.

They implement only the part of the protocol that they need, so that two cores are enough for them
and for the server under test. The test writes one line per question, and they answer each with one
line.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from tests.faults.children import until

SYMBOLS: Final = [f"R{number:02}" for number in range(20)]
_PATIENCE_S: Final = 60.0
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d+)")
_RETRY_AFTER: Final = re.compile(rb"(?i)\r\nretry-after: (\d+)")


class Light(asyncio.Protocol):
    """One client of one symbol. It resumes where it left off, and never gives up.

    Attributes:
        seq: the number of the last tick received.
        caught_up_s: the wall-clock time of the first tick after its last subscription.
        faults: ticks that were missing or came twice, notices and errors.
    """

    def __init__(self, crowd: Returning, symbol: str) -> None:
        self._crowd = crowd
        self._symbol = symbol
        self._epoch = ""
        self._data = bytearray()
        self._upgraded = False
        self._transport: asyncio.Transport | None = None
        self.seq = 0
        self.caught_up_s = 0.0
        self.faults: Counter[str] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._data.clear()
        self._upgraded = False
        self.caught_up_s = 0.0
        transport.write(self._crowd.handshake)

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._upgraded:
            head, blank, rest = self._data.partition(b"\r\n\r\n")
            if not blank:
                return
            self._take_head(bytes(head))
            self._data = rest
        while (payload := self._next_frame()) is not None:
            for message in msgspec.json.decode(payload):
                self._take(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._crowd.lost(self)

    def _take_head(self, head: bytes) -> None:
        status = _STATUS.match(head)
        assert status is not None, head
        self._upgraded = status[1] == b"101"
        self._crowd.statuses[int(status[1])] += 1
        if self._upgraded:
            resume = {"resume": {"epoch": self._epoch, "trades": {self._symbol: self.seq}}}
            self._say(action="subscribe", trades=[self._symbol], **(resume if self._epoch else {}))
            return
        wait = _RETRY_AFTER.search(head)
        self._crowd.refused(self, int(wait[1]) if wait else 1)
        assert self._transport is not None
        self._transport.abort()

    def _say(self, **fields: Any) -> None:
        text = json.dumps(fields).encode()
        assert len(text) < 65_536
        # A mask of zeros leaves the text unchanged.
        head = b"\x81\xfe" + len(text).to_bytes(2, "big") + bytes(4)
        assert self._transport is not None
        self._transport.write(head + text)

    def _next_frame(self) -> bytes | None:
        data = self._data
        if not self._upgraded or len(data) < 2:
            return None
        length, start = data[1], 2
        if length >= 126:
            start += 2 if length == 126 else 8
            length = int.from_bytes(data[2:start], "big")
        if len(data) < start + length:
            return None
        opcode, payload = data[0] & 15, bytes(data[start : start + length])
        del data[: start + length]
        return payload if opcode == 1 else b"[]"

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["T"]
        if kind == "t":
            self.faults["missing"] += max(0, message["seq"] - self.seq - 1) if self.seq else 0
            self.faults["repeated"] += message["seq"] <= self.seq
            self.seq = message["seq"]
            self.caught_up_s = self.caught_up_s or time.time()
        elif kind == "subscription":
            self._epoch = message["epoch"]
        elif kind not in ("success", "shutdown"):
            self.faults[json.dumps(message)] += 1


class Returning:
    """All clients, and the answers to the test's questions."""

    def __init__(self, url: str, size: int) -> None:
        self._parts = urlsplit(url)
        self.handshake = (
            f"GET {self._parts.path} HTTP/1.1\r\nHost: {self._parts.netloc}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            "Sec-WebSocket-Protocol: tickcast.v1.json\r\n\r\n"
        ).encode()
        self._tasks: set[asyncio.Task[None]] = set()
        self._told_to_wait: set[Light] = set()
        self._may_connect = asyncio.Event()
        self.clients = [Light(self, SYMBOLS[n % len(SYMBOLS)]) for n in range(size)]
        self.statuses: Counter[int] = Counter()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def lost(self, client: Light) -> None:
        """Reconnect a client that has lost its connection, once the test allows it."""
        if client not in self._told_to_wait:
            self.start(self._connect(client))
        self._told_to_wait.discard(client)

    def refused(self, client: Light, wait_s: int) -> None:
        """Reconnect a client at the time that the server told it, spread over a second."""
        self._told_to_wait.add(client)
        self.start(self._connect(client, wait_s + random.random()))

    async def _connect(self, client: Light, delay_s: float = 0.0) -> None:
        await asyncio.sleep(delay_s)
        while True:
            await self._may_connect.wait()
            try:
                await asyncio.get_running_loop().create_connection(
                    lambda: client, self._parts.hostname or "", self._parts.port or 0
                )
            except OSError:
                await asyncio.sleep(random.uniform(0.1, 0.5))
            else:
                return

    async def answer(self, question: str, **more: Any) -> object:
        """Answer a question of the test: see `Crowd.ask`."""
        answers: dict[str, Callable[..., Awaitable[object]]] = {
            "live": self._live, "hold": self._hold, "return": self._return, "end": self._end,
        }  # fmt: skip
        return await answers[question](**more)

    async def _live(self) -> bool:
        self._may_connect.set()
        for place, client in enumerate(self.clients):
            self.start(self._connect(client, place / 500))
        await until(lambda: all(each.caught_up_s for each in self.clients), _PATIENCE_S, "live")
        return True

    async def _hold(self) -> bool:
        self._may_connect.clear()
        return True

    async def _return(self) -> dict[str, Any]:
        self.statuses.clear()
        for client in self.clients:
            client.caught_up_s = 0.0
        began_s = time.time()
        self._may_connect.set()
        await until(lambda: all(each.caught_up_s for each in self.clients), _PATIENCE_S, "back")
        moments = sorted(each.caught_up_s - began_s for each in self.clients)
        return {
            "half_s": moments[len(moments) // 2], "all_s": moments[-1],
            "refused": {str(code): n for code, n in self.statuses.items() if code != 101},
        }  # fmt: skip

    async def _end(self, seqs: dict[str, int]) -> dict[str, int]:
        wanted = [(each, seqs[each._symbol]) for each in self.clients]
        await until(lambda: all(each.seq >= seq for each, seq in wanted), _PATIENCE_S, "the end")
        return dict(sum((each.faults for each in self.clients), Counter()))


async def serve(url: str, size: int) -> None:
    """Answer questions until standard input is closed."""
    crowd = Returning(url, size)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
    )
    while line := await lines.readline():
        asked = json.loads(line)
        print(json.dumps(await crowd.answer(asked.pop("ask"), **asked)), flush=True)  # noqa: T201


if __name__ == "__main__":
    _, *words = sys.argv
    asyncio.run(serve(words[0], int(words[1])))
