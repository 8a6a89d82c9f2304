"""Plans of clients and of what to publish."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.load.plan import Plan, draw_symbols, plan_clients, pool_names
from clients.load.publishing import PublishSchedule
from tickcast.wire.ticks import Trade, channel_of, validate
from tickcast.wire.times import Time

URL = "ws://127.0.0.1:8000/stream"


@given(
    st.integers(1, 300), st.integers(1, 7), st.floats(0, 1), st.booleans(),
)  # fmt: skip
def test_every_client_is_planned_once(count: int, processes: int, slow: float, churn: bool) -> None:
    plan = Plan(
        url=URL, connections=count, processes=processes, slow_share=slow, churn_per_s=float(churn)
    )
    found = [client for process in range(processes) for client in plan_clients(plan, process)]
    assert [client.number for client in found] == list(range(count))
    assert sum(client.slow for client in found) == pytest.approx(slow * count, abs=1)
    reading = [client for client in found if not client.slow]
    assert sum(client.churns for client in reading) <= len(reading) / 2


def test_symbols_are_drawn_by_the_seed() -> None:
    plan = Plan(url=URL, pool=pool_names("X", 100), symbols_per_connection=20, seed=3)
    assert draw_symbols(plan, 1) == draw_symbols(plan, 1)
    assert len({draw_symbols(plan, client) for client in range(10)}) == 10
    assert draw_symbols(plan, 1) != draw_symbols(plan, 1, generation=1)
    assert set(draw_symbols(plan, 1)) < set(plan.pool)
    assert plan.pool[7] == "X07"


def test_schedule_is_an_open_loop() -> None:
    streams = [("trades", "A"), ("quotes", "A"), ("bars:5s", "A"), ("bars", "B")]
    schedule = PublishSchedule(streams, rate=1000, burst=10, seed=1)
    assert [schedule.bursts_due(ns) for ns in (0, 9_999_999, 10_000_000, 10**9 - 1)] == [
        1, 1, 2, 100,
    ]  # fmt: skip
    seen = set()
    for burst in range(20):
        for tick in schedule.make(10**18, burst):
            validate(tick)
            assert tick.time == 10**18 + burst * 10_000_000
            seen.add((channel_of(tick), tick.symbol))
    assert seen == set(streams)
    closing = schedule.closing_ticks(Time(5))
    assert [(channel_of(tick), tick.symbol) for tick in closing] == streams
    assert isinstance(closing[0], Trade)
