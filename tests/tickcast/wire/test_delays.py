from __future__ import annotations

from itertools import pairwise

from tickcast.wire.delays import Delays, Reminders


def test_delays_double_up_to_their_end_and_begin_anew() -> None:
    delays = Delays(0.5, 3.0, lambda: 1.0)
    assert delays.is_first
    assert [delays.next_s() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert not delays.is_first
    delays.begin_anew()
    assert delays.is_first
    assert delays.next_s() == 0.5


def test_delays_lie_anywhere_below_their_bound() -> None:
    assert Delays(8.0, 8.0, lambda: 0.25).next_s() == 2.0
    assert all(0 <= Delays(1.0, 1.0).next_s() <= 1 for _ in range(100))


def test_a_lasting_outage_is_reported_less_and_less_often() -> None:
    reminders = Reminders()
    day = [second * 0.7 for second in range(round(86_400 / 0.7))]
    reported = [now_s for now_s in day if reminders.is_due(now_s, OSError())]
    assert len(reported) < 160
    assert [round(now_s) for now_s in reported[:5]] == [0, 10, 31, 71, 152]
    assert max(later - now for now, later in pairwise(reported)) < 601


def test_another_kind_of_error_is_reported_at_once_and_the_next_outage_too() -> None:
    reminders = Reminders()
    assert reminders.is_due(0, ConnectionRefusedError())
    assert not reminders.is_due(1, ConnectionRefusedError("again"))
    assert reminders.is_due(2, TimeoutError())
    assert not any(reminders.is_due(3, error()) for error in (ConnectionRefusedError, TimeoutError))
    assert reminders.is_due(10, ConnectionRefusedError())
    reminders.reset()
    assert reminders.is_due(11, TimeoutError())
    assert not reminders.is_due(12, TimeoutError())
