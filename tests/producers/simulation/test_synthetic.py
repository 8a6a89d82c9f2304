from __future__ import annotations

from itertools import islice

from producers.simulation.synthetic import generate, symbol_names
from tests.builders import T0
from tickcast.wire.ticks import Quote, Trade, validate


def test_the_same_seed_gives_the_same_ticks() -> None:
    def run(seed: int) -> list[object]:
        return list(islice(generate(symbol_names(20), 200, seed, T0), 5000))

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_the_market_is_plausible() -> None:
    ticks = list(islice(generate(symbol_names(10), 100, 1, T0), 50_000))
    quotes: dict[str, Quote] = {}
    seconds = (ticks[-1].time - T0) / 1e9
    assert 450 < seconds < 550
    assert [tick.time for tick in ticks] == sorted(tick.time for tick in ticks)
    moves = []
    for tick in ticks:
        validate(tick)
        if isinstance(tick, Quote):
            assert 0 < tick.bid_price < tick.ask_price
            assert (tick.ask_price - tick.bid_price) / tick.bid_price < 0.01
            quotes[tick.symbol] = tick
        elif isinstance(tick, Trade) and tick.symbol in quotes:
            last = quotes[tick.symbol]
            assert tick.price == (last.ask_price if tick.side == "B" else last.bid_price)
            moves.append(tick.price)
    counts = [sum(tick.symbol == name for tick in ticks) for name in symbol_names(10)]
    assert counts[0] > counts[-1]
    assert 0.2 < sum(isinstance(tick, Trade) for tick in ticks) / len(ticks) < 0.5


def test_symbols_are_distinct() -> None:
    assert len(set(symbol_names(1000))) == 1000
    assert symbol_names(3) == ["ACME", "BOLT", "CRUX"]
