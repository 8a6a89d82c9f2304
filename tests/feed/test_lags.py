"""How late ticks are, and how far a client is behind."""

from __future__ import annotations

from feed.counters import Counters
from feed.lags import Arrivals, Stall
from tests.builders import NOW


def test_the_lag_is_that_of_the_last_batch_for_a_second() -> None:
    counters = Counters()
    arrivals = Arrivals(counters)
    assert arrivals.lag_ms(NOW) == 0
    arrivals.add((NOW.wall_us - 9_000, 2))
    arrivals.add((NOW.wall_us - 5_000, 3))
    arrivals.add((0, 1))
    arrivals.flush(NOW)
    arrivals.flush(NOW)
    assert arrivals.lag_ms(NOW) == 5
    assert arrivals.lag_ms(NOW._replace(steady_s=NOW.steady_s + 1)) == 5
    assert arrivals.lag_ms(NOW._replace(steady_s=NOW.steady_s + 1.1)) == 0


def test_a_stall_begins_when_all_was_last_well() -> None:
    stall = Stall()
    stall.look(10.0, broker_connected=False, all_taken=False)
    assert stall.lasts_ms(10.0) == 0
    stall.look(11.0, broker_connected=True, all_taken=False)
    assert stall.lasts_ms(11.5) == 1500
    stall.look(12.0, broker_connected=False, all_taken=True)
    assert stall.lasts_ms(12.0) == 1000
    stall.look(13.0, broker_connected=True, all_taken=True)
    assert stall.lasts_ms(13.0) == 0
