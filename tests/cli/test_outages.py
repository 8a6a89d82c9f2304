"""What the publishing commands print and do when Redis goes away."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from producers.simulation.synthetic import symbol_names
from tests.cli.conftest import Cli
from tests.tickcast.broker.stores import OwnStore, own_store
from tickcast.broker import keys
from tickcast.broker.client import make_client
from tickcast.broker.store import Store
from tickcast.wire.ticks import StreamKey


@pytest.fixture
async def store(runtime_dir: Path) -> AsyncIterator[OwnStore]:
    async with own_store(runtime_dir) as store:
        yield store


async def line_of(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    async with asyncio.timeout(10):
        return (await process.stderr.readline()).decode()


async def test_publish_from_a_pipe_waits_for_redis(cli: Cli, store: OwnStore) -> None:
    cli.environment["TICKCAST_OUTAGE_BUFFER_S"] = "0"
    process = await cli.start("publish", "--redis", store.url, stdin=subprocess.PIPE)
    assert process.stdin is not None
    tick = b'{"T":"t","S":"A","p":1,"s":1}\n'
    async with make_client(store.url) as client:
        process.stdin.write(tick)
        await until_published(client, "A")
        store.kill()
        process.stdin.write(2 * tick)
        away = await line_of(process)
        assert away.startswith("tickcast: Redis is away, no answer from Redis: ")
        assert away.endswith("; trying again\n")
        process.stdin.write(3 * tick)
        process.stdin.close()
        await store.start()
        back = await line_of(process)
        assert back.startswith("tickcast: Redis is back after ")
        assert back.endswith(" waiting ticks, none were dropped\n")
        assert await line_of(process) == "published 6 ticks\n"
        assert await process.wait() == 0
        (head,) = await Store(client).heads([StreamKey("live", "trades", "A")])
        assert head.seq == 6


async def until_published(client: Redis, symbol: str) -> None:
    store = Store(client)
    async with asyncio.timeout(20):
        while not (await store.heads([StreamKey("live", "trades", symbol)]))[0].seq:
            await asyncio.sleep(0.01)


async def test_synth_continues_and_reports_dropped_ticks(cli: Cli, store: OwnStore) -> None:
    cli.environment["TICKCAST_OUTAGE_BUFFER_S"] = "0"
    process = await cli.start(*"synth --symbols 30 --rate 10000 --redis".split(), store.url)
    assert (await line_of(process)).startswith("publishing 30 symbols at 10000 ticks/s")
    async with make_client(store.url) as client:
        await until_published(client, symbol_names(1)[0])
    store.kill()
    assert (await line_of(process)).startswith("tickcast: Redis is away, ")
    await store.start()
    back = await line_of(process)
    assert " were dropped: " in back
    assert back.endswith(" more streams\n")
    process.send_signal(signal.SIGINT)
    out, err = await asyncio.wait_for(process.communicate(), 10)
    assert process.returncode == 1
    *streams, rest, total = err.decode().splitlines()
    assert len(streams) == 20
    assert all(line.startswith("tickcast: dropped ") for line in streams)
    assert rest.startswith("tickcast: dropped ")
    assert rest.endswith(" more streams")
    match = re.fullmatch(
        r"tickcast: accepted (\S+) ticks: (\S+) published, (\S+) dropped, (\S+) in doubt \(.*\)",
        total,
    )
    assert match is not None, total
    accepted, *outcomes = (int(each.replace(",", "")) for each in match.groups())
    assert accepted == sum(outcomes)
    assert out == b""


async def test_failed_publish_accounts_for_every_tick(cli: Cli, store: OwnStore) -> None:
    process = await cli.start("publish", "--redis", store.url, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b'{"T":"t","S":"A","p":1,"s":1}\n')
    async with make_client(store.url) as client:
        await until_published(client, "A")
        await client.set(keys.meta(StreamKey("live", "trades", "B")), "not a hash")
    out, err = await asyncio.wait_for(
        process.communicate(b'{"T":"t","S":"B","p":1,"s":1}\n' * 3), 20
    )
    dropped, end = err.decode().splitlines()
    assert dropped.startswith("tickcast: dropped 3 of trades/B, ")
    assert end.startswith("tickcast: Redis can't do that: WRONGTYPE ")
    assert end.endswith(
        "; accepted 4 ticks: 1 published, 3 dropped, 0 in doubt (sent, not confirmed)"
    )
    assert (process.returncode, out) == (1, b"")
