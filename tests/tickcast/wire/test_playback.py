from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import T0
from tests.recorded import SECOND, Recorded, at, places
from tickcast.wire.playback import MAX_SPEED, Player, ReplayMode
from tickcast.wire.ticks import Tick


def test_ticks_are_due_at_their_times_divided_by_the_speed() -> None:
    player = Player(Recorded(0, 1, 1, 3), 100.0, speed=10)
    assert places(player.pop_due(100.0)) == [0]
    assert player.next_due_s == pytest.approx(100.1)
    assert places(player.pop_due(100.05)) == []
    assert places(player.pop_due(100.1)) == [1, 2]
    assert player.state(100.15).position == at(1.5)
    assert places(player.pop_due(100.3)) == [3]
    assert player.state(100.3) == (ReplayMode.ENDED, at(3), 10, at(0), at(3))
    assert player.next_due_s is None


def test_at_max_speed_all_ticks_are_due_at_once() -> None:
    player = Player(Recorded(0, 100, 5), 7.0, speed=MAX_SPEED)
    assert player.next_due_s == 7.0
    assert places(player.pop_due(7.0, limit=2)) == [0, 1]
    assert player.state(7.0).position == at(100)
    assert places(player.pop_due(7.0)) == [2]
    assert player.state(7.0).mode is ReplayMode.ENDED


def test_a_tick_with_an_earlier_time_is_due_with_the_one_before() -> None:
    player = Player(Recorded(0, 5, 4, 6), 0.0)
    player.pop_due(0.0)
    assert places(player.pop_due(4.5)) == []
    assert places(player.pop_due(5.0)) == [1, 2]
    assert places(player.pop_due(6.0)) == [3]
    player.seek(at(4.5), 6.0)
    assert places(player.pop_due(7.0)) == [1, 2]


def test_a_part_is_played_to_its_end_even_without_ticks() -> None:
    player = Player(Recorded(0, 1, 2, 9), 0.0, start=at(0.5), end=at(4))
    assert player.next_due_s == pytest.approx(0.5)
    assert places(player.pop_due(1.5)) == [1, 2]
    assert player.state(1.5).mode is ReplayMode.PLAYING
    assert player.next_due_s == pytest.approx(3.5)
    player.pop_due(3.5)
    assert player.state(3.5).mode is ReplayMode.ENDED
    with pytest.raises(ValueError, match="the recording goes from"):
        Player(Recorded(0, 1), 0.0, start=at(2))


def test_while_paused_nothing_is_due_and_the_position_is_fixed() -> None:
    player = Player(Recorded(0, 1, 2), 0.0)
    player.pop_due(0.5)
    player.pause(0.5)
    assert player.pop_due(60.0) == []
    assert player.next_due_s is None
    assert player.state(60.0).position == at(0.5)
    player.resume(60.0)
    assert player.next_due_s == pytest.approx(60.5)
    assert places(player.pop_due(60.5)) == [1]


def test_a_new_speed_applies_from_the_current_position() -> None:
    player = Player(Recorded(0, 10, 20), 0.0)
    player.pop_due(5.0)
    player.set_speed(5, 5.0)
    assert player.next_due_s == pytest.approx(6.0)
    player.set_speed(0.5, 5.5)
    assert player.state(5.5).position == at(7.5)
    for speed in (0.001, 20_000, 0, -1, float("nan")):
        with pytest.raises(ValueError, match="a speed is"):
            player.set_speed(speed, 6.0)


def test_a_seek_forward_skips_ticks_and_a_seek_back_repeats_them() -> None:
    player = Player(Recorded(*range(10)), 0.0)
    assert places(player.pop_due(2.0)) == [0, 1, 2]
    player.seek(at(6), 2.0)
    assert player.rewinds == 0
    assert places(player.pop_due(3.0)) == [6, 7]
    player.seek(at(1), 3.0)
    assert player.rewinds == 1
    assert places(player.pop_due(4.0)) == [1, 2]
    player.seek(at(2), 4.0)
    assert player.rewinds == 2, "the tick of this very moment comes again"
    player.seek(at(99), 4.0)
    assert places(player.pop_due(4.0)) == [9]
    assert player.state(4.0).mode is ReplayMode.ENDED
    player.seek(at(-5), 5.0)
    assert player.state(5.0) == (ReplayMode.PLAYING, at(0), 1, at(0), at(9))


def test_a_step_pauses_and_ignores_due_times() -> None:
    player = Player(Recorded(0, 10, 20), 0.0)
    assert places(player.step(2, 0.0)) == [0, 1]
    assert player.state(9.0) == (ReplayMode.PAUSED, at(10), 1, at(0), at(20))
    player.resume(9.0)
    assert player.next_due_s == pytest.approx(19.0)
    assert places(player.step(5, 10.0)) == [2]
    assert player.state(10.0).mode is ReplayMode.ENDED
    assert player.step(1, 10.0) == []
    with pytest.raises(ValueError, match="a step is"):
        player.step(0, 10.0)


def test_loops_follow_each_other_without_a_delay() -> None:
    player = Player(Recorded(0, 1), 0.0, loop=True)
    assert places(player.pop_due(0.0)) == [0]
    assert places(player.pop_due(1.7)) == [1]
    assert player.rewinds == 1
    assert places(player.pop_due(1.7)) == [0], "due at 1.0"
    assert player.next_due_s == pytest.approx(2.0)
    with pytest.raises(ValueError, match="nothing to loop"):
        Player(Recorded(1, 1), 0.0, loop=True)


def test_delays_do_not_accumulate_over_an_hour() -> None:
    """Play at ten times the speed, with late wake-ups, on a clock that has run for a year."""
    source = Recorded(*(each * 0.73 for each in range(50_000)))
    began_s = 365.25 * 86_400 + 0.123
    player = Player(source, began_s, speed=10)
    now_s = began_s
    while player.next_due_s is not None and now_s < began_s + 3600:
        now_s = max(now_s, player.next_due_s) + 0.0007
        for tick in player.pop_due(now_s):
            ideal_s = began_s + (tick.time - T0) / SECOND / 10
            assert now_s - ideal_s < 0.002
    position = player.state(now_s).position
    assert abs((position - T0) / SECOND / 10 - (now_s - began_s)) < 0.001
    assert now_s - began_s > 3599


COMMANDS = st.one_of(
    st.tuples(st.just("wait"), st.floats(0, 30)),
    st.tuples(st.just("next"), st.just(0.0)),
    st.tuples(st.just("pause"), st.just(0.0)),
    st.tuples(st.just("resume"), st.just(0.0)),
    st.tuples(st.just("seek"), st.floats(-5, 105)),
    st.tuples(st.just("speed"), st.sampled_from([0.01, 0.5, 1, 7, 10_000, MAX_SPEED])),
    st.tuples(st.just("step"), st.integers(1, 5)),
)


@given(
    seconds=st.lists(st.floats(0, 100), min_size=2, max_size=30),
    commands=st.lists(COMMANDS, max_size=40),
    limit=st.integers(1, 5),
    loop=st.booleans(),
)
def test_each_pass_returns_every_tick_once_and_in_order(
    seconds: list[float], commands: list[tuple[str, float]], limit: int, loop: bool
) -> None:
    source = Recorded(*seconds)
    player = Player(source, 1000.0, loop=loop and source.first < source.last)
    now_s = 1000.0
    passed: list[int] = []
    position = player.state(now_s).position
    rewinds = 0
    for name, value in commands:
        ticks: list[Tick] = []
        match name:
            case "wait":
                now_s += value
            case "next" if player.next_due_s is not None:
                now_s = max(now_s, player.next_due_s)
            case "pause":
                player.pause(now_s)
            case "resume":
                player.resume(now_s)
            case "seek":
                player.seek(at(value), now_s)
            case "speed":
                player.set_speed(value, now_s)
            case "step":
                ticks = player.step(int(value), now_s)
        if name == "seek" and player.rewinds > rewinds:
            passed, rewinds = [], player.rewinds
        ticks += player.pop_due(now_s, limit)
        passed += places(ticks)
        assert passed == sorted(set(passed))
        if player.rewinds > rewinds:
            passed, rewinds = [], player.rewinds
        elif name != "seek":
            assert player.state(now_s).position >= position
        position = player.state(now_s).position
        assert player.first <= position <= player.last
        if ticks and player.state(now_s).mode is ReplayMode.PLAYING and not player.rewinds:
            assert max(tick.time for tick in ticks) <= position


@given(
    seconds=st.lists(st.floats(0, 100), min_size=1, max_size=30),
    speed=st.sampled_from([0.1, 1, 10, 1000, MAX_SPEED]),
    late_s=st.floats(0, 2),
)
def test_without_commands_every_tick_comes_once_and_none_too_early(
    seconds: list[float], speed: float, late_s: float
) -> None:
    player = Player(Recorded(*seconds), 50.0, speed=speed)
    played: list[Tick] = []
    now_s = 50.0
    while player.next_due_s is not None:
        now_s = max(now_s, player.next_due_s + late_s + 1e-9)
        ticks = player.pop_due(now_s)
        played += ticks
        for tick in ticks:
            assert now_s >= 50.0 + (tick.time - player.first) / SECOND / speed - 1e-6
    assert places(played) == list(range(len(seconds)))
