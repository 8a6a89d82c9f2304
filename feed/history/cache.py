"""A cache of recently read history, shared by all clients that are catching up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from feed.fanout.encoded_ticks import EncodedFrames, TickBatch, WireFormat, encode_frames
from tickcast.wire.sequence import History
from tickcast.wire.ticks import StreamKey, Tick

# A page of this many ticks fits in one frame.
PAGE_TICKS: Final = 500
CACHE_BYTES: Final = 32 * 1024 * 1024
# The approximate size of a tick in memory.
TICK_BYTES: Final = 300


class HistoryPage:
    """Consecutive ticks of one stream. A full page ends at a multiple of `PAGE_TICKS`.

    The alignment lets clients that request nearly the same history share all frames except the
    first.
    """

    __slots__ = (
        "encoded", "first_seq", "generation", "key", "published_us", "size_bytes", "ticks",
    )  # fmt: skip

    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.first_seq = 0
        self.ticks: list[Tick] = []
        self.published_us: list[int] = []
        # Parts that were encoded for a client, by wire format, first and last number.
        self.encoded: dict[tuple[WireFormat, int, int], EncodedFrames] = {}
        # The approximate size in memory, including the encoded parts.
        self.size_bytes = 0
        # When it was last used; see `HistoryCache.drop_unused`.
        self.generation = 0

    @property
    def last_seq(self) -> int:
        """The sequence number of the last tick."""
        return self.first_seq + len(self.ticks) - 1

    def append(self, ticks: Sequence[Tick], published_us: Sequence[int]) -> None:
        """Append the next ticks."""
        if not self.ticks:
            self.first_seq = ticks[0].seq or 0
        self.ticks += ticks
        self.published_us += published_us
        self.size_bytes += TICK_BYTES * len(ticks)

    def includes(self, other: HistoryPage) -> bool:
        """Whether it contains all ticks of another version of the same page."""
        return self.first_seq <= other.first_seq and other.last_seq <= self.last_seq

    def extend_from(self, other: HistoryPage) -> None:
        """Append the ticks that another version of the same page has beyond this one's end.

        Does nothing if there would be a hole in between.
        """
        known = self.last_seq + 1 - other.first_seq
        if 0 <= known < len(other.ticks):
            self.append(other.ticks[known:], other.published_us[known:])


class HistoryCache:
    """Pages by stream, epoch and place, of which the least recently used ones are dropped."""

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        # Those that were used last come last.
        self._pages: OrderedDict[tuple[StreamKey, str, int], HistoryPage] = OrderedDict()
        self._generation = 0
        # The approximate size of all pages in memory.
        self.size_bytes = 0

    def find(self, key: StreamKey, epoch: str, seq: int) -> HistoryPage | None:
        """The page that contains a tick; None if it is not cached."""
        place = (key, epoch, (seq - 1) // PAGE_TICKS)
        page = self._pages.get(place)
        if page is None or not page.first_seq <= seq <= page.last_seq:
            return None
        page.generation = self._generation
        self._pages.move_to_end(place)
        return page

    def put(self, key: StreamKey, history: History) -> None:
        """Store a part of a stream's history."""
        for number, page in _split_into_pages(key, history).items():
            self._put_page((key, history.epoch, number), page)
        while self.size_bytes > self._max_bytes:
            self.size_bytes -= self._pages.popitem(last=False)[1].size_bytes

    def _put_page(self, place: tuple[StreamKey, str, int], page: HistoryPage) -> None:
        known = self._pages.get(place)
        if known is not None and known.includes(page):
            page = known
        else:
            if known is not None:
                page.extend_from(known)
                self.size_bytes -= known.size_bytes
            self._pages[place] = page
            self.size_bytes += page.size_bytes
        page.generation = self._generation
        self._pages.move_to_end(place)

    def encode(
        self,
        page: HistoryPage,
        wire_format: WireFormat,
        first_seq: int,
        last_seq: int,
        written_us: int,
    ) -> EncodedFrames:
        """Encode some ticks of a page that `find` has just returned.

        The result is kept for other clients, unless it contains time stamps.
        """
        encoded = page.encoded.get((wire_format, first_seq, last_seq))
        if encoded is None:
            part = slice(first_seq - page.first_seq, last_seq - page.first_seq + 1)
            batch = TickBatch(page.key, page.ticks[part], page.published_us[part])
            encoded = encode_frames(batch, wire_format, written_us)
            if not wire_format.stamps:
                page.encoded[wire_format, first_seq, last_seq] = encoded
                page.size_bytes += len(encoded.data)
                self.size_bytes += len(encoded.data)
        return encoded

    def drop_unused(self) -> None:
        """Drop the pages that were not used since the last call. Call this periodically.

        The cache is therefore only as large as the pages in use, not as large as its limit.
        """
        while self._pages and next(iter(self._pages.values())).generation < self._generation:
            self.size_bytes -= self._pages.popitem(last=False)[1].size_bytes
        self._generation += 1

    def clear(self) -> None:
        """Drop all pages."""
        self._pages.clear()
        self.size_bytes = 0


def page_start(seq: int) -> int:
    """The sequence number before the page that contains the tick after `seq`."""
    return seq // PAGE_TICKS * PAGE_TICKS


def _split_into_pages(key: StreamKey, history: History) -> dict[int, HistoryPage]:
    pages: dict[int, HistoryPage] = {}
    for batch in history.batches:
        ticks = batch.ticks
        while ticks:
            seq = ticks[0].seq or 1
            number = (seq - 1) // PAGE_TICKS
            end = (number + 1) * PAGE_TICKS - seq + 1
            page = pages.get(number)
            if page is None or page.last_seq + 1 != seq:
                # An unreadable batch leaves a hole. Drop the ticks before it.
                page = pages[number] = HistoryPage(key)
            page.append(ticks[:end], [batch.published_us] * len(ticks[:end]))
            ticks = ticks[end:]
    return pages
