from __future__ import annotations

import math

from clients.terminal.market import SPARK_POINTS, Market
from tests.builders import bar, quote, trade


def test_rates_cover_the_last_seconds() -> None:
    market = Market()
    market.update_rates(0.0)
    for second in range(1, 11):
        market.add_ticks([trade("ES"), trade("ES"), quote("NQ")], second - 0.5)
        assert market.update_rates(float(second))
        assert not market.update_rates(second + 0.5)
    assert (market.rows["ES"].rate, market.rows["NQ"].rate, market.rate) == (2, 1, 3)
    for second in range(11, 17):
        market.update_rates(float(second))
    assert (market.rows["ES"].rate, market.rate) == (0, 0)


def test_price_history_is_bounded() -> None:
    market = Market()
    market.update_rates(0.0)
    for second in range(1, 200):
        market.add_ticks([trade("ES", price=second)], second)
        market.update_rates(float(second))
    assert list(market.rows["ES"].history) == list(range(200 - SPARK_POINTS, 200))


def test_volume_counts_each_trade_once() -> None:
    market = Market()
    market.add_ticks([trade("A", size=5, snap=True), trade("A", size=3), bar("A")], 0.0)
    market.add_ticks([bar("B"), bar("B", timeframe="1s"), bar("B")], 0.0)
    assert (market.rows["A"].volume, market.rows["B"].volume) == (3, 20)


def test_prices_that_cannot_be_drawn_are_ignored() -> None:
    market = Market()
    market.add_ticks([trade("A", price=math.nan), trade("A", price=math.inf)], 0.0)
    assert market.rows["A"].first_price == 0


def test_the_busiest_symbols_have_rows() -> None:
    market = Market(rows_max=2)
    market.update_rates(0.0)
    market.add_ticks([trade("A"), trade("B"), trade("C")], 0.0)
    assert (set(market.rows), set(market.hidden)) == ({"A", "B"}, {"C"})
    for second in range(1, 9):
        market.add_ticks([trade("B"), *(trade("C") for _ in range(9))], second - 0.5)
        market.update_rates(float(second))
    assert (set(market.rows), set(market.hidden)) == ({"B", "C"}, {"A"})
    changes = market.changes
    for second in range(9, 20):
        # Not clearly busier: rows should not come and go all the time.
        market.add_ticks([trade("A"), trade("B"), trade("C")], second - 0.5)
        market.update_rates(float(second))
    assert market.changes == changes


def test_further_ticks_do_not_change_a_snapshot() -> None:
    market = Market()
    market.add_ticks([trade("A", price=1)], 0.0)
    snapshot = market.snapshot()
    market.add_ticks([trade("A", price=2), trade("B")], 1.0)
    market.update_rates(1.0)
    market.update_rates(5.0)
    row = snapshot.rows["A"]
    assert (list(snapshot.rows), row.price, list(row.history), snapshot.ticks) == (["A"], 1, [], 1)
