from __future__ import annotations

import asyncio
from itertools import islice

import pytest

from producers.simulation.synthetic import generate, play, symbol_names
from tests.builders import T0, trade
from tickcast.broker.publisher import FeedPublisher
from tickcast.wire.ticks import Quote, Tick, Trade, validate
from tickcast.wire.times import Time


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


def at(seconds: float) -> Tick:
    return trade(time=Time(T0 + round(seconds * 1e9)))


async def test_play_keeps_to_the_schedule(publisher: FeedPublisher) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await play([at(each / 100) for each in range(31)], publisher)
    assert loop.time() - began >= 0.299  # The loop's timers have a resolution of a millisecond.
    assert publisher.published == 31


async def test_times_that_go_back_are_due_at_once(publisher: FeedPublisher) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await play([at(5), at(4), at(5.1)], publisher)
    assert 0.099 <= loop.time() - began < 1
    assert publisher.published == 3


async def test_play_ends_with_its_source(publisher: FeedPublisher) -> None:
    def broken() -> object:
        yield at(0)
        raise ValueError("the file ends here")

    with pytest.raises(ValueError, match="ends here"):
        await play(broken(), publisher)  # type: ignore[arg-type]
