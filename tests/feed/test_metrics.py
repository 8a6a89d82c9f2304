"""`GET /metrics` of a real server."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from feed.broker.publisher import Publisher
from tests.builders import trades
from tests.conftest import RunningServer, until
from tests.talk import talking


async def read(server: RunningServer) -> dict[str, float]:
    """All samples, by name and labels."""
    async with httpx.AsyncClient(base_url=server.http) as http:
        reply = await http.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


async def test_what_flows_is_counted(server: RunningServer, publisher: Publisher) -> None:
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
        await publisher.drain()
        await all_of_it.ticks(10)
        await some.ticks(1)
        full = await read(server)
    assert full["tickcast_connections json"] == full["tickcast_connections msgpack"] == 1
    assert full["tickcast_subscriptions"] == 3
    assert full["tickcast_streams"] == full["tickcast_audiences"] == 2
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
