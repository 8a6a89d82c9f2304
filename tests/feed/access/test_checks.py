"""Checks of secrets during a flood of wrong ones."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from feed.access import authenticator
from feed.access.authenticator import CheckQueue, Rank
from tickcast.wire.errors import TryAgain


class Flood:
    """A queue whose checks wait for a gate; records the order in which they ran."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self.now_s = 0.0
        self.queue = CheckQueue(thread, lambda: self.now_s)
        self.gate = threading.Event()
        self.ran: list[str] = []

    def ask(self, name: str, address: str, *, known: bool = True) -> asyncio.Task[bool]:
        def check() -> bool:
            self.gate.wait()
            self.ran.append(name)
            return name.startswith("right")

        rank = self.queue.rank_of(address) if known else Rank.FAILED
        return asyncio.create_task(self.queue.run(name, check, address, rank))


@pytest.fixture
def flood() -> Iterator[Flood]:
    with ThreadPoolExecutor(1) as thread:
        flood = Flood(thread)
        yield flood
        flood.gate.set()


async def settled(tasks: list[asyncio.Task[bool]]) -> list[object]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_trusted_addresses_are_checked_first_and_failed_ones_last(
    flood: Flood,
) -> None:
    flood.queue.note_result("good", is_right=True)
    flood.queue.note_result("bad", is_right=False)
    assert [flood.queue.rank_of(each) for each in ("good", "bad", "new")] == [0, 2, 1]
    names = ["first", "wrong 1", "wrong 2", "right 1", "right 2", "no such key"]
    addresses = ["x", "bad", "bad", "new", "good", "good"]
    tasks = []
    for name, address in zip(names, addresses, strict=True):
        tasks.append(flood.ask(name, address, known=name != "no such key"))
        await asyncio.sleep(0)
    flood.gate.set()
    assert await settled(tasks) == [False, False, False, True, True, False]
    assert flood.ran == ["first", "right 2", "right 1", "wrong 1", "wrong 2", "no such key"]
    flood.now_s = 61.0
    assert flood.queue.rank_of("bad") is Rank.UNKNOWN


async def test_failed_addresses_leave_room_for_others(flood: Flood) -> None:
    for number in range(100):
        flood.queue.note_result(f"bad {number}", is_right=False)
    bad = [flood.ask(f"wrong {number}", f"bad {number}") for number in range(100)]
    new = [flood.ask(f"guess {number}", f"new {number}") for number in range(100)]
    await asyncio.sleep(0)
    flood.queue.note_result("good", is_right=True)
    good = [flood.ask("right", "good")]
    await asyncio.sleep(0)
    flood.gate.set()
    assert await settled(good) == [True]
    turned_away = [isinstance(each, TryAgain) for each in await settled(bad)]
    assert 75 <= sum(turned_away) <= 80
    assert 30 <= sum(isinstance(each, TryAgain) for each in await settled(new)) <= 45
    assert flood.ran.index("right") <= 1  # It runs after the one that was in progress.


async def test_checks_per_address_are_bounded_and_equal_ones_run_once(flood: Flood) -> None:
    same = [flood.ask("right", f"{number}") for number in range(500)]
    many = [flood.ask(f"wrong {number}", "one") for number in range(20)]
    await asyncio.sleep(0)
    flood.gate.set()
    assert await settled(same) == [True] * 500
    assert sum(isinstance(each, TryAgain) for each in await settled(many)) == 12
    assert flood.ran.count("right") == 1


async def test_a_check_that_waits_too_long_is_try_again(
    flood: Flood, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authenticator, "_WAIT_S", 0.02)
    task = flood.ask("right", "one")
    with pytest.raises(TryAgain):
        await task
    flood.gate.set()


def test_the_tables_of_addresses_are_bounded(flood: Flood, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authenticator, "_ADDRESSES_MAX", 2)
    for address in ("a", "b", "c"):
        flood.queue.note_result(address, is_right=True)
    assert [flood.queue.rank_of(each) for each in "abc"] == [1, 0, 0]
    flood.queue.note_result("b", is_right=False)
    assert flood.queue.rank_of("b") is Rank.FAILED
