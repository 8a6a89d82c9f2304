"""Generate a synthetic market that looks like a real one, and publish it.

The same seed gives the same ticks.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final, Literal

from tickcast.broker.publisher import FeedPublisher
from tickcast.wire.ticks import Tick, new_quote, new_trade
from tickcast.wire.times import NS_PER_SECOND, Time

VENUE: Final = "SYNTH"
_NAMES: Final = (
    "ACME BOLT CRUX DYNA ECHO FLUX GYRO HALO IRIS JADE KITE LUNA MESA NOVA ONYX PYRE QUAD RUNE "
    "SAGE TIDE UMBR VALE WREN XENO YARN ZEST"
).split()
_YEAR_S: Final = 252 * 6.5 * 3600
_QUOTE_SHARE: Final = 0.65
TICK_SIZE: Final = 0.01
_LOT: Final = 100
_BATCH_TICKS_MAX: Final = 500


def symbol_names(count: int) -> list[str]:
    """Return symbols for a synthetic market, the most active first."""
    return [*_NAMES[:count], *(f"SYN{number}" for number in range(len(_NAMES) + 1, count + 1))]


def generate(symbols: Sequence[str], rate: float, seed: int, start: Time) -> Iterator[Tick]:
    """Yield endless trades and quotes in time order.

    Args:
        rate: ticks per second on average, over all symbols; gaps between ticks are random.
        start: the time of the first tick.
    """
    rng = random.Random(seed)
    instruments = [_Instrument(symbol, rng) for symbol in symbols]
    # A few symbols cause most of the activity, as in any market.
    weights = list(accumulate(1 / (rank + 2) for rank in range(len(symbols))))
    elapsed_s = 0.0
    while True:
        (instrument,) = rng.choices(instruments, cum_weights=weights)
        yield from instrument.step(Time(start + round(elapsed_s * NS_PER_SECOND)), elapsed_s)
        elapsed_s += rng.expovariate(rate)


class _Instrument:
    """One symbol: a fair price that follows a random walk, and a one-level book around it."""

    def __init__(self, symbol: str, rng: random.Random) -> None:
        self._symbol = symbol
        self._rng = rng
        self._fair = math.exp(rng.uniform(math.log(8), math.log(600)))
        self._volatility = rng.uniform(0.25, 0.9)
        self._half_spread = TICK_SIZE * max(1, round(self._fair * rng.uniform(0.5e-4, 3e-4) / 0.01))
        self._stepped_s = 0.0
        self._trades = 0
        self._bid = self._ask = 0.0
        self._move(0.0)

    def step(self, time: Time, elapsed_s: float) -> Iterator[Tick]:
        """Yield the next event: a new quote, or a trade at one of the quoted prices."""
        if self._rng.random() < _QUOTE_SHARE:
            self._move(elapsed_s)
            yield new_quote(
                symbol=self._symbol,
                bid_venue=VENUE,
                bid_price=self._bid,
                bid_size=self._size(),
                ask_venue=VENUE,
                ask_price=self._ask,
                ask_size=self._size(),
                time=time,
            )
        else:
            side: Literal["B", "S"] = "B" if self._rng.random() < 0.5 else "S"
            self._trades += 1
            price = self._ask if side == "B" else self._bid
            # A trade pushes the price in its direction.
            self._fair += (price - self._fair) * 0.1
            yield new_trade(
                symbol=self._symbol,
                id=self._trades,
                venue=VENUE,
                price=price,
                size=self._size(),
                side=side,
                time=time,
            )

    def _move(self, elapsed_s: float) -> None:
        years = max(elapsed_s - self._stepped_s, 0.05) / _YEAR_S
        self._stepped_s = elapsed_s
        # More volatile than a real day, so that even a single minute is worth watching.
        self._fair *= math.exp(self._rng.gauss(0.0, 4 * self._volatility * math.sqrt(years)))
        half = self._half_spread * self._rng.choice((0.5, 1.0, 1.0, 1.5))
        self._bid = max(TICK_SIZE, round_to_tick(self._fair - half))
        self._ask = max(self._bid + TICK_SIZE, round_to_tick(self._fair + half))
        self._ask = round_to_tick(self._ask)

    def _size(self) -> float:
        return float(_LOT * max(1, round(self._rng.lognormvariate(0.7, 0.9))))


def round_to_tick(price: float) -> float:
    """Round a price to the nearest one that can be quoted."""
    return round(round(price / TICK_SIZE) * TICK_SIZE, 2)


async def play(
    ticks: Iterable[Tick],
    publisher: FeedPublisher,
    stamp: Callable[[Tick], Tick] = lambda tick: tick,
) -> None:
    """Publish ticks at the pace of their times.

    The schedule is fixed at the start: after a delay, the following ticks catch up with it.

    Args:
        stamp: returns the tick to publish in place of a tick. The original tick's time determines
            when it is due.
    """
    clock = asyncio.get_running_loop().time
    began_s = clock()
    first: Time | None = None
    batch: list[Tick] = []
    for tick in ticks:
        first = tick.time if first is None else first
        ahead_s = (tick.time - first) / NS_PER_SECOND - (clock() - began_s)
        if ahead_s > 0 or len(batch) >= _BATCH_TICKS_MAX:
            await publisher.publish(batch)
            batch = []
            await asyncio.sleep(max(0.0, ahead_s))
        batch.append(stamp(tick))
    await publisher.publish(batch)
    await publisher.flush()
