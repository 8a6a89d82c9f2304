from __future__ import annotations

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from feed.fanout.encoded_ticks import wire_format_for
from feed.history.cache import TICK_BYTES, HistoryCache, HistoryPage
from tests.builders import trades
from tickcast.wire.encoding import Encoding
from tickcast.wire.sequence import Batch, History
from tickcast.wire.ticks import StreamKey

TICKS = trades(2200, first_seq=1)


def history(first_seq: int, count: int) -> History:
    batch = Batch("e", list(TICKS[first_seq - 1 : first_seq - 1 + count]))
    return History("e", 9999, [batch], 9999, True)


def size_of(cache: HistoryCache) -> int:
    """Return the size of the contents of a cache, counted independently."""
    pages = cache._pages.values()
    encoded = [each for page in pages for each in page.encoded.values()]
    ticks = sum(len(page.ticks) for page in pages)
    return TICK_BYTES * ticks + sum(len(each.data) for each in encoded)


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 1500), st.integers(1, 700), st.booleans()),
        max_size=25,
    )
)
def test_the_cache_knows_its_size_and_keeps_to_its_limit(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    limit = 600_000
    cache, wire_format = HistoryCache(limit), wire_format_for(Encoding.JSON)
    for symbol, first_seq, count, drops_unused in steps:
        key = StreamKey("live", "trades", f"S{symbol}")
        cache.put(key, history(first_seq, count))
        page = cache.find(key, "e", first_seq)
        assert page is not None
        cache.encode(page, wire_format, page.first_seq, page.last_seq, 0)
        if drops_unused:
            cache.drop_unused()
        assert cache.size_bytes == size_of(cache)
        assert cache.size_bytes <= 2 * limit
    cache.clear()
    assert cache.size_bytes == size_of(cache) == 0


class WatchedPage(HistoryPage):
    """A page that can be weakly referenced, to see when it is freed."""


def test_dropped_pages_are_freed_at_once() -> None:
    """They must not wait for the next full collection, because a server runs few of those."""

    def drop_twice(cache: HistoryCache) -> None:
        cache.drop_unused()
        cache.drop_unused()

    key = StreamKey("live", "trades", "ES")
    cache = HistoryCache()
    for drop in (HistoryCache.clear, drop_twice):
        page = WatchedPage(key)
        page.append(history(1, 10).batches[0].ticks, [0] * 10)
        cache._put_page((key, "e", 0), page)
        watched = weakref.ref(page)
        del page
        gc.disable()
        try:
            drop(cache)
            assert watched() is None
        finally:
            gc.enable()
