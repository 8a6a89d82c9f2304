"""Recordings in memory, for replays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from tests.builders import T0, trade
from tickcast.wire.ticks import Tick
from tickcast.wire.times import NS_PER_SECOND, Time

SECOND = NS_PER_SECOND


class Recorded:
    """Trades at the given numbers of seconds after T0; the price of each is its position."""

    def __init__(self, *seconds: float, symbol: str = "ES") -> None:
        self.ticks = [
            trade(symbol, time=at(each), price=place) for place, each in enumerate(seconds)
        ]

    @property
    def first(self) -> Time:
        return self.ticks[0].time

    @property
    def last(self) -> Time:
        return max(tick.time for tick in self.ticks)

    def read(self, start: Time | None) -> Iterator[Tick]:
        return (replace(tick) for tick in self.ticks)


def places(ticks: Sequence[Tick]) -> list[int]:
    return [int(tick.price) for tick in ticks]  # type: ignore[union-attr]


def at(seconds: float) -> Time:
    return Time(T0 + round(seconds * SECOND))
