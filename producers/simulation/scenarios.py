"""Scenarios for the synthetic market: events that go wrong or that overload a client.

Each scenario takes the ticks of `synthetic.generate` and changes them in the same way every minute,
so you can watch it for as long as you like. The same seed gives the same ticks.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from producers.simulation.synthetic import TICK_SIZE, generate, round_to_tick
from tickcast.wire.ticks import Quote, Tick, Trade
from tickcast.wire.times import NS_PER_SECOND, Time

# The period after which each scenario repeats.
CYCLE_S: Final = 60.0

BURST_AT_S: Final = 10.0
BURST_FACTOR: Final = 1000.0
_BURST_HALVES_S: Final = 0.1
ACTIVE_S: Final = 10.0
# When prices start to fall, when they are lowest, and when they are back to normal.
CRASH_S: Final = (20.0, 25.0, 45.0)
CRASH_DEPTH: Final = 0.1
HALT_S: Final = (20.0, 40.0)
GAP_S: Final = (20.0, 25.0)
CROSSED_EVERY_S: Final = 10.0
CROSSED_FOR_S: Final = 0.5
SKEW_S: Final = 5.0
_SKEW_CHANGES_S: Final = (20.0, 40.0)

_Modify = Callable[[Iterator[Tick], Time, random.Random], Iterator[Tick]]


class Scenario(NamedTuple):
    """One scenario."""

    # What happens, in one line.
    text: str
    # Modifies the market's ticks. A tick is due at its time.
    modify: _Modify
    # Returns the tick to publish in place of a tick that is due.
    stamp: Callable[[Tick, Time], Tick] = lambda tick, start: tick


def generate_scenario(
    name: str, symbols: Sequence[str], rate: float, seed: int, start: Time
) -> Iterator[Tick]:
    """Yield the endless ticks of one of `SCENARIOS`, in the order in which they are due.

    Args:
        rate: ticks per second on average over all symbols, while the scenario is calm.
    """
    ticks = generate(symbols, rate, seed, start)
    return SCENARIOS[name].modify(ticks, start, random.Random(f"{name} {seed}"))


def _elapsed_s(tick: Tick, start: Time) -> float:
    return (tick.time - start) / NS_PER_SECOND


def _phase_s(tick: Tick, start: Time) -> float:
    """Return the position of a tick within the minute, in seconds."""
    return _elapsed_s(tick, start) % CYCLE_S


# -- activity


def _open_burst(ticks: Iterator[Tick], start: Time, rng: random.Random) -> Iterator[Tick]:
    halves = _BURST_HALVES_S / math.log(2)
    burst_s = _BURST_HALVES_S * math.log2(BURST_FACTOR)
    in_burst_s = halves * (BURST_FACTOR - 1)
    calm_s = CYCLE_S - BURST_AT_S - burst_s

    def due_s(market_s: float) -> float:
        """Convert market time to due time: the market runs faster at first, then as usual."""
        if market_s >= in_burst_s:
            return BURST_AT_S + burst_s + market_s - in_burst_s
        return BURST_AT_S - halves * math.log(1 - market_s / (halves * BURST_FACTOR))

    return _warp(ticks, start, in_burst_s + calm_s, due_s)


def _quiet(ticks: Iterator[Tick], start: Time, rng: random.Random) -> Iterator[Tick]:
    return _warp(ticks, start, ACTIVE_S, lambda market_s: market_s)


def _warp(
    ticks: Iterator[Tick], start: Time, market_cycle_s: float, due_s: Callable[[float], float]
) -> Iterator[Tick]:
    """Stretch each `market_cycle_s` of market time to one minute, as `due_s` defines."""
    for tick in ticks:
        cycles, market_s = divmod(_elapsed_s(tick, start), market_cycle_s)
        elapsed_s = cycles * CYCLE_S + due_s(market_s)
        yield replace(tick, time=Time(start + round(elapsed_s * NS_PER_SECOND)))


# -- prices


def _flash_crash(ticks: Iterator[Tick], start: Time, rng: random.Random) -> Iterator[Tick]:
    quotes: dict[str, Quote] = {}
    for tick in ticks:
        phase_s = _phase_s(tick, start)
        depth = _depth(phase_s)
        if isinstance(tick, Quote):
            quotes[tick.symbol] = quote = _in_panic(tick, depth) if depth else tick
            yield quote
        elif isinstance(tick, Trade) and depth and tick.symbol in quotes:
            # Until the bottom, all trades are sales at the bid.
            quote = quotes[tick.symbol]
            side = "S" if phase_s < CRASH_S[1] else tick.side
            price = quote.bid_price if side == "S" else quote.ask_price
            yield replace(tick, price=price, side=side)
        else:
            yield tick


def _depth(phase_s: float) -> float:
    """Return the depth of the crash at this phase, from 0 to 1."""
    begin, bottom, end = CRASH_S
    if not begin <= phase_s < end:
        return 0.0
    if phase_s < bottom:
        return (phase_s - begin) / (bottom - begin)
    return ((end - phase_s) / (end - bottom)) ** 2


def _in_panic(quote: Quote, depth: float) -> Quote:
    """Lower a quote, widen its spread up to ten times and shrink its sizes to as little as 10 %."""
    factor = 1 - CRASH_DEPTH * depth
    middle = (quote.bid_price + quote.ask_price) / 2 * factor
    half = (quote.ask_price - quote.bid_price) / 2 * (1 + 9 * depth)
    bid = max(TICK_SIZE, round_to_tick(middle - half))
    left = 1 - 0.9 * depth
    return replace(
        quote,
        bid_price=bid,
        bid_size=max(1.0, round(quote.bid_size * left)),
        ask_price=max(round_to_tick(bid + TICK_SIZE), round_to_tick(middle + half)),
        ask_size=max(1.0, round(quote.ask_size * left)),
    )


def _halt(ticks: Iterator[Tick], start: Time, rng: random.Random) -> Iterator[Tick]:
    quotes: dict[str, Quote] = {}
    factors: dict[str, float] = {}
    halted: set[str] = set()
    numbers: Counter[str] = Counter()
    for tick in ticks:
        symbol = tick.symbol
        if HALT_S[0] <= _phase_s(tick, start) < HALT_S[1]:
            halted.add(symbol)
            if isinstance(tick, Quote) and symbol in quotes:
                yield replace(quotes[symbol], time=tick.time)
            continue
        if symbol in halted:
            # Trading resumes at a new price.
            halted.discard(symbol)
            move = rng.choice((-1, 1)) * rng.uniform(0.02, 0.05)
            factors[symbol] = factors.get(symbol, 1.0) * (1 + move)
        if isinstance(tick, Quote):
            quotes[symbol] = quote = _moved(tick, factors.get(symbol, 1.0))
            yield quote
        elif isinstance(tick, Trade):
            numbers[symbol] += 1
            price = round_to_tick(tick.price * factors.get(symbol, 1.0))
            yield replace(tick, id=numbers[symbol], price=max(TICK_SIZE, price))


def _moved(quote: Quote, factor: float) -> Quote:
    bid = max(TICK_SIZE, round_to_tick(quote.bid_price * factor))
    ask = max(round_to_tick(bid + TICK_SIZE), round_to_tick(quote.ask_price * factor))
    return replace(quote, bid_price=bid, ask_price=ask)


def _crossed(ticks: Iterator[Tick], start: Time, rng: random.Random) -> Iterator[Tick]:
    for tick in ticks:
        # Quotes are crossed in the middle of each period of ten seconds.
        since_s = _elapsed_s(tick, start) % CROSSED_EVERY_S - CROSSED_EVERY_S / 2
        if isinstance(tick, Quote) and 0 <= since_s < CROSSED_FOR_S:
            yield replace(tick, bid_price=tick.ask_price, ask_price=tick.bid_price)
        else:
            yield tick


# -- what reaches the feed


def _gap(ticks: Iterator[Tick], start: Time, rng: random.Random) -> Iterator[Tick]:
    return (tick for tick in ticks if not GAP_S[0] <= _phase_s(tick, start) < GAP_S[1])


def _unchanged(ticks: Iterator[Tick], start: Time, rng: random.Random) -> Iterator[Tick]:
    return ticks


def skew_s(phase_s: float) -> float:
    """Return by how many seconds the venue's clock is ahead at this phase of the minute."""
    first, second = _SKEW_CHANGES_S
    return 0.0 if phase_s < first else SKEW_S if phase_s < second else -SKEW_S


def _skew(tick: Tick, start: Time) -> Tick:
    ahead_ns = round(skew_s(_phase_s(tick, start)) * NS_PER_SECOND)
    return replace(tick, time=Time(tick.time + ahead_ns))


SCENARIOS: Final[dict[str, Scenario]] = {
    "open-burst": Scenario("10 s of silence, then a thousand times the rate, that halves every "
                           "100 ms until it is the usual one", _open_burst),
    "flash-crash": Scenario("prices fall by 10 % in 5 s and come back in 20 s; spreads widen, "
                            "sizes shrink, all sell", _flash_crash),
    "halt": Scenario("20 s without a trade, in which the last quotes are repeated; then it opens "
                     "2 to 5 % away", _halt),
    "crossed": Scenario("every 10 s, for half a second, bids are above asks", _crossed),
    "gap": Scenario("5 s of ticks never come, and the ids of trades jump", _gap),
    "quiet": Scenario("10 s of trading, then 50 s of nothing", _quiet),
    "skewed-clock": Scenario("the venue's clock is right for 20 s, 5 s ahead for 20 s, and 5 s "
                             "behind for 20 s", _unchanged, _skew),
}  # fmt: skip
