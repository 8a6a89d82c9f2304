from __future__ import annotations

from feed.delays import Delays


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
