"""Clients that send as fast as they can: they are cut, and no other client notices."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed

from tests.faults.accounts import Sums
from tests.faults.conftest import Scale
from tests.faults.report import tell_numbers
from tests.faults.scene import Scene
from tests.faults.source import Source, made_up
from tickcast.wire.errors import CloseCode

pytestmark = pytest.mark.faults

CUT_WITHIN_S: Final = 2.0
LATE_MS_MAX: Final = 50.0
RATE: Final = 200.0
_EMPTY_MASKED: Final = b"\x80\0\0\0\0"
"""Length and mask of an empty frame from a client (RFC 6455, section 5.2)."""
_TEXT_BEGINS: Final = b"\x01" + _EMPTY_MASKED
_FRAMES: Final = {
    "pings": b"\x89" + _EMPTY_MASKED,
    "empty fragments": b"\x00" + _EMPTY_MASKED,
}
_AHEAD_MAX_BYTES: Final = 1 << 20


async def flood(url: str, kind: str) -> float:
    """Send one kind of data endlessly; return how long the server tolerated it, in seconds."""
    clock = asyncio.get_running_loop().time
    async with open_websocket(url, compression=None, ping_interval=None) as socket:
        await socket.recv()
        began_s = clock()
        async with asyncio.timeout(10):
            with suppress(ConnectionClosed, ConnectionError):
                await (send_symbols(socket) if kind == "symbols" else send_frames(socket, kind))
            lasted_s = clock() - began_s
            await socket.wait_closed()
        # Its close frame can be lost: the kernel answers data that the server did not read with a
        # reset.
        assert socket.close_code in (CloseCode.RATE_LIMITED, CloseCode.ABNORMAL)
    return lasted_s


async def send_symbols(socket: ClientConnection) -> None:
    message = json.dumps({"action": "subscribe", "trades": [f"S{n}" for n in range(1000)]})
    while True:
        await socket.send(message)


async def send_frames(socket: ClientConnection, kind: str) -> None:
    if kind == "empty fragments":
        socket.transport.write(_TEXT_BEGINS)
    while not socket.transport.is_closing():
        if socket.transport.get_write_buffer_size() < _AHEAD_MAX_BYTES:
            socket.transport.write(_FRAMES[kind] * 2000)
        await asyncio.sleep(0)


async def test_floods(directory: Path, scale: Scale) -> None:
    size, rounds = scale.pick((20, 1), (100, 5))
    async with Scene(directory) as scene:
        store = await scene.valkey()
        server = await scene.server(store.url)
        crowd = await scene.crowd(server.stream(), "ES", size)
        publisher = await scene.publisher(store.url)
        source = scene.start(Source(publisher, made_up(["ES"]), RATE))
        await scene.flowing(source, int(RATE) // 2)
        await crowd.ask("measure")
        longest_s: dict[str, float] = {}
        for kind in (*_FRAMES, "symbols"):
            longest_s[kind] = max([await flood(server.stream(), kind) for _ in range(rounds)])
        source.stop()
        await scene.until(lambda: source.ended, 5, "all is published")
        seen = await crowd.ask("end", id=source.offered)
        sums = Sums(**seen.pop("sums"))
        cut = {f"{kind}_cut_after_s": seconds for kind, seconds in longest_s.items()}
        numbers = {"clients": size, "published": source.offered, **asdict(sums), **seen, **cut}
        tell_numbers("floods", numbers)
        assert sums == Sums(delivered=source.offered * size)
        assert max(longest_s.values()) < scale.pick(8.0, CUT_WITHIN_S)
        assert seen["measured"] > 0
        assert not scale.long or seen["p99_ms"] < LATE_MS_MAX
