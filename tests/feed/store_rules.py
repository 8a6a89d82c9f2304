"""Common rules of state machines over a `World`: changes of the store, and time."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.feed.world import World
from tickcast.wire.ticks import StreamKey

SYMBOLS = ("AA", "AB", "B")
CHANNELS = ("trades", "bars:1s")
PATTERNS = st.lists(st.sampled_from([*SYMBOLS, "*", "A*"]), min_size=1, max_size=3, unique=True)


class StoreRules(RuleBasedStateMachine):
    """Open streams one by one, trim history, and lose the numbering."""

    world: World

    def open_first(self) -> None:
        """Open the streams that exist from the beginning."""
        for channel in CHANNELS:
            for symbol in SYMBOLS[:2]:
                self.world.open(StreamKey("live", channel, symbol))

    @property
    def keys(self) -> list[StreamKey]:
        return sorted(self.world.trackers)

    @rule()
    @precondition(lambda self: len(self.world.trackers) < len(SYMBOLS) * len(CHANNELS))
    def open_another(self) -> None:
        for channel in CHANNELS:
            key = StreamKey("live", channel, SYMBOLS[2])
            if key not in self.world.trackers:
                self.world.open(key)

    @rule(data=st.data(), keep=st.integers(0, 3))
    def trim_history(self, data: st.DataObject, keep: int) -> None:
        stored = self.world.store.stream(data.draw(st.sampled_from(self.keys)))
        del stored.batches[: len(stored.batches) - keep]

    @rule()
    def lose_the_epoch(self) -> None:
        self.world.store.generation += 1
        self.world.store.streams.clear()

    @rule(later_ms=st.sampled_from([0, 5, 60]))
    def flush(self, later_ms: int) -> None:
        self.world.pass_time(later_ms)
