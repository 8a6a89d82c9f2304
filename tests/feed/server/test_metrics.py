"""`GET /metrics` of a real server."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from feed.server.sockets import address_of, bind
from tests.builders import trades
from tests.conftest import RunningServer, running_server, until
from tests.talk import talking
from tickcast.broker.publisher import FeedPublisher
from tickcast.settings import Settings


async def read(server: RunningServer) -> dict[str, float]:
    """Return all samples, by name and labels."""
    async with httpx.AsyncClient(base_url=server.http) as http:
        reply = await http.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


async def test_every_supervised_task_is_documented(server: RunningServer) -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
    (row,) = (line for line in page.read_text("utf-8").splitlines() if "task_restarts" in line)
    labels = set(re.findall(r"`([a-z_]+)`", row.split("|")[3])) - {"task"}
    assert labels == set(server.app_state["engine"].tasks.restarts)


async def test_refused_connections_are_counted(settings: Settings, redis_url: str) -> None:
    quick = replace(settings, handshake_timeout_s=0.1)
    async with running_server(quick, redis_url) as server:
        address = httpx.URL(server.http)
        for words in (b"", b"GET /health HTTP/1.1\r\n", b"nonsense\r\n\r\n"):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(words)
            await reader.read()
            writer.close()
        found = await read(server)
    assert found["tickcast_refused_total stalled"] == 2
    assert found["tickcast_refused_total malformed"] == 1


async def test_ticks_and_bytes_are_counted(server: RunningServer, publisher: FeedPublisher) -> None:
    empty = await read(server)
    assert empty["tickcast_redis_up"] == 1
    assert empty["tickcast_connections json"] == empty["tickcast_ticks_in_total"] == 0
    async with (
        talking(server.stream) as all_of_it,
        talking(server.stream, subprotocols=["tickcast.v1.msgpack"]) as some,
    ):
        await all_of_it.ask(action="subscribe", trades=["ES", "NQ"])
        await some.ask(action="subscribe", trades=["ES"], conflate_ms=60_000)
        await publisher.publish(trades(10, "ES"))
        await publisher.flush()
        await all_of_it.ticks(10)
        await some.ticks(1)
        full = await read(server)
    assert full["tickcast_connections json"] == full["tickcast_connections msgpack"] == 1
    assert full["tickcast_subscriptions"] == 3
    assert full["tickcast_streams"] == full["tickcast_subscriber_groups"] == 2
    assert full["tickcast_ticks_in_total"] == 10
    assert full["tickcast_ticks_out_total"] == 11
    assert full["tickcast_ticks_merged_total conflate_ms"] == 9
    assert full["tickcast_frames_out_total"] >= 2
    assert full["tickcast_bytes_out_total"] > 11 * 50
    assert full["tickcast_lag_seconds_count"] == 10
    assert 0 < full["tickcast_lag_seconds_sum"] < 10
    assert full["tickcast_lag_seconds_bucket +Inf"] == 10
    assert full["tickcast_flush_ticks_sum"] == 10
    assert full["tickcast_flush_seconds_count"] >= 1
    assert full["tickcast_slow_clients"] == full["tickcast_ticks_skipped_total"] == 0
    counters = server.app_state["engine"].hub.counters
    await until(lambda: sum(counters.closed.values()) == 2)
    after = await read(server)
    assert after["tickcast_connections json"] == after["tickcast_outbox_bytes"] == 0
    assert after["tickcast_connections_closed_total 1000"] == 2
    assert after["tickcast_connections_opened_total"] == 2


TOKEN = "correct-horse~battery+staple/1.2=="


@pytest.mark.parametrize("apart", [False, True])
async def test_the_metrics_token_is_required_on_both_addresses(
    settings: Settings, redis_url: str, caplog: pytest.LogCaptureFixture, apart: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    guarded = replace(settings, metrics_token=TOKEN)
    with bind("127.0.0.1", 0) as listener:
        other = listener if apart else None
        async with running_server(guarded, redis_url, metrics_listener=other) as server:
            url = (address_of(listener) if apart else server.http) + "/metrics"
            async with httpx.AsyncClient() as http:
                for authorization in ("", "Bearer", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}",
                                      f"Bearer {TOKEN}x", TOKEN, f"Bearer {TOKEN}, {TOKEN}",
                                      "Bearer \xff"):  # fmt: skip
                    words = [(b"Authorization", authorization.encode("latin-1"))]
                    reply = await http.get(url, headers=words)
                    assert reply.status_code == 401
                    assert reply.headers["www-authenticate"] == 'Bearer realm="metrics"'
                    assert "tickcast_" not in reply.text
                    assert reply.headers["x-content-type-options"] == "nosniff"
                assert (await http.get(url)).status_code == 401
                assert (await http.get(url, params={"token": TOKEN})).status_code == 401
                for scheme in ("Bearer", "bearer"):
                    reply = await http.get(url, headers={"Authorization": f"{scheme} {TOKEN}"})
                    assert reply.status_code == 200
                    assert "tickcast_redis_up 1.0" in reply.text
                assert (await http.get(server.http + "/health")).status_code == 200
    ours = [record.getMessage() for record in caplog.records if "http" not in record.name]
    assert ours
    assert all("staple" not in text for text in ours)


async def test_a_separate_metrics_address_serves_only_metrics(
    settings: Settings, redis_url: str
) -> None:
    with bind("127.0.0.1", 0) as listener:
        async with (
            running_server(settings, redis_url, metrics_listener=listener) as server,
            httpx.AsyncClient(base_url=address_of(listener)) as apart,
            httpx.AsyncClient(base_url=server.http) as beside,
            talking(server.stream),
        ):
            assert (await beside.get("/metrics")).status_code == 404
            reply = await apart.get("/metrics")
            assert reply.status_code == 200
            assert 'tickcast_connections{encoding="json"} 1.0' in reply.text
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["cache-control"] == "no-store"
            for path in ("/", "/health", "/symbols", "/stream", "/metrics/", "/static/page.js"):
                assert (await apart.get(path)).status_code == 404


async def test_the_metrics_port_has_the_same_limits(settings: Settings, redis_url: str) -> None:
    quick = replace(settings, handshake_timeout_s=2.0)
    with bind("127.0.0.1", 0) as listener:
        host, port = listener.getsockname()
        async with running_server(quick, redis_url, metrics_listener=listener):

            async def dialled(words: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(words)
                return reader, writer

            stalled = [await dialled(b"GET /metrics HTTP/1.1\r\nX: ") for _ in range(100)]
            # The oldest connections were closed, and a scraper is served while the others are open.
            async with httpx.AsyncClient(base_url=address_of(listener)) as scraper:
                assert (await scraper.get("/metrics")).status_code == 200
            ends = await asyncio.gather(
                *(reader.read() for reader, _ in stalled), return_exceptions=True
            )
            assert sum(isinstance(end, OSError) or not end for end in ends) >= 65
            assert all(b" 408 " in end for end in ends if isinstance(end, bytes) and end)

            reader, endless = await dialled(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
            endless.write(b"X: %b\r\n" % bytes(1000).replace(b"\0", b"x") * 20)
            assert b" 431 " in await reader.readline()
            reader, upgrade = await dialled(
                b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            assert b" 200 " in await reader.readline()
            for writer in (*(writer for _, writer in stalled), endless, upgrade):
                writer.close()
