"""Ticks to publish on a fixed schedule, with consecutive numbers as `id`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import Final

import pytest

from producers.recordings.csv import CsvRecording
from tests.conftest import ES_TRADES
from tickcast.broker.publisher import FeedPublisher
from tickcast.wire.ticks import Trade
from tickcast.wire.times import Time

_STEP_S: Final = 0.004
_BATCH_MAX: Final = 500

needs_recording = pytest.mark.skipif(
    not ES_TRADES.exists(), reason="the recorded trades are not beside this checkout"
)


def recorded(limit: int) -> list[Trade]:
    """Yield real trades of ES, numbered."""
    found: list[Trade] = []
    for id_, tick in enumerate(islice(CsvRecording(ES_TRADES, "ES"), limit), 1):
        assert isinstance(tick, Trade)
        tick.id = id_
        found.append(tick)
    assert len(found) == limit
    return found


def made_up(symbols: Iterable[str]) -> Iterator[Trade]:
    """Yield trades of some symbols in turn, endlessly."""
    names = list(symbols)
    for id_ in count(1):
        symbol = names[id_ % len(names)]
        yield Trade(symbol=symbol, id=id_, price=100 + id_ % 50, size=1, time=Time.now())


class Source:
    """Offer ticks to a publisher until they end or it is stopped.

    The schedule is fixed at the start: late ticks are sent at once to catch up.

    Attributes:
        offered: how many ticks the publisher was given; also the id of the last.
        last_ids: the id of the last tick offered of each symbol.
        counts: how many ticks were offered of each symbol.
        ended: True when it offers no more, and everything is published.
    """

    def __init__(self, publisher: FeedPublisher, ticks: Iterable[Trade], rate: float) -> None:
        self.publisher = publisher
        self.rate = rate
        self.offered = 0
        self.last_ids: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.ended = False
        self._ticks = iter(ticks)
        self._over = False

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        while not self._over:
            due = int((clock() - began) * self.rate) - self.offered
            if due > 0:
                await self._offer(min(due, _BATCH_MAX))
            if due < _BATCH_MAX:
                await asyncio.sleep(_STEP_S)
        await self.publisher.flush()
        self.ended = True

    async def _offer(self, number: int) -> None:
        batch = list(islice(self._ticks, number))
        self._over = self._over or len(batch) < number
        for tick in batch:
            assert isinstance(tick.id, int)
            self.last_ids[tick.symbol] = tick.id
            self.counts[tick.symbol] += 1
        self.offered += len(batch)
        await self.publisher.publish(batch)

    def stop(self) -> None:
        """Stop offering ticks; `run` returns when everything is published."""
        self._over = True
