"""Refused messages cost almost nothing: floods of messages, observed inside the server."""

from __future__ import annotations

import asyncio
import contextlib
import socket as sockets
from collections import Counter
from typing import Any

import msgspec
import pytest
from websockets.protocol import Event, Side
from websockets.protocol import Protocol as FrameParser

from tests.conftest import RunningServer, running_server, until
from tests.talk import talking
from tests.wire import TEXT, frame, handshake, wired
from tickcast.settings import Settings
from tickcast.wire.parsing import parse_action

STRICT: Any = {"unlimited_addresses": (), "attempts": "1000/second"}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count parsed messages and frames."""
    counts: Counter[str] = Counter()
    events = FrameParser.events_received

    def counting(message: str | bytes, entries_max: int | None = None) -> object:
        counts["messages"] += 1
        return parse_action(message, entries_max)

    def counting_events(self: FrameParser) -> list[Event]:
        found = events(self)
        counts["frames"] += len(found) if self.side is Side.SERVER else 0
        return found

    monkeypatch.setattr("feed.access.action_policy.parse_action", counting)
    monkeypatch.setattr(FrameParser, "events_received", counting_events)
    return counts


async def flood(server: RunningServer, piece: bytes, pieces: int) -> float:
    """Send data until the server ends the connection; return how long that took, in seconds."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    host, port = server.http.removeprefix("http://").split(":")
    with contextlib.closing(sockets.socket()) as raw:
        raw.setblocking(False)
        await loop.sock_connect(raw, (host, int(port)))
        await loop.sock_sendall(raw, handshake())
        await loop.sock_recv(raw, 4096)
        with contextlib.suppress(OSError):
            for _ in range(pieces):
                await loop.sock_sendall(raw, piece)
            while await loop.sock_recv(raw, 65536):
                pass
    return loop.time() - began_s


FLOODS = {
    "pings": b'{"action":"ping"}',
    "text": b"x",
    "deep": b"[" * 60_000,
    "numbers": b'{"action":"ping","id":' + b"9" * 60_000 + b"}",
    "large": b'{"action":"subscribe","trades":["' + b"A" * 65_000 + b'"]}',
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_data_after_the_cut_is_not_parsed(
    settings: Settings, redis_url: str, parsed: Counter[str], kind: str
) -> None:
    plain = Settings(runtime_dir=settings.runtime_dir)
    piece = frame(TEXT, FLOODS[kind])
    copies = max(1, 60_000 // len(piece))
    async with running_server(plain, redis_url) as server, asyncio.timeout(20):
        lasted_s = await flood(server, piece * copies, max(50, 5000 // copies))
        assert server.app_state["engine"].hub.counters.closed[4101] == 1
    # The client earns more messages while it floods, which takes long on a busy machine.
    assert parsed["messages"] <= 25 + lasted_s * plain.messages_per_s
    assert parsed["frames"] < 300 + lasted_s * plain.frames_per_s


async def test_a_cut_client_gets_the_reason(settings: Settings, redis_url: str) -> None:
    plain = Settings(runtime_dir=settings.runtime_dir)
    async with running_server(plain, redis_url) as server, wired(server.ws) as wire:
        await wire.say(handshake())
        await wire.answer()
        await wire.say(frame(TEXT, b'{"action":"ping","id":1}') * 60)
        said = [payload for _, payload in await wire.rest()]
        assert said[-2].startswith(b'[{"T":"error","code":429,"msg":"rate limited')
        assert int.from_bytes(said[-1][:2], "big") == 4101
        # The client can retry the refused actions, because the errors identify them.
        refused = [each for each in said if b'"code":429' in each and b'"id":1' in each]
        assert len(refused) >= 10


async def test_a_message_that_is_refused_for_its_price_costs_nothing(
    settings: Settings, redis_url: str
) -> None:
    slow = Settings(runtime_dir=settings.runtime_dir, messages_per_s=0.01, messages_burst=3)
    symbols = [f"S{number}" for number in range(150)]
    async with running_server(slow, redis_url) as server, talking(server.stream) as talk:
        asked = {"action": "subscribe", "trades": symbols}  # It costs 2.5.
        assert (await talk.ask(**asked, id=1))["T"] == "subscription"
        # Charging for the refused messages would use up the rest.
        for id_ in (2, 3):
            refused = await talk.ask(**asked, id=id_)
            assert (refused["code"], refused["id"]) == (429, id_)


async def test_an_address_has_one_allowance_for_all_its_connections(
    settings: Settings, redis_url: str
) -> None:
    strict = Settings(runtime_dir=settings.runtime_dir, address_bytes_per_s=64 * 1024, **STRICT)
    strict = msgspec.structs.replace(strict, messages_per_s=1e6, messages_burst=1_000_000)
    piece = frame(TEXT, b"x" * 30_000)
    async with running_server(strict, redis_url) as server, asyncio.timeout(20):
        lasted = await asyncio.gather(*(flood(server, piece, 100) for _ in range(4)))
        assert max(lasted) < 5
        counters = server.app_state["engine"].hub.counters
        assert counters.closed[4101] == 4


async def test_an_address_that_keeps_flooding_is_shut_out(
    settings: Settings, redis_url: str
) -> None:
    strict = Settings(runtime_dir=settings.runtime_dir, shut_out_s=2, **STRICT)
    async with running_server(strict, redis_url) as server, asyncio.timeout(20):
        refused = server.app_state["engine"].hub.counters.refused
        await asyncio.gather(*(flood(server, frame(TEXT, b"x") * 1000, 10) for _ in range(6)))
        handshakes = server.app_state["engine"].hub.counters.connections
        async with wired(server.ws) as wire:
            await wire.say(handshake())
            status, headers = await wire.answer()
        assert (status, headers["retry-after"]) in ((429, "1"), (429, "2"))
        assert refused["shut_out"] == 1
        assert server.app_state["engine"].hub.counters.connections == handshakes
        await asyncio.sleep(float(headers["retry-after"]))
        async with talking(server.stream) as talk:
            assert (await talk.ask(action="ping"))["T"] == "pong"


async def test_addresses_of_this_machine_are_never_shut_out(
    settings: Settings, redis_url: str
) -> None:
    """Shutting out one client would shut out all clients of a proxy that is not configured."""
    plain = Settings(runtime_dir=settings.runtime_dir)
    async with running_server(plain, redis_url) as server, asyncio.timeout(20):
        await asyncio.gather(*(flood(server, frame(TEXT, b"x") * 1000, 10) for _ in range(8)))
        async with talking(server.stream) as talk:
            assert (await talk.ask(action="ping"))["T"] == "pong"
        await until(lambda: not server.app_state["engine"].sessions)
