from __future__ import annotations

import math

import pytest

from clients.terminal.candles import CANDLES_MAX, Candles, draw_chart
from tests.builders import quote, trade
from tickcast.commands.terminal import plain
from tickcast.wire.ticks import Trade
from tickcast.wire.times import NS_PER_SECOND, Time

BEGIN = 1_378_054_800  # 2013-09-01T17:00:00Z


def at(second: float, price: float, size: float = 1) -> Trade:
    return trade("ES", price=price, size=size, time=Time(int((BEGIN + second) * NS_PER_SECOND)))


def candles_of(*trades: Trade, timeframe: str = "1s") -> Candles:
    candles = Candles("ES", timeframe)
    candles.add_trades(trades)
    return candles


def test_trades_become_candles() -> None:
    candles = candles_of(at(0, 5), at(0.5, 9), at(0.9, 4, size=3), at(2, 7))
    candles.add_trades([quote("ES"), trade("NQ"), at(2, math.nan)])
    first, empty, last = candles.latest(3)
    assert first is not None
    assert last is not None
    assert (first.open, first.high, first.low, first.close, first.volume) == (5, 9, 4, 4, 5)
    assert (empty, last.open) == (None, 7)
    assert candles.start_of(candles.newest).rfc3339() == "2013-09-01T17:00:02Z"


def test_late_trades_go_into_their_own_candle() -> None:
    candles = candles_of(at(10, 5), at(9.5, 3), at(10.5, 6))
    late, last = candles.latest(2)
    assert late is not None
    assert last is not None
    assert (late.close, last.close) == (3, 6)


def test_candles_are_bounded() -> None:
    candles = candles_of(*(at(second, 5) for second in range(3 * CANDLES_MAX)), at(0, 1))
    assert all(candles.latest(CANDLES_MAX))
    assert candles.latest(CANDLES_MAX + 1)[0] is None
    assert len(candles._candles) <= CANDLES_MAX + 1
    start = candles.history_from(at(3 * CANDLES_MAX - 1, 5).time)
    assert start == candles.start_of(candles.newest - CANDLES_MAX + 1)


def test_a_chart() -> None:
    candles = candles_of(
        at(10, 100, 8), at(10, 110), at(10, 95), at(10, 105), at(11, 105), at(11, 96, 3)
    )
    assert [plain(line).rstrip() for line in draw_chart(candles, 2, 30, 10)] == [
        "                   │   110.00",
        "                   │",
        "                   ╽╻",
        "                   ┃┃",
        "                   ┃┃",
        "                   ╿┃  100.00",
        "                   │┃",
        "                   │╹ ◂96.00",
        "                   █▃  11",
        "         ╵17:00:00    UTC",
    ]


@pytest.mark.parametrize("prices", [[5], [0, 0], [1e300, -1e300], [1e15, 1e15 + 0.125], [1e-8]])
def test_odd_prices_are_drawn(prices: list[float]) -> None:
    candles = candles_of(*(at(n, price) for n, price in enumerate(prices)))
    assert len(draw_chart(candles, 8, 80, 20)) == 20


def test_axis_labels() -> None:
    candles = candles_of(*(at(n, 100 + n % 7 / 10) for n in range(300)))
    lines = [plain(line) for line in draw_chart(candles, 2, 80, 24)]
    assert "╵17:04:15" in lines[-1]
    assert lines[-1].endswith(" UTC")
    assert sum("100." in line for line in lines) >= 3
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("width", range(1, 60))
def test_only_visible_candles_determine_the_scale(width: int) -> None:
    candles = candles_of(*(at(n, 2.0**n) for n in range(60)))
    lines = draw_chart(candles, 2, width, 12)
    assert len(lines) == 12
