"""`tickcast watch --audit` as a user runs it, without a terminal."""

from __future__ import annotations

import asyncio
import json
import signal
from asyncio.subprocess import Process

import pytest

from tests.cli.conftest import Cli
from tests.tickcast.client.scripted_server import Peer, ScriptedServer, scripted_server


async def watch(cli: Cli, double: ScriptedServer, *words: str) -> Process:
    return await cli.start(
        "watch", "ES", "--channels", "trades", "--audit", "--url", double.url, *words
    )


async def sound(peer: Peer) -> None:
    await peer.confirm(await peer.receive(), positions=[])
    await peer.send_ticks(1)
    await peer.send({"T": "gap", "ch": "trades", "S": "ES", "from": 2, "to": 4, "reason": "broker"})
    await peer.send_ticks(5)


async def faulty(peer: Peer) -> None:
    await peer.confirm(await peer.receive(), positions=[])
    await peer.send_ticks(1, 4, 4, 5)


@pytest.mark.parametrize("ending", ["limit", "interrupt", "close"])
async def test_audit_accounts_for_every_tick(cli: Cli, ending: str) -> None:
    async def script(peer: Peer) -> None:
        await sound(peer)
        if ending == "close":
            await peer.receive()
            await peer.close(4000)

    async with scripted_server(script) as double:
        process = await watch(cli, double, *(["--limit", "2"] if ending == "limit" else []))
        assert process.stdout is not None
        lines = [await process.stdout.readline() for _ in range(2)]
        assert [json.loads(line)["seq"] for line in lines] == [1, 5]
        if ending == "interrupt":
            process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 20)
        errors = err.decode().strip().splitlines()
        assert errors[:4] == [
            "tickcast: trades ES: 2 to 4 will not come (broker)",
            "tickcast: balanced, 1 stream, 0 reconnects",
            "tickcast: 5 published: 2 delivered, 0 merged, 0 skipped, 3 gapped",
            "tickcast: 0 missing, 0 repeated, 0 restarts, 0 snapshots",
        ]
        assert process.returncode == {"limit": 0, "interrupt": 130, "close": 1}[ending]


@pytest.mark.parametrize("ending", ["limit", "interrupt"])
async def test_missing_tick_fails_the_audit(cli: Cli, ending: str) -> None:
    async with scripted_server(faulty) as double:
        process = await watch(cli, double, *(["--limit", "3"] if ending == "limit" else []))
        assert process.stdout is not None
        lines = [await process.stdout.readline() for _ in range(3)]
        assert [json.loads(line)["seq"] for line in lines] == [1, 4, 5]
        if ending == "interrupt":
            process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 20)
        errors = err.decode().strip().splitlines()
        assert errors[:2] == [
            "tickcast: trades ES: 2 to 3 will not come (missing)",
            "tickcast: NOT BALANCED, 1 stream, 0 reconnects",
        ]
        assert errors[3] == "tickcast: 2 missing, 1 repeated, 0 restarts, 0 snapshots"
        assert errors[4] == "tickcast: some ticks are not accounted for"
        assert process.returncode == 1
