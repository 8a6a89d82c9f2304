from __future__ import annotations

import math

from clients.terminal.market import SPARK_POINTS, Market
from tests.builders import bar, quote, trade


def test_rates_are_those_of_the_last_seconds() -> None:
    market = Market()
    market.turn(0.0)
    for second in range(1, 11):
        market.update([trade("ES"), trade("ES"), quote("NQ")], second - 0.5)
        assert market.turn(float(second))
        assert not market.turn(second + 0.5)
    assert (market.rows["ES"].rate, market.rows["NQ"].rate, market.rate) == (2, 1, 3)
    for second in range(11, 17):
        market.turn(float(second))
    assert (market.rows["ES"].rate, market.rate) == (0, 0)


def test_the_course_is_bounded() -> None:
    market = Market()
    market.turn(0.0)
    for second in range(1, 200):
        market.update([trade("ES", price=second)], second)
        market.turn(float(second))
    assert list(market.rows["ES"].course) == list(range(200 - SPARK_POINTS, 200))


def test_what_counts_as_volume() -> None:
    market = Market()
    market.update([trade("A", size=5, snap=True), trade("A", size=3), bar("A")], 0.0)
    market.update([bar("B"), bar("B", timeframe="1s"), bar("B")], 0.0)
    assert (market.rows["A"].volume, market.rows["B"].volume) == (3, 20)


def test_what_cannot_be_drawn_is_left_out() -> None:
    market = Market()
    market.update([trade("A", price=math.nan), trade("A", price=math.inf)], 0.0)
    assert market.rows["A"].first == 0


def test_the_busiest_symbols_have_rows() -> None:
    market = Market(rows_max=2)
    market.turn(0.0)
    market.update([trade("A"), trade("B"), trade("C")], 0.0)
    assert (set(market.rows), set(market.hidden)) == ({"A", "B"}, {"C"})
    for second in range(1, 9):
        market.update([trade("B"), *(trade("C") for _ in range(9))], second - 0.5)
        market.turn(float(second))
    assert (set(market.rows), set(market.hidden)) == ({"B", "C"}, {"A"})
    changes = market.changes
    for second in range(9, 20):
        # Not clearly busier: rows should not come and go all the time.
        market.update([trade("A"), trade("B"), trade("C")], second - 0.5)
        market.turn(float(second))
    assert market.changes == changes


def test_a_copy_stays_as_it_is() -> None:
    market = Market()
    market.update([trade("A", price=1)], 0.0)
    copy = market.copy()
    market.update([trade("A", price=2), trade("B")], 1.0)
    market.turn(1.0)
    market.turn(5.0)
    row = copy.rows["A"]
    assert (list(copy.rows), row.last, list(row.course), copy.ticks) == (["A"], 1, [], 1)
