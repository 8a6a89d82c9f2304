from __future__ import annotations

import asyncio
import json
import logging
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from feed.access.entitlements import Entitlements, Grant, Proof
from feed.fanout.hub import Hub
from feed.transport.loop_time import SLICE_S, Steps, TimeSlices
from tests.builders import trade
from tests.feed.server.test_session import SessionClient
from tickcast.wire.actions import Subscribe
from tickcast.wire.ticks import StreamKey

STREAMS = 10_000
SYMBOLS = [f"S{number:05}" for number in range(STREAMS)]
STEP_CALLS = 40_000
"""Function calls in one step, some 4 ms. Actions in a single step took up to two million."""
REPLY_CALLS = 150_000
"""In the last step, which can't be divided: the minimum for 10,000 positions and snapshots."""


class Clock:
    """A clock that advances with work."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slices(clock: Clock) -> TimeSlices:
    return TimeSlices(clock)


def work(clock: Clock, log: list[str], name: str, steps: int) -> Steps:
    """Steps that take a millisecond each."""
    for _ in range(steps):
        clock.now_s += 0.001
        log.append(name)
        yield


def test_a_slice_ends_in_time_and_clients_take_turns(clock: Clock, slices: TimeSlices) -> None:
    log: list[str] = []
    for name in "abc":
        slices.start(name, work(clock, log, name, 2))
    assert slices.work_for(SLICE_S) == pytest.approx(SLICE_S)
    assert "".join(log) == "abcab"
    slices.work_for(SLICE_S)
    assert "".join(log) == "abcabc"
    assert slices.work_for(SLICE_S) == 0


def test_short_work_does_not_wait_for_long_work(clock: Clock, slices: TimeSlices) -> None:
    log: list[str] = []
    for name in "AB":
        slices.start(name, work(clock, log, name, 30))
    slices.work_for(0.02)
    log.clear()
    slices.start("c", work(clock, log, "c", 3))
    slices.work_for(0.01)
    assert log[:6].count("c") == 3
    slices.work_for(1)
    # Long tasks run one after the other, so that few of their results are in memory at a time.
    assert "".join(log[6:]).replace("c", "").lstrip("A") == "B" * log.count("B")


def test_work_of_one_client_is_done_in_its_order(clock: Clock, slices: TimeSlices) -> None:
    log: list[str] = []
    slices.start("client", work(clock, log, "first", 8))
    slices.start("other", work(clock, log, "other", 2))
    slices.start("client", work(clock, log, "second", 1))
    slices.work_for(1)
    assert [each for each in log if each != "other"] == ["first"] * 8 + ["second"]


async def test_waiting_callers_receive_completion_and_failures(
    slices: TimeSlices, caplog: pytest.LogCaptureFixture
) -> None:
    def failing() -> Steps:
        yield
        raise ValueError("a bug")

    serving = asyncio.create_task(slices.serve_forever())
    try:
        await slices.run("client", iter([None, None]))
        with pytest.raises(ValueError, match="a bug"):
            await slices.run("client", failing())
        with caplog.at_level(logging.ERROR):
            slices.start("client", failing())
            await slices.run("client", iter(()))
        assert "a bug in sliced work" in caplog.text
    finally:
        serving.cancel()
        await asyncio.wait([serving])


async def test_work_of_a_discarded_client_ends(clock: Clock, slices: TimeSlices) -> None:
    log: list[str] = []
    ended = []

    def noting() -> Steps:
        try:
            yield from work(clock, log, "x", 100)
        finally:
            ended.append(True)

    waiting = asyncio.create_task(slices.run("client", noting()))
    await asyncio.sleep(0)
    slices.work_for(0.003)
    slices.discard("client")
    await waiting
    slices.work_for(1)
    assert (len(log), ended) == (3, [True])
    cancelled = asyncio.create_task(slices.run("client", noting()))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    slices.work_for(1)
    assert len(log) == 3


# -------------------------------------------------------------------- how long steps of actions are


@contextmanager
def counted_calls() -> Iterator[Callable[[], int]]:
    """Count function calls; each reading restarts the count."""
    calls = 0

    def count(frame: object, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    def since() -> int:
        nonlocal calls
        counted, calls = calls, 0
        return counted

    sys.setprofile(count)
    try:
        yield since
    finally:
        sys.setprofile(None)


class ClientWithManyPatterns(SessionClient):
    """A client with a key of a thousand patterns, whose steps are counted."""

    def __init__(self, hub: Hub, deferred: list[Steps]) -> None:
        super().__init__(hub, extended=True, outbox_bytes=1 << 24)
        patterns = tuple(f"S{number:04}*" for number in range(1000))
        grant = Grant(Proof.KEY, "k", Entitlements(symbols=patterns))
        for _ in self.session.change_grant(grant):
            pass
        self.session._policy._subscriptions_max = 1024
        self._deferred = deferred

    def steps_of(self, **action: Any) -> list[int]:
        """Return the function calls of each step of an action, and of the work that follows it."""
        request = self.session.handle_message(json.dumps(action), 0.0)
        assert request is not None
        with counted_calls() as calls:
            steps = self.session.complete(request, lambda: "e1")  # type: ignore[arg-type]
            found = [calls() for _ in steps] + [calls()]
            while self._deferred:
                found += [calls() for _ in self._deferred.pop()]
        return found


@pytest.fixture(scope="module")
def market() -> tuple[Hub, list[Steps]]:
    hub = Hub()
    deferred: list[Steps] = []
    hub.groups.defer = deferred.append
    for symbol in SYMBOLS:
        hub.open_stream(StreamKey("live", "trades", symbol), trade(symbol, seq=3), 1, seq=3)
    return hub, deferred


def test_an_interval_of_one_client_costs_little_memory(market: tuple[Hub, list[Steps]]) -> None:
    first, second = ClientWithManyPatterns(*market), ClientWithManyPatterns(*market)
    # The mappings from which an interval's ticks are sent took 500 of 600 bytes.
    for _ in first.session.complete(_everything_at(first, 130), str):
        pass
    tracemalloc.start()
    try:
        for _ in second.session.complete(_everything_at(second, 140), str):
            pass
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for client in (first, second):
        client.session.release()
    assert size < 250 * STREAMS


def _everything_at(client: SessionClient, conflate_ms: int) -> Subscribe:
    action = {"action": "subscribe", "trades": ["*"], "conflate_ms": conflate_ms}
    request = client.session.handle_message(json.dumps(action), 0.0)
    assert isinstance(request, Subscribe)
    return request


@pytest.mark.parametrize(
    "options",
    [
        {"trades": SYMBOLS[::10]},
        {"trades": [f"S{number:04}*" for number in range(1000)]},
        {"trades": ["*"], "snapshot": True, "positions": True},
        {"trades": ["*"], "conflate_ms": 110},
        {"trades": ["*"], "resume": {"epoch": "", "trades": dict.fromkeys(SYMBOLS[::2], 3)}},
    ],
    ids=["names", "prefixes", "snapshot", "interval", "resume"],
)
def test_no_step_is_long_at_ten_thousand_streams(
    market: tuple[Hub, list[Steps]], options: dict[str, Any]
) -> None:
    client = ClientWithManyPatterns(*market)
    *steps, last = client.steps_of(action="subscribe", **options)
    assert max(steps) < STEP_CALLS
    assert last < REPLY_CALLS
    assert max(client.steps_of(action="configure", stamps=True, conflate_ms=120)) < STEP_CALLS
    assert max(client.steps_of(action="unsubscribe", trades=options["trades"])) < STEP_CALLS
    client.session.release()
