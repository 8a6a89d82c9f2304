"""Each scenario has the effect that its name describes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, takewhile

import pytest

from producers.simulation.scenarios import CYCLE_S, SCENARIOS, generate_scenario
from producers.simulation.synthetic import generate, symbol_names
from tests.builders import T0
from tickcast.wire.ticks import Quote, Tick, Trade, validate
from tickcast.wire.times import NS_PER_SECOND

RATE = 50
SYMBOLS = symbol_names(3)


def at(tick: Tick) -> float:
    return (tick.time - T0) / NS_PER_SECOND


CALM = list(takewhile(lambda tick: at(tick) < 2 * CYCLE_S, generate(SYMBOLS, RATE, 7, T0)))
"""The same market when nothing special happens."""


def two_minutes(name: str, seed: int = 7) -> list[Tick]:
    """Return the ticks of two minutes, before they are stamped."""
    ticks = generate_scenario(name, SYMBOLS, RATE, seed, T0)
    return list(takewhile(lambda tick: at(tick) < 2 * CYCLE_S, ticks))


def within(ticks: list[Tick], begin: float, end: float) -> list[Tick]:
    """Return the ticks of both minutes between two points of the minute."""
    return [tick for tick in ticks if begin <= at(tick) % CYCLE_S < end]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_seed_gives_the_same_ticks_in_order(name: str) -> None:
    ticks = two_minutes(name)
    assert ticks == two_minutes(name)
    assert ticks != two_minutes(name, seed=8)
    assert all(a.time <= b.time for a, b in pairwise(ticks))
    for tick in ticks:
        validate(SCENARIOS[name].stamp(tick, T0))


@pytest.mark.parametrize("name", SCENARIOS)
def test_trades_are_numbered_one_by_one_but_for_gaps(name: str) -> None:
    jumps = 0
    for symbol in SYMBOLS:
        ids = [tick.id for tick in two_minutes(name)
               if isinstance(tick, Trade) and tick.symbol == symbol]  # fmt: skip
        jumps += sum(b != a + 1 for a, b in pairwise(ids))  # type: ignore[operator]
    assert jumps == (2 * len(SYMBOLS) if name == "gap" else 0)


def test_open_burst_is_silence_and_then_a_thousand_times_the_rate() -> None:
    ticks = two_minutes("open-burst")
    assert within(ticks, 0, 10) == []
    per_s = len(within(ticks, 10, 10.02)) / 2 / 0.02
    assert 800 * RATE < per_s < 1050 * RATE
    assert 0.8 * RATE < len(within(ticks, 12, 60)) / 2 / 48 < 1.2 * RATE


def test_quiet_is_mostly_silence() -> None:
    ticks = two_minutes("quiet")
    assert within(ticks, 10, 60) == []
    assert 0.8 * RATE < len(within(ticks, 0, 10)) / 2 / 10 < 1.2 * RATE


def middles(ticks: list[Tick], symbol: str = SYMBOLS[0]) -> list[float]:
    return [(tick.bid_price + tick.ask_price) / 2 for tick in ticks
            if isinstance(tick, Quote) and tick.symbol == symbol]  # fmt: skip


def spread(ticks: list[Tick]) -> float:
    quotes = [tick for tick in ticks if isinstance(tick, Quote)]
    return sum((tick.ask_price - tick.bid_price) / tick.bid_price for tick in quotes) / len(quotes)


def test_flash_crash_falls_by_a_tenth_and_comes_back() -> None:
    ticks = two_minutes("flash-crash")
    before, bottom, after = within(ticks, 18, 20), within(ticks, 24.5, 25.5), within(ticks, 46, 48)
    assert 0.88 < min(middles(bottom)) / middles(before)[-1] < 0.92
    assert 0.98 < middles(after)[-1] / middles(before)[-1] < 1.02
    assert spread(bottom) > 5 * spread(before)
    falling = [tick for tick in within(ticks, 20.1, 25) if isinstance(tick, Trade)]
    assert {tick.side for tick in falling} == {"S"}
    assert within(ticks, 45, 60) == within(CALM, 45, 60)


def test_halt_has_no_trades_stale_quotes_and_opens_elsewhere() -> None:
    ticks = two_minutes("halt")
    halted = within(ticks, 20, 40)
    assert not any(isinstance(tick, Trade) for tick in halted)
    for symbol in SYMBOLS:
        for minute in (0, 60):
            stale = middles([tick for tick in halted if minute <= at(tick) < minute + 60], symbol)
            assert len(stale) > 10
            assert len(set(stale)) == 1
            opened = middles([tick for tick in ticks if at(tick) >= minute + 40], symbol)
            assert 0.01 < abs(opened[0] / stale[0] - 1) < 0.06


def test_crossed_has_bids_above_asks_for_moments() -> None:
    ticks = two_minutes("crossed")
    crossed = [
        tick for tick in ticks if isinstance(tick, Quote) and tick.bid_price > tick.ask_price
    ]
    assert crossed == [tick for tick in ticks
                       if isinstance(tick, Quote) and 5 <= at(tick) % 10 < 5.5]  # fmt: skip
    assert len({int(at(tick) / 10) for tick in crossed}) == 12


def test_gap_misses_ticks_while_time_passes() -> None:
    ticks = two_minutes("gap")
    assert within(ticks, 20, 25) == []
    assert ticks == [tick for tick in CALM if not 20 <= at(tick) % CYCLE_S < 25]


def test_skewed_clock_is_right_then_ahead_then_behind() -> None:
    ticks = two_minutes("skewed-clock")
    assert ticks == CALM
    stamp: Callable[..., Tick] = SCENARIOS["skewed-clock"].stamp
    for begin, skew in ((0, 0), (20, 5), (40, -5)):
        for tick in within(ticks, begin, begin + 20):
            assert at(stamp(tick, T0)) - at(tick) == pytest.approx(skew)
