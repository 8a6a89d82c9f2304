"""Redis goes away and comes back while clients stay connected."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.builders import trade, trades
from tests.conftest import running_server, until
from tests.talk import talking
from tests.tickcast.broker.test_embedded import supervisor_of
from tickcast.broker import keys
from tickcast.broker.client import make_client
from tickcast.broker.embedded import provided_store
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.wire.errors import BrokerUnavailable
from tickcast.wire.ticks import StreamKey


@pytest.fixture
async def redis_url(settings: Settings) -> AsyncIterator[str]:
    """The URL of a store that a test can kill."""
    async with provided_store(settings) as url:
        yield url


async def status(url: str) -> int:
    async with httpx.AsyncClient() as client:
        return (await client.get(url)).status_code


async def until_status(url: str, code: int) -> None:
    async with asyncio.timeout(15):
        while await status(url) != code:
            await asyncio.sleep(0.05)


async def test_clients_stay_while_the_store_is_replaced(settings: Settings, redis_url: str) -> None:
    other = Settings(runtime_dir=f"{settings.runtime_dir}2")
    store = provided_store(other)
    url = await store.__aenter__()
    async with running_server(other, url) as server, talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["ES", "E*"])
        assert await status(server.http + "/ready") == 200
        await store.__aexit__(None, None, None)
        await until_status(server.http + "/ready", 503)
        assert await status(server.http + "/health") == 200
        assert await status(server.http + "/symbols") == 503
        assert (await talk.ask(action="ping"))["T"] == "pong"
        assert (await talk.ask(action="list"))["trades"] == ["E*", "ES"]
        error = await talk.ask(action="subscribe", trades=["NEW"], id=1)
        assert (error["code"], error["id"]) == (503, 1)
        assert error["msg"].startswith("broker unavailable")
        async with provided_store(other):
            await until_status(server.http + "/ready", 200)
            client = make_client(url)
            async with FeedPublisher(client, "live", other) as publisher:
                await publisher.publish(trades(3, "ES"))
                await publisher.publish([trade("EXTRA")])
            ticks = await talk.ticks(4)
            assert {(tick["S"], tick["seq"]) for tick in ticks} == {
                ("ES", 1), ("ES", 2), ("ES", 3), ("EXTRA", 1),
            }  # fmt: skip
            assert (await talk.ask(action="subscribe", trades=["NEW"]))["T"] == "subscription"
            await client.aclose()
    del redis_url


async def test_what_was_published_during_a_cut_comes_from_history(
    settings: Settings, redis_url: str, redis: Any, publisher: FeedPublisher
) -> None:
    async with running_server(settings, redis_url) as server, talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["*", "ES"])
        await publisher.publish(trades(10))
        assert [tick["seq"] for tick in await talk.ticks(10)] == list(range(1, 11))
        seen = 10
        for _ in range(3):
            await redis.client_kill_filter(_type="pubsub")
            for size in (3, 700):
                await publisher.publish(trades(size))
                await publisher.flush()
                await asyncio.sleep(0)
                expected = list(range(seen + 1, seen + size + 1))
                assert [tick["seq"] for tick in await talk.ticks(size)] == expected
                seen += size
        await redis.client_kill_filter(_type="pubsub")
        await publisher.publish(trades(5, "NEW"))
        assert [tick["seq"] for tick in await talk.ticks(5)] == [1, 2, 3, 4, 5]


async def test_a_store_that_falls_silent_is_noticed(
    settings: Settings, redis_url: str, redis: Any, publisher: FeedPublisher
) -> None:
    pid = (await redis.info("server"))["process_id"]
    async with running_server(settings, redis_url) as server, talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["ES"])
        await talk.ask(action="configure", heartbeat_ms=200)
        upstream = server.app_state["engine"].upstream
        os.kill(pid, signal.SIGSTOP)
        stopped_s = time.monotonic()
        try:
            async with asyncio.timeout(4):
                while (beat := await talk.hear())["lag_ms"] == 0:
                    pass
            # It may have sent data up to a heartbeat before it was stopped.
            assert beat["lag_ms"] / 1000 - (time.monotonic() - stopped_s) < 0.6
            await talk.say(action="configure", heartbeat_ms=0)
            while (await talk.hear())["T"] != "configured":
                pass
            async with asyncio.timeout(4):
                assert await status(server.http + "/ready") == 503
                while upstream.subscriber.connected:
                    await asyncio.sleep(0.02)
            assert (await talk.ask(action="ping"))["T"] == "pong"
        finally:
            os.kill(pid, signal.SIGCONT)
        await until_status(server.http + "/ready", 200)
        await publisher.publish(trades(3))
        assert [tick["seq"] for tick in await talk.ticks(3)] == [1, 2, 3]


async def test_a_store_that_is_killed_with_its_supervisor_comes_back(
    settings: Settings, redis_url: str, publisher: FeedPublisher, runtime_dir: Path
) -> None:
    await publisher.publish(trades(3))
    await publisher.flush()
    async with running_server(settings, redis_url) as server, talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["ES"], start=0)
        assert [tick["seq"] for tick in await talk.ticks(3)] == [1, 2, 3]
        os.kill(supervisor_of(runtime_dir), signal.SIGKILL)
        await until_status(server.http + "/ready", 503)
        await until_status(server.http + "/ready", 200)
        gap = await talk.hear()
        assert (gap["T"], gap["reason"]) == ("gap", "epoch")
        await publisher.publish(trades(2))
        assert [tick["seq"] for tick in await talk.ticks(2)] == [1, 2]


async def test_a_server_may_start_before_its_redis(settings: Settings) -> None:
    async with provided_store(settings) as url:
        pass
    async with running_server(settings, url) as server, talking(server.stream) as talk:
        assert await status(server.http + "/ready") == 503
        assert (await talk.ask(action="subscribe", trades=["A"]))["code"] == 503
        async with provided_store(settings):
            await until_status(server.http + "/ready", 200)
            assert (await talk.ask(action="subscribe", trades=["A"]))["T"] == "subscription"


async def test_a_new_stream_that_cannot_be_opened_is_left_out(
    settings: Settings, redis_url: str, redis: Any, publisher: FeedPublisher,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    bad = StreamKey("live", "trades", "BAD")
    epoch = await Store(redis).epoch("live", keep=True)
    await redis.hset(keys.meta(bad), mapping={"epoch": epoch, "seq": "1"})
    await redis.set(keys.history(bad), "no history")
    async with running_server(settings, redis_url) as server, talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["*"])
        await redis.publish(keys.announcements("live"), "trades/BAD")
        await publisher.publish([trade("A"), trade("B")])
        assert {tick["S"] for tick in await talk.ticks(2)} == {"A", "B"}
        await until(lambda: "left out the new stream" in caplog.text)
        await publisher.publish([trade("C")])
        assert [tick["S"] for tick in await talk.ticks(1)] == ["C"]


async def test_garbage_in_a_channel_is_ignored(
    settings: Settings, redis_url: str, redis: Any, publisher: FeedPublisher,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async with running_server(settings, redis_url) as server, talking(server.stream) as talk:
        await talk.ask(action="subscribe", trades=["*", "ES"])
        for garbage in (b"", b"\xff", b"x 1 2\n\x90", b"x one 2\n\x90", b"x 1 2\n\xc1"):
            await redis.publish("tickcast:{live/trades/ES}:ticks", garbage)
            await redis.publish("tickcast:{live}:announcements", garbage)
        await publisher.publish(trades(2))
        assert [tick["seq"] for tick in await talk.ticks(2)] == [1, 2]
    assert "ignored a message" in caplog.text
    assert "Traceback" not in caplog.text


async def test_publishing_without_a_store_fails_at_once(settings: Settings) -> None:
    client = make_client(f"unix://{settings.runtime_dir}/store.sock")
    with pytest.raises(BrokerUnavailable):
        async with FeedPublisher(client, "live", settings):
            pass
    await client.aclose()
