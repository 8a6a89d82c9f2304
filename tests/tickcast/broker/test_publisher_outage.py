"""Redis goes away during publishing: each tick is published once, or reported as lost."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.builders import T0
from tests.conftest import until
from tests.tickcast.broker.stores import ES, OwnStore, Proxy, ids_in, numbered, own_store, until_seq
from tickcast.broker import connection as pipe
from tickcast.broker import keys
from tickcast.broker.client import make_client
from tickcast.broker.publish_buffer import (
    BATCH_TICKS_MAX,
    TICK_BYTES,
    WAITING_TICKS_MAX,
    DroppedTicks,
)
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.wire.errors import BrokerUnavailable
from tickcast.wire.ticks import StreamKey
from tickcast.wire.times import Time

NQ = StreamKey("live", "trades", "NQ")


async def publish_forever(publisher: FeedPublisher, taken: list[int]) -> None:
    while True:
        taken.append(len(taken))
        await publisher.publish(numbered(taken[-1]))
        await asyncio.sleep(0.001)


async def test_a_killed_store_returns_with_its_data(
    store: OwnStore, client: Redis, settings: Settings
) -> None:
    taken: list[int] = []
    async with FeedPublisher(client, "live", settings, waits=True) as publisher:
        epoch = await Store(client).epoch("live")
        work = asyncio.create_task(publish_forever(publisher, taken))
        for enough in (100, 200, 300):
            await until(lambda: publisher.published > enough)  # noqa: B023
            store.kill()
            await until(lambda: publisher.is_away)
            await store.start()
            await until(lambda: not publisher.is_away)
        work.cancel()
    assert await ids_in(client) == taken
    assert await Store(client).epoch("live") == epoch
    assert publisher.published == len(taken)
    assert (publisher.dropped_ticks, publisher.in_doubt) == (0, 0)


async def test_a_killed_store_returns_without_its_data(
    store: OwnStore, client: Redis, settings: Settings
) -> None:
    async with FeedPublisher(client, "live", settings, waits=True) as publisher:
        await publisher.publish(numbered(1, 2, 3))
        await publisher.flush()
        before = await Store(client).epoch("live")
        store.kill()
        store.lose_data()
        await publisher.publish(numbered(4))
        await until(lambda: publisher.is_away)
        await store.start()
        await publisher.publish(numbered(5))
    assert await ids_in(client) == [4, 5]
    (head,) = await Store(client).heads([ES])
    assert head.epoch == await Store(client).epoch("live") > before
    assert await Store(client).streams("live") == {ES}
    assert publisher.published == 5


async def test_a_lost_answer_publishes_nothing_twice(
    proxy: Proxy, client: Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tickcast.publisher")
    announced = client.pubsub()
    await announced.subscribe(keys.announcements("live"))
    await announced.get_message(timeout=5)
    async with (
        make_client(proxy.url) as through_proxy,
        FeedPublisher(through_proxy, "live", settings) as publisher,
    ):
        await publisher.publish(numbered(0, symbol="NQ"))
        await publisher.flush()
        proxy.loses_answers = True
        await publisher.publish(numbered(1, 2, 3))
        await until_seq(client, 3)
        await publisher.publish(numbered(4))
        assert publisher.published == 1
        proxy.loses_answers = False
        proxy.cut()
        await publisher.flush()
        assert publisher.published == 5
    assert await ids_in(client) == [1, 2, 3, 4]
    told = [await announced.get_message(timeout=0.1) for _ in range(3)]
    assert [each and each["data"] for each in told] == [b"trades/NQ", b"trades/ES", None]
    await announced.aclose()  # type: ignore[no-untyped-call]
    away, back = caplog.messages
    assert away == "Redis is away, no answer from Redis: connection closed; trying again"
    assert back.startswith("Redis is back after 0.")
    assert back.endswith(" s: sending 4 waiting ticks, none were dropped")


async def test_a_silent_store_counts_as_away(
    store: OwnStore, client: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe, "COMMAND_TIMEOUT_S", 0.2)
    async with FeedPublisher(client, "live", settings) as publisher:
        await publisher.publish(numbered(1))
        await publisher.flush()
        store.signal(signal.SIGSTOP)
        await publisher.publish(numbered(2))
        await until(lambda: publisher.is_away)
        await publisher.publish(numbered(3))
        # Redis now executes what was sent while it was stopped, and what is sent again.
        store.signal(signal.SIGCONT)
    assert await ids_in(client) == [1, 2, 3]
    assert publisher.published == 3


@pytest.mark.parametrize("serves_stale_data", ["yes", "no"])
async def test_a_primary_that_becomes_a_replica_is_left(
    store: OwnStore,
    client: Redis,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    serves_stale_data: str,
) -> None:
    async with FeedPublisher(client, "live", settings) as publisher:
        await publisher.publish(numbered(1))
        await publisher.flush()
        before = await connections(client)
        await client.config_set("replica-serve-stale-data", serves_stale_data)
        await replicate(client, "127.0.0.1", "1")
        await publisher.publish(numbered(2))
        await until(lambda: publisher.is_away)
        kind = "READONLY" if serves_stale_data == "yes" else "MASTERDOWN"
        assert f"no service from Redis: {kind} " in caplog.text
        # Use separate connections, because the publisher closes those of its client.
        async with make_client(store.url) as own:
            with pytest.raises(BrokerUnavailable, match="no service from Redis"):
                await FeedPublisher(own, "live", settings).__aenter__()
        await replicate(client, "NO", "ONE")
        await publisher.flush()
        assert not before & await connections(client)
    assert await ids_in(client) == [1, 2]


async def _no_replicas(client: Redis, directory: Path) -> None:
    await client.config_set("min-replicas-to-write", 1)


async def _full(client: Redis, directory: Path) -> None:
    await client.config_set("maxmemory", 1)


async def _failed_to_save(client: Redis, directory: Path) -> None:
    # The snapshot is renamed into place, and a rename can't replace a directory.
    (directory / "dump.rdb").mkdir()
    await client.config_set("save", "3600 1")
    await client.bgsave()
    async with asyncio.timeout(5):
        while (await client.info("persistence"))["rdb_last_bgsave_status"] == "ok":
            await asyncio.sleep(0.01)


async def _busy(client: Redis, directory: Path) -> None:
    await client.config_set("busy-reply-threshold", 10)
    with suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await client.eval("while true do end", 0)


async def _recover(client: Redis, kind: str) -> None:
    if kind == "BUSY":
        await client.script_kill()
    settings = {"NOREPLICAS": ("min-replicas-to-write", 0), "OOM": ("maxmemory", 0)}
    if kind in settings:
        await client.config_set(*settings[kind])
    elif kind == "MISCONF":
        await client.config_set("save", "")


_REFUSE = {"NOREPLICAS": _no_replicas, "OOM": _full, "MISCONF": _failed_to_save, "BUSY": _busy}


@pytest.mark.parametrize("kind", _REFUSE)
async def test_temporary_errors_are_retried(
    store: OwnStore,
    client: Redis,
    settings: Settings,
    runtime_dir: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    async with FeedPublisher(client, "live", settings) as publisher:
        await publisher.publish(numbered(1))
        await publisher.flush()
        async with make_client(store.url) as other:
            await _REFUSE[kind](other, runtime_dir)
        await publisher.publish([*numbered(2), *numbered(3, symbol="NQ")])
        await until(lambda: publisher.is_away)
        assert f"no service from Redis: {kind} " in caplog.text
        await publisher.publish(numbered(4))
        async with make_client(store.url) as other:
            await _recover(other, kind)
        await publisher.flush()
    assert await ids_in(client) == [1, 2, 4]
    assert (publisher.accepted, publisher.published) == (4, 4)
    assert (publisher.dropped_ticks, publisher.in_doubt) == (0, 0)


async def test_another_redis_takes_over(
    store: OwnStore, client: Redis, settings: Settings, runtime_dir: Path
) -> None:
    address = runtime_dir / "address"
    address.symlink_to(runtime_dir / "socket")
    async with (
        own_store(runtime_dir / "other") as other,
        make_client(other.url) as at_other,
        make_client(f"unix://{address}") as by_address,
        FeedPublisher(by_address, "live", settings) as publisher,
    ):
        await publisher.publish(numbered(1))
        await publisher.flush()
        before = await Store(client).epoch("live")
        address.unlink()
        address.symlink_to(runtime_dir / "other" / "socket")
        # The old store still exists and answers.
        await replicate(client, "127.0.0.1", "1")
        await publisher.publish(numbered(2))
        async with asyncio.timeout(10):
            await publisher.flush()
        assert await ids_in(at_other) == [2]
        assert await Store(at_other).epoch("live") > before


async def connections(client: Redis) -> set[str]:
    """Return the ids of the connections that publish; there is at least one."""
    listed: Any = await client.client_list()
    found = {each["id"] for each in listed if each["cmd"] in ("eval", "evalsha")}
    assert found
    return found


async def replicate(client: Redis, *whom: str) -> None:
    await client.execute_command("REPLICAOF", *whom)  # type: ignore[no-untyped-call]


async def test_a_live_source_loses_its_oldest_ticks_beyond_the_limits(
    store: OwnStore, client: Redis, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    small = Settings(runtime_dir=settings.runtime_dir, outage_buffer_bytes=64 * 1024)
    kept = 64 * 1024 // TICK_BYTES
    async with FeedPublisher(client, "live", small) as publisher:
        await publisher.publish(numbered(0))
        await publisher.flush()
        store.kill()
        await publisher.publish(numbered(1))
        await until(lambda: publisher.is_away)
        await publisher.publish(numbered(2, 3, symbol="NQ"))
        # More than would be buffered if Redis were up.
        for start in range(4, 30_004, 100):
            await publisher.publish(numbered(*range(start, start + 100)))
        first = 30_004 - kept
        assert publisher.dropped == {
            NQ: DroppedTicks(2, Time(T0 + 2), Time(T0 + 3)),
            ES: DroppedTicks(first - 4, Time(T0 + 4), Time(T0 + first - 1)),
        }
        assert publisher.dropped_ticks == first - 2
        await store.start()
        await publisher.flush()
        assert not publisher.is_away
        await publisher.publish(numbered(30_004))
    assert await ids_in(client) == [0, 1, *range(first, 30_005)]
    assert await ids_in(client, NQ) == []
    assert publisher.published + publisher.dropped_ticks == 30_005
    assert f"{first - 2:,} were dropped: {first - 4:,} of trades/ES, 2 of trades/NQ" in caplog.text


async def test_ticks_age_while_the_source_is_quiet(
    store: OwnStore, client: Redis, settings: Settings
) -> None:
    hasty = Settings(runtime_dir=settings.runtime_dir, outage_buffer_s=0.2)
    async with FeedPublisher(client, "live", hasty) as publisher:
        store.kill()
        await publisher.publish(numbered(1))
        await until(lambda: publisher.is_away)
        await publisher.publish(numbered(2, 3))
        await until(lambda: publisher.dropped_ticks == 2)
        await publisher.publish(numbered(4))
        await until(lambda: publisher.dropped_ticks == 3)
        assert publisher.dropped == {ES: DroppedTicks(3, Time(T0 + 2), Time(T0 + 4))}
        await store.start()
    assert await ids_in(client) == [1]


async def test_a_source_that_can_wait_is_blocked(
    store: OwnStore, client: Redis, settings: Settings
) -> None:
    strict = Settings(
        runtime_dir=settings.runtime_dir, outage_buffer_s=0, outage_buffer_bytes=64 * 1024,
        history_ticks=100_000,
    )  # fmt: skip
    count = WAITING_TICKS_MAX + 2_000
    async with FeedPublisher(client, "live", strict, waits=True) as publisher:

        async def publish() -> None:
            for start in range(0, count, 500):
                await publisher.publish(numbered(*range(start, start + 500)))

        store.kill()
        work = asyncio.create_task(publish())
        await until(lambda: publisher.is_away)
        assert publisher._buffer.count >= WAITING_TICKS_MAX - BATCH_TICKS_MAX
        assert not work.done()
        await store.start()
        await work
    assert await ids_in(client) == [*range(count)]
    assert publisher.dropped_ticks == 0
