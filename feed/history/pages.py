"""A cache of recently read history, shared by all clients that are catching up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from feed.fanout.encoded_ticks import TickBatch, WireFormat, encode_batch, pack_frames
from tickcast.wire.sequence import History
from tickcast.wire.ticks import StreamKey, Tick

BLOCK_TICKS: Final = 500
"""The number of ticks in a block, chosen so that a block fits in one frame."""
CACHE_BYTES: Final = 32 * 1024 * 1024
TICK_BYTES: Final = 300
"""The approximate size of a tick in memory."""

_Place = tuple[StreamKey, str, int]
"""The place of a block: its stream, its epoch, and its index."""


class EncodedPage(NamedTuple):
    """Ticks encoded as frames, with the number of frames and ticks."""

    data: bytes
    frames: int
    ticks: int


class HistoryPage:
    """Consecutive ticks of one stream. Blocks are aligned to multiples of `BLOCK_TICKS`.

    Clients that ask for nearly the same history therefore share all frames except the first.

    Attributes:
        size_bytes: the approximate size in memory.
        generation: the generation of the cache that holds the block, if any.
    """

    __slots__ = (
        "_letters", "first_seq", "generation", "key", "published_us", "size_bytes", "ticks",
    )  # fmt: skip

    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.first_seq = 0
        self.ticks: list[Tick] = []
        self.published_us: list[int] = []
        self._letters: dict[tuple[WireFormat, int, int], EncodedPage] = {}
        self.size_bytes = 0
        self.generation: _Generation | None = None

    @property
    def last_seq(self) -> int:
        """The sequence number of the last tick."""
        return self.first_seq + len(self.ticks) - 1

    def _grow(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        if self.generation is not None:
            self.generation.size_bytes += size_bytes

    def add(self, ticks: Sequence[Tick], published_us: int) -> None:
        """Append the next ticks."""
        if not self.ticks:
            self.first_seq = ticks[0].seq or 0
        self.ticks += ticks
        self.published_us += [published_us] * len(ticks)
        self._grow(TICK_BYTES * len(ticks))

    def includes(self, other: HistoryPage) -> bool:
        """Whether it contains all ticks of another block of the same place."""
        return self.first_seq <= other.first_seq and other.last_seq <= self.last_seq

    def extend_from(self, other: HistoryPage) -> None:
        """Append the ticks that another block of the same place has beyond this one's end.

        Does nothing if there would be a hole in between.
        """
        known = self.last_seq + 1 - other.first_seq
        if 0 <= known < len(other.ticks):
            self.ticks += other.ticks[known:]
            self.published_us += other.published_us[known:]
            self._grow(TICK_BYTES * (len(other.ticks) - known))

    def letter(
        self, form: WireFormat, first_seq: int, last_seq: int, written_us: int
    ) -> EncodedPage:
        """Encode some of its ticks as frames, which are cached unless they contain time stamps."""
        found = self._letters.get((form, first_seq, last_seq))
        if found is None:
            part = slice(first_seq - self.first_seq, last_seq - self.first_seq + 1)
            chunk = TickBatch(self.key, self.ticks[part], self.published_us[part])
            found = to_letter(chunk, form, written_us)
            if not form.stamps:
                self._letters[form, first_seq, last_seq] = found
                self._grow(len(found.data))
        return found


def to_letter(chunk: TickBatch, form: WireFormat, written_us: int) -> EncodedPage:
    """Encode ticks as complete frames."""
    data, frames, ticks, _ = pack_frames(encode_batch(chunk, form, written_us), form.encoding)
    return EncodedPage(data, frames, ticks)


class _Generation:
    """Blocks that were used in the same period, and their total size."""

    def __init__(self) -> None:
        self._blocks: dict[_Place, HistoryPage] = {}
        self.size_bytes = 0

    def get(self, place: _Place) -> HistoryPage | None:
        return self._blocks.get(place)

    def put(self, place: _Place, block: HistoryPage) -> None:
        """Add a block, replacing any other of the same place."""
        self.take_out(place)
        self._blocks[place] = block
        self.size_bytes += block.size_bytes
        block.generation = self

    def take_out(self, place: _Place) -> HistoryPage | None:
        block = self._blocks.pop(place, None)
        if block is not None:
            self.size_bytes -= block.size_bytes
            block.generation = None
        return block

    def scatter(self) -> None:
        """Drop all blocks, breaking the reference cycles that only a full collection would free."""
        for block in self._blocks.values():
            block.generation = None
        self._blocks.clear()
        self.size_bytes = 0


class HistoryCache:
    """A cache of blocks in two generations. Unused blocks disappear with the older generation.

    The cache is therefore only as large as the blocks in use, not as large as its limit.
    """

    def __init__(self, max_bytes: int = CACHE_BYTES) -> None:
        self._max_bytes = max_bytes
        self._young = _Generation()
        self._old = _Generation()

    @property
    def size_bytes(self) -> int:
        """The approximate size of all blocks in memory."""
        return self._young.size_bytes + self._old.size_bytes

    def find(self, key: StreamKey, epoch: str, seq: int) -> HistoryPage | None:
        """The block that contains a tick; None if it is not cached."""
        block = self._get((key, epoch, (seq - 1) // BLOCK_TICKS))
        if block is None or not block.first_seq <= seq <= block.last_seq:
            return None
        return block

    def put(self, key: StreamKey, history: History) -> None:
        """Store a page of history."""
        for number, block in _to_blocks(key, history).items():
            place = (key, history.epoch, number)
            known = self._get(place)
            if known is None or not known.includes(block):
                if known is not None:
                    block.extend_from(known)
                self._young.put(place, block)
        if self.size_bytes > self._max_bytes:
            self.age()

    def age(self) -> None:
        """Drop the blocks that were not used since the last call. Call this periodically."""
        self._old.scatter()
        self._old, self._young = self._young, _Generation()

    def clear(self) -> None:
        """Drop all blocks."""
        self._old.scatter()
        self._young.scatter()

    def _get(self, place: _Place) -> HistoryPage | None:
        block = self._young.get(place)
        if block is None and (block := self._old.take_out(place)) is not None:
            self._young.put(place, block)
        return block


def _to_blocks(key: StreamKey, history: History) -> dict[int, HistoryPage]:
    blocks: dict[int, HistoryPage] = {}
    for batch in history.batches:
        ticks = batch.ticks
        while ticks:
            number = ((ticks[0].seq or 1) - 1) // BLOCK_TICKS
            end = (number + 1) * BLOCK_TICKS - (ticks[0].seq or 1) + 1
            block = blocks.get(number)
            if block is None or block.last_seq + 1 != ticks[0].seq:
                # An unreadable batch leaves a hole. Drop the ticks before it.
                block = blocks[number] = HistoryPage(key)
            block.add(ticks[:end], batch.published_us)
            ticks = ticks[end:]
    return blocks


def block_start(seq: int) -> int:
    """The sequence number before the block that contains the tick after `seq`."""
    return seq // BLOCK_TICKS * BLOCK_TICKS
