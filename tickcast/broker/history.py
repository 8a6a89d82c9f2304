"""Reads retained ticks in pages, and finds the position of a time in a stream."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.scripts import Script
from tickcast.wire.encoding import unpack
from tickcast.wire.errors import InvalidTick
from tickcast.wire.sequence import Batch, History, TimeLocation
from tickcast.wire.ticks import StreamKey, assign_seqs
from tickcast.wire.times import Time

PAGE_TICKS: Final = 2_000
"""Approximate ticks in a page; decoding more at once would delay the clients."""
PAGE_BYTES: Final = 256 * 1024

_Entry = tuple[bytes, Sequence[bytes]]

logger = logging.getLogger("tickcast.broker")


_READ: Final = Script.of_file("history.lua", reads_only=True)
_LOCATE: Final = Script.of_file("locate.lua", reads_only=True)


async def read_histories(client: Redis, wanted: Sequence[tuple[StreamKey, int]]) -> list[History]:
    """Return for each stream and number the oldest retained batches that end after the number.

    The first batch may begin at or before the number. Raises like `Script.call`.
    """
    replies = await _READ.call_all(
        client, [(_keys(stream), (after, PAGE_TICKS, PAGE_BYTES)) for stream, after in wanted]
    )
    return [_to_history(after, reply) for (_, after), reply in zip(wanted, replies, strict=True)]


async def locate(client: Redis, wanted: Sequence[tuple[StreamKey, Time]]) -> list[TimeLocation]:
    """Return the position of each time in its stream. Raises like `Script.call`."""
    replies = await _LOCATE.call_all(
        client, [(_keys(stream), (keys.sortable(time),)) for stream, time in wanted]
    )
    return [_to_place(time, reply) for (_, time), reply in zip(wanted, replies, strict=True)]


def _keys(stream: StreamKey) -> tuple[str, str]:
    return keys.meta(stream), keys.history(stream)


def _to_history(after: int, reply: Sequence[Any]) -> History:
    epoch_bytes, seq, complete, entries = reply
    epoch = epoch_bytes.decode()
    batches = list(_to_batches(epoch, entries))
    through = int(seq) if complete else _numbers_of(entries[-1])[0]
    return History(epoch, int(seq), batches, max(after, through), bool(complete))


def _to_batches(epoch: str, entries: Iterable[_Entry]) -> Iterable[Batch]:
    for entry in entries:
        last, stored_ms = _numbers_of(entry)
        try:
            ticks = unpack(_payload_of(entry))
        except InvalidTick as error:
            logger.warning("left out history entry %s: %s", entry[0].decode(), error)
            continue
        if ticks:
            yield Batch(epoch, assign_seqs(ticks, last - len(ticks) + 1), stored_ms * 1000)


def _to_place(time: Time, reply: Sequence[Any]) -> TimeLocation:
    epoch, seq, found, *entries = reply
    end = int(seq)
    before, trimmed = end, found == b"TRIMMED"
    for batch in _to_batches(epoch.decode(), entries):
        # After trimming, all retained ticks are due; otherwise those from the given time on.
        due = [tick.seq for tick in batch.ticks if trimmed or tick.time >= time]
        if due:
            before = (due[0] or 0) - 1
    return TimeLocation(epoch.decode(), end, before, trimmed)


def _numbers_of(entry: _Entry) -> tuple[int, int]:
    """Return the last number and the time in ms, which make up an entry's ID."""
    last, _, stored_ms = entry[0].partition(b"-")
    return int(last), int(stored_ms)


def _payload_of(entry: _Entry) -> bytes:
    fields = entry[1]
    return dict(zip(fields[::2], fields[1::2], strict=False)).get(b"b", b"")
