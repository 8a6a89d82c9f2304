"""A bare WebSocket client for tests, which shows all messages unchanged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import msgpack
from websockets.asyncio.client import ClientConnection, connect


class Talk:
    """Send maps, and receive messages one by one."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._waiting: list[dict[str, Any]] = []

    async def say(self, _binary: bool = False, **fields: Any) -> None:
        await self.socket.send(msgpack.packb(fields) if _binary else json.dumps(fields))

    async def hear(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """Return the next message."""
        async with asyncio.timeout(timeout_s):
            while not self._waiting:
                frame = await self.socket.recv()
                self._waiting = decode(frame)
        return self._waiting.pop(0)

    async def ask(self, **fields: Any) -> dict[str, Any]:
        """Send an action and return its answer; drop ticks that arrive before it."""
        await self.say(**fields)
        while (message := await self.hear())["T"] in "tqb":
            pass
        return message

    async def ticks(self, count: int, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Return the next ticks; any other message fails."""
        found: list[dict[str, Any]] = []
        async with asyncio.timeout(timeout_s):
            while len(found) < count:
                message = await self.hear(timeout_s)
                assert message["T"] in "tqb", message
                found.append(message)
        return found


def _refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


def decode(frame: str | bytes) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = (
        json.loads(frame, parse_constant=_refuse)
        if isinstance(frame, str)
        else msgpack.unpackb(frame)
    )
    return messages


@asynccontextmanager
async def talking(url: str, **options: Any) -> AsyncIterator[Talk]:
    """Connect and receive the greeting."""
    async with connect(url, compression=None, max_size=None, **options) as socket:
        talk = Talk(socket)
        assert await talk.hear() == {"T": "success", "msg": "connected"}
        yield talk
