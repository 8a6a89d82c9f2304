from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.simulation.pacing import Pacer, play
from tests.builders import T0, trade
from tickcast.broker.publisher import FeedPublisher
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time


def at(seconds: float) -> Tick:
    return trade(time=Time(T0 + round(seconds * 1e9)))


def dues(pacer: Pacer, *seconds: float) -> list[float]:
    return [round(pacer.due(at(each)), 6) for each in seconds]


def test_the_recorded_spacing_is_divided_by_the_speed() -> None:
    assert dues(Pacer(1), 0, 1, 1, 3) == [0, 1, 1, 3]
    assert dues(Pacer(10), 0, 1, 1, 3) == [0, 0.1, 0.1, 0.3]


def test_max_ignores_times() -> None:
    assert dues(Pacer(None), 0, 100, 5) == [0, 0, 0]


def test_a_rate_spaces_ticks_evenly() -> None:
    assert dues(Pacer(None, max_rate=4), 0, 100, 100, 5) == [0, 0.25, 0.5, 0.75]


def test_speed_and_rate_hold_together() -> None:
    assert dues(Pacer(1, max_rate=2), 0, 0, 0, 5, 5) == [0, 0.5, 1, 5, 5.5]


def test_times_that_go_back_are_due_at_once() -> None:
    assert dues(Pacer(1), 5, 4, 6) == [0, 0, 1]


@given(
    st.lists(st.floats(0, 1e6), min_size=1),
    st.none() | st.floats(0.01, 1e4),
    st.none() | st.floats(0.1, 1e5),
)
def test_due_times_never_fall(
    seconds: list[float], speed: float | None, rate: float | None
) -> None:
    pacer = Pacer(speed, rate)
    due = [pacer.due(at(each)) for each in seconds]
    assert due == sorted(due)
    assert due[0] == 0


async def test_play_keeps_to_the_schedule_and_reports(publisher: FeedPublisher) -> None:
    loop = asyncio.get_running_loop()
    progress: list[int] = []
    began = loop.time()
    count = await play(
        [at(each / 100) for each in range(31)],
        publisher,
        Pacer(1),
        lambda tick, count: progress.append(count),
    )
    assert loop.time() - began >= 0.299  # The loop's timers have a resolution of a millisecond.
    assert count == publisher.published == progress[-1] == 31
    assert progress == sorted(progress)


async def test_play_ends_with_its_source(publisher: FeedPublisher) -> None:
    def broken() -> object:
        yield at(0)
        raise ValueError("the file ends here")

    with pytest.raises(ValueError, match="ends here"):
        await play(broken(), publisher, Pacer())  # type: ignore[arg-type]
