"""Access to persistent state in Redis: epochs, the directory of streams, latest ticks, history."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.client import execute, translated_errors
from tickcast.broker.scripts import Script
from tickcast.wire.encoding import unpack
from tickcast.wire.errors import InvalidTick
from tickcast.wire.sequence import (
    Batch,
    History,
    SequenceEvent,
    SequenceTracker,
    TimeLocation,
    assign_seqs,
)
from tickcast.wire.ticks import CHANNELS, StreamKey, Tick, is_symbol
from tickcast.wire.times import Time

# Approximate ticks and bytes in one read of history. Decoding more at once would delay clients.
READ_TICKS: Final = 2_000
READ_BYTES: Final = 256 * 1024
_PIPELINE_KEYS: Final = 500
_UNUSED_EPOCH_S: Final = 86_400

_READ: Final = Script.from_file("history.lua", reads_only=True)
_LOCATE: Final = Script.from_file("locate.lua", reads_only=True)

# If two publishers ask at once, one wins. The stored epoch may be missing, or lower: a server whose
# clock is behind may have made it after a loss. SET also removes the expiry.
_REPLACE_EPOCH: Final = Script("""
local epoch = redis.call('GET', KEYS[1])
if not epoch or epoch <= ARGV[1] then epoch = ARGV[2] end
redis.call('SET', KEYS[1], epoch)
return epoch
""")

_RESTART_STREAM: Final = Script("""
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if not epoch or epoch < ARGV[1] then
  redis.call('DEL', KEYS[2])
  redis.call('HDEL', KEYS[1], 'latest', 'published', 'max')
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'seq', '0')
end
""")


# The ID of an entry in a history, and its fields.
_Entry = tuple[bytes, Sequence[bytes]]

logger = logging.getLogger("tickcast.broker")


class StreamHead(NamedTuple):
    """The current end of a stream; `seq` is 0 without a tick if it was never published."""

    epoch: str
    seq: int
    latest: Tick | None
    # When the latest tick was published, in microseconds since the Unix epoch.
    published_us: int


class Store:
    """Reads streams from Redis, and creates epochs."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def epoch(self, feed: str, keep: bool = False) -> str:
        """Return the feed's epoch. A feed without one gets its first.

        A first epoch expires after a day, unless a publisher asks to keep it. So feed names that
        clients make up leave nothing behind.
        """
        key = keys.epoch(feed)
        first = new_epoch()
        with translated_errors():
            stored = await self._client.set(key, first, nx=True, get=True, ex=_UNUSED_EPOCH_S)
            if keep:
                await self._client.persist(key)
        return _text(stored) or first

    async def begin_epoch(self, feed: str, after: str) -> str:
        """Return an epoch of the feed later than `after`, and create it if necessary."""
        return _text(
            await _REPLACE_EPOCH.call(self._client, [keys.epoch(feed)], after, new_epoch(after))
        )

    async def streams(self, feed: str) -> set[StreamKey]:
        """Return every stream ever published in the feed."""
        return {key async for key in self.iter_streams(feed)}

    async def iter_streams(self, feed: str) -> AsyncIterator[StreamKey]:
        """Iterate over the same streams, so that the caller can pause if there are many."""
        with translated_errors():
            members = await self._client.smembers(keys.directory(feed))
        # Other programs can write to the directory, so check what it contains.
        for member in members:
            key = keys.from_member(feed, _text(member))
            if key.channel in CHANNELS and is_symbol(key.symbol):
                yield key

    async def heads(self, streams: Sequence[StreamKey]) -> list[StreamHead]:
        """Return the current end of each stream, in the given order."""
        heads: list[StreamHead] = []
        for start in range(0, len(streams), _PIPELINE_KEYS):
            pipeline = self._client.pipeline(transaction=False)
            for stream in streams[start : start + _PIPELINE_KEYS]:
                pipeline.hmget(keys.meta(stream), "epoch", "seq", "latest", "published")
            heads += [_to_head(fields) for fields in await execute(pipeline)]
        return heads

    async def history(self, stream: StreamKey, after: int) -> History:
        """Return the oldest retained batches that end after the tick number `after`.

        The first batch may begin at or before `after`. For more, call this again with the number
        that the result reaches, until a result is complete.
        """
        (history,) = await self.histories([(stream, after)])
        return history

    async def histories(self, wanted: Sequence[tuple[StreamKey, int]]) -> list[History]:
        """Like `history`, for several streams at once, in the given order."""
        replies = await _READ.call_all(
            self._client,
            [(_keys_of(stream), (after, READ_TICKS, READ_BYTES)) for stream, after in wanted],
        )
        return [
            _to_history(after, reply) for (_, after), reply in zip(wanted, replies, strict=True)
        ]

    async def read_after(self, stream: StreamKey, tracker: SequenceTracker) -> list[SequenceEvent]:
        """Read history for a tracker that is behind, and return the events to deliver."""
        after = tracker.begin_repair()
        history = await self.history(stream, after)
        if history.epoch != tracker.epoch and after:
            history = await self.history(stream, 0)
        return tracker.repair(history)

    async def locate(self, wanted: Sequence[tuple[StreamKey, Time]]) -> list[TimeLocation]:
        """Return the position of a time in each stream, in the given order."""
        replies = await _LOCATE.call_all(
            self._client, [(_keys_of(stream), (keys.sortable(time),)) for stream, time in wanted]
        )
        pairs = zip(wanted, replies, strict=True)
        return [_to_location(time, reply) for (_, time), reply in pairs]

    async def restart(self, streams: Sequence[StreamKey], epoch: str) -> None:
        """Restart streams that are in an earlier epoch in this one."""
        for start in range(0, len(streams), _PIPELINE_KEYS):
            part = streams[start : start + _PIPELINE_KEYS]
            await _RESTART_STREAM.call_all(
                self._client, [(_keys_of(stream), (epoch,)) for stream in part]
            )


def new_epoch(after: str = "") -> str:
    """Return a unique name for a new epoch, which is greater than `after` as text.

    It consists of the time in microseconds and a random part, in hexadecimal of fixed width.
    """
    us = time.time_ns() // 1000
    if after:
        us = max(us, int(after.partition("-")[0], 16) + 1)
    return f"{us:014x}-{secrets.token_hex(3)}"


def _text(value: object) -> str:
    """Return a reply as text; redis-py's types allow both bytes and str."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _to_head(fields: Sequence[bytes | None]) -> StreamHead:
    epoch, seq, latest, published_us = fields
    if epoch is None or seq is None:
        return StreamHead("", 0, None, 0)
    try:
        name, last, at_us = epoch.decode(), int(seq), int(published_us or 0)
    except ValueError:
        # Another program has written this. One bad stream must not prevent the others from opening.
        logger.warning("left out a stream with invalid numbers: %.60r %.60r", epoch, seq)
        return StreamHead("", 0, None, 0)
    try:
        tick = assign_seqs(unpack(latest), last)[0] if latest else None
    except (InvalidTick, IndexError) as error:
        logger.warning("left out a latest tick: %s", error)
        tick = None
    return StreamHead(name, last, tick, at_us)


def _keys_of(stream: StreamKey) -> tuple[str, str]:
    return keys.meta(stream), keys.history(stream)


def _to_history(after: int, reply: Sequence[Any]) -> History:
    epoch_bytes, seq, complete, entries = reply
    epoch = epoch_bytes.decode()
    batches = list(_to_batches(epoch, entries))
    through = int(seq) if complete else _parse_id(entries[-1])[0]
    return History(epoch, int(seq), batches, max(after, through), bool(complete))


def _to_batches(epoch: str, entries: Iterable[_Entry]) -> Iterable[Batch]:
    for entry in entries:
        last_seq, stored_ms = _parse_id(entry)
        fields = entry[1]
        payload = dict(zip(fields[::2], fields[1::2], strict=False)).get(b"b", b"")
        try:
            ticks = unpack(payload)
        except InvalidTick as error:
            logger.warning("left out history entry %s: %s", entry[0].decode(), error)
            continue
        if ticks:
            yield Batch(epoch, assign_seqs(ticks, last_seq - len(ticks) + 1), stored_ms * 1000)


def _parse_id(entry: _Entry) -> tuple[int, int]:
    """Return the last number and the time in ms, which make up an entry's ID."""
    last_seq, _, stored_ms = entry[0].partition(b"-")
    return int(last_seq), int(stored_ms)


def _to_location(time: Time, reply: Sequence[Any]) -> TimeLocation:
    epoch, seq, found, *entries = reply
    end = int(seq)
    before, trimmed = end, found == b"TRIMMED"
    for batch in _to_batches(epoch.decode(), entries):
        # After trimming, all retained ticks count; otherwise those from the given time on.
        wanted = [tick.seq for tick in batch.ticks if trimmed or tick.time >= time]
        if wanted:
            before = (wanted[0] or 0) - 1
    return TimeLocation(epoch.decode(), end, before, trimmed)
