"""Work on clients' requests, spread over the turns of the loop."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest

from feed.transport.loop_time import TurnBudget
from tests.conftest import until


class Client:
    """Work that takes a while, in pieces of a tenth of a millisecond."""

    def __init__(self, pieces: int) -> None:
        self.left = pieces
        self.slices_s: list[float] = []

    def work(self, deadline_s: float) -> bool:
        began_s = perf_counter()
        while self.left:
            self.left -= 1
            end_s = perf_counter() + 0.0001
            while perf_counter() < end_s:
                pass
            if perf_counter() >= deadline_s:
                break
        self.slices_s.append(perf_counter() - began_s)
        return self.left > 0


async def test_little_work_is_done_at_once() -> None:
    client = Client(1)
    assert not TurnBudget().run(client.work)
    assert not client.left


async def test_much_work_is_spread_over_turns_and_clients_take_turns() -> None:
    budget = TurnBudget(turn_s=0.002)
    clients = [Client(100) for _ in range(5)]
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while any(client.left for client in clients):
            turns += 1
            await asyncio.sleep(0)

    began_with = [budget.run(client.work) for client in clients]
    assert all(began_with)
    assert [len(client.slices_s) for client in clients] == [1, 0, 0, 0, 0]
    await count_turns()
    # 50 ms of work at 2 ms a turn. In a single turn, no other client would have been served.
    assert turns > 5
    assert all(len(client.slices_s) > 3 for client in clients)


async def test_failing_work_does_not_stop_other_work(caplog: pytest.LogCaptureFixture) -> None:
    budget = TurnBudget(turn_s=0.0005)

    def fail(deadline_s: float) -> bool:
        raise RuntimeError("a bug")

    first, last = Client(20), Client(20)
    assert budget.run(first.work)
    assert budget.run(fail)
    assert budget.run(last.work)
    await until(lambda: not (first.left or last.left))
    assert "a bug in the work on a client's messages" in caplog.text


async def test_only_a_few_start_in_one_turn() -> None:
    budget = TurnBudget(starts=4)
    started: list[int] = []
    per_turn: list[int] = []

    async def start(number: int) -> None:
        await budget.wait_for_start()
        started.append(number)

    tasks = [asyncio.create_task(start(number)) for number in range(40)]
    tasks[20].cancel()
    while not all(task.done() for task in tasks):
        before = len(started)
        await asyncio.sleep(0)
        per_turn.append(len(started) - before)
    assert sorted(started) == [number for number in range(40) if number != 20]
    assert max(per_turn) <= 8  # Clients that need not wait, and clients that had to.
    assert len([count for count in per_turn if count]) >= 5


async def test_urgent_requests_start_first() -> None:
    budget = TurnBudget(starts=2)
    order: list[str] = []

    async def begin(name: str, urgent: bool) -> None:
        await budget.wait_for_start(urgent=urgent)
        order.append(name)

    crowd = [asyncio.create_task(begin(f"{n}", urgent=False)) for n in range(10)]
    await asyncio.sleep(0)
    await begin("probe", urgent=True)
    assert order.index("probe") <= 4
    await asyncio.gather(*crowd)
    assert [each for each in order if each != "probe"] == [f"{n}" for n in range(10)]
