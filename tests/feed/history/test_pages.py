from __future__ import annotations

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from feed.fanout.encoded_ticks import wire_format_for
from feed.history.pages import TICK_BYTES, HistoryCache, HistoryPage
from tests.builders import trades
from tickcast.wire.encoding import Encoding
from tickcast.wire.sequence import Batch, History
from tickcast.wire.ticks import StreamKey


def page(first_seq: int, count: int) -> History:
    return History("e", 9999, [Batch("e", list(trades(count, "ES", first_seq)))], 9999, True)


def weigh(blocks: HistoryCache) -> int:
    """Return the size of the contents of a cache, counted independently."""
    found = [each for part in (blocks._young, blocks._old) for each in part._blocks.values()]
    letters = [letter for block in found for letter in block._letters.values()]
    ticks = sum(len(block.ticks) for block in found)
    return TICK_BYTES * ticks + sum(len(letter.data) for letter in letters)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 1500), st.integers(1, 700), st.booleans()),
        max_size=25,
    )
)
def test_the_cache_knows_its_size_and_keeps_to_its_bound(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    most = 600_000
    blocks, form = HistoryCache(most), wire_format_for(Encoding.JSON)
    for symbol, first_seq, count, ages in steps:
        key = StreamKey("live", "trades", f"S{symbol}")
        blocks.put(key, page(first_seq, count))
        block = blocks.find(key, "e", first_seq)
        assert block is not None
        block.letter(form, block.first_seq, block.last_seq, 0)
        if ages:
            blocks.age()
        assert blocks.size_bytes == weigh(blocks)
        assert blocks.size_bytes <= 2 * most
    blocks.clear()
    assert blocks.size_bytes == weigh(blocks) == 0


class WatchedBlock(HistoryPage):
    """A block that can be weakly referenced, to see when it is freed."""


def test_what_the_cache_lets_go_is_gone_at_once() -> None:
    """It must not wait for the next full collection, because a server runs few of those."""

    def age_twice(blocks: HistoryCache) -> None:
        blocks.age()
        blocks.age()

    key = StreamKey("live", "trades", "ES")
    blocks = HistoryCache()
    for drop in (HistoryCache.clear, age_twice):
        block = WatchedBlock(key)
        block.add(page(1, 10).batches[0].ticks, 0)
        blocks._young.put((key, "e", 0), block)
        watched = weakref.ref(block)
        del block
        gc.disable()
        try:
            drop(blocks)
            assert watched() is None
        finally:
            gc.enable()
