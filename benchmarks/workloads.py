"""Define the subscriptions and the publishing schedules, which are the same for every peer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple


class Workload(NamedTuple):
    """The number of clients, the symbols of each, and the total number of ticks per second."""

    name: str
    clients: int
    symbols: int
    symbols_each: int
    rate: int
    burst: int = 1

    def symbol_names(self) -> list[str]:
        """Return all symbols that are published."""
        return [f"SYM{number}" for number in range(self.symbols)]

    def wanted(self) -> list[list[str]]:
        """Return the symbols that each client subscribes to."""
        dice = random.Random(1)
        return [dice.sample(self.symbol_names(), self.symbols_each) for _ in range(self.clients)]

    def schedule(self, seconds: float, seed: int) -> Iterator[tuple[float, str]]:
        """Yield the seconds from the start and the symbol of every tick."""
        dice = random.Random(seed)
        symbols = self.symbol_names()
        for turn in range(round(seconds * self.rate / self.burst)):
            due = turn * self.burst / self.rate
            for _ in range(self.burst):
                yield due, dice.choice(symbols)

    def deliveries(self, seconds: float, seed: int) -> int:
        """Return the number of ticks that all clients together should receive."""
        published = Counter(symbol for _, symbol in self.schedule(seconds, seed))
        return sum(published[symbol] for wanted in self.wanted() for symbol in wanted)


WORKLOADS = (
    Workload("W1@100", 1000, 1, 1, 100),
    Workload("W1@1000", 1000, 1, 1, 1000),
    Workload("W2@200", 500, 100, 20, 200),
    Workload("W2@1000", 500, 100, 20, 1000),
    Workload("W2@5000", 500, 100, 20, 5000),
    Workload("W3", 1000, 1, 1, 1000, burst=100),
)
SLOW = Workload("slow", 1000, 10, 10, 2000, burst=100)
"""For slow.py: enough bytes to overflow a stalled client's kernel buffer quickly."""
BY_NAME = {work.name: work for work in (*WORKLOADS, SLOW)}
