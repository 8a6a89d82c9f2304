"""Measurements of how late ticks are, and how far behind a client is."""

from __future__ import annotations

from feed.fanout.counters import Counters
from feed.fanout.lags import Arrivals, Staleness
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
    assert arrivals.lag_ms(NOW._replace(monotonic_s=NOW.monotonic_s + 1)) == 5
    assert arrivals.lag_ms(NOW._replace(monotonic_s=NOW.monotonic_s + 1.1)) == 0


def test_a_stall_begins_when_the_client_last_had_everything() -> None:
    stall = Staleness()
    stall.update(10.0, broker_heard_s=9.9, all_taken=False)
    assert stall.lasts_ms(10.0) == 0
    stall.update(11.0, broker_heard_s=10.9, all_taken=False)
    assert stall.lasts_ms(11.5) == 1500
    stall.update(13.0, broker_heard_s=12.9, all_taken=True)
    assert stall.lasts_ms(13.0) == 0


def test_a_stall_begins_with_the_last_word_from_redis() -> None:
    """Not at the heartbeat that last found it connected: silence is noticed seconds later."""
    stall = Staleness()
    for now_s in (10.0, 11.0, 12.0):
        stall.update(now_s, broker_heard_s=9.6, all_taken=True)
    assert stall.lasts_ms(12.0) == 2400
    never = Staleness()
    for now_s in (10.0, 11.5):
        never.update(now_s, broker_heard_s=0.0, all_taken=True)
    assert never.lasts_ms(11.5) == 1500
