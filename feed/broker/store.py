"""Reading and keeping what outlives a message: epochs, the directory of streams, history."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis

from feed.batch import Batch
from feed.broker import keys
from feed.broker.client import translated_errors
from feed.errors import InvalidTick
from feed.ticks import CHANNELS, StreamKey, Tick, is_symbol, number, unpack

_PIPELINE_KEYS: Final = 500
_PAGE_ENTRIES: Final = 1_000
_UNUSED_EPOCH_S: Final = 86_400

# Of two publishers that ask at once, one wins. The stored epoch may be missing, or lower: a server
# whose clock is behind may have made it after a loss. SET also makes it last.
_REPLACE_EPOCH: Final = """
local epoch = redis.call('GET', KEYS[1])
if not epoch or epoch <= ARGV[1] then epoch = ARGV[2] end
redis.call('SET', KEYS[1], epoch)
return epoch
"""

logger = logging.getLogger("tickcast.broker")


class Head(NamedTuple):
    """Where a stream stands: `seq` 0 and no tick where it was never published.

    `published_us` is when the latest was handed over, microseconds since the Unix epoch.
    """

    epoch: str
    seq: int
    latest: Tick | None
    published_us: int


class History(NamedTuple):
    """A page of a stream's retained batches; `complete` where it reaches the newest."""

    epoch: str
    batches: list[Batch]
    complete: bool


class Store:
    """The read side of the broker, and the owner of the epochs."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def ping(self) -> None:
        """Raises BrokerUnavailable unless the store answers."""
        with translated_errors():
            await self._client.ping()

    async def epoch(self, feed: str, keep: bool = False) -> str:
        """The feed's epoch; a feed without one gets its first.

        Such a first epoch lasts for a day, or for good once a publisher has asked to keep it: names
        that clients make up leave nothing behind.
        """
        key = keys.epoch(feed)
        first = new_epoch()
        with translated_errors():
            stored = await self._client.set(key, first, nx=True, get=True, ex=_UNUSED_EPOCH_S)
            if keep:
                await self._client.persist(key)
        return _text(stored) or first

    async def begin_epoch(self, feed: str, after: str) -> str:
        """An epoch of the feed later than `after`: a new one, unless there is one already."""
        with translated_errors():
            epoch = await self._client.eval(
                _REPLACE_EPOCH, 1, keys.epoch(feed), after, new_epoch(after)
            )
        return _text(epoch)

    async def streams(self, feed: str) -> set[StreamKey]:
        """Every stream that was ever published in the feed."""
        with translated_errors():
            members = await self._client.smembers(keys.directory(feed))
        found = (keys.from_member(feed, _text(member)) for member in members)
        return {key for key in found if key.channel in CHANNELS and is_symbol(key.symbol)}

    async def heads(self, streams: Sequence[StreamKey]) -> list[Head]:
        """Where each of the streams stands now, in the order given."""
        heads: list[Head] = []
        for start in range(0, len(streams), _PIPELINE_KEYS):
            pipeline = self._client.pipeline(transaction=False)
            for stream in streams[start : start + _PIPELINE_KEYS]:
                pipeline.hmget(keys.meta(stream), "epoch", "seq", "latest", "published")
            with translated_errors():
                heads += [_to_head(fields) for fields in await pipeline.execute()]
        return heads

    async def history(self, stream: StreamKey, after: int) -> History:
        """The oldest retained batches that reach beyond the tick number `after`.

        The first batch may begin at or before `after`; ask again after its last tick until the
        answer is complete.
        """
        (history,) = await self.histories([stream], after)
        return history

    async def histories(self, streams: Sequence[StreamKey], after: int = 0) -> list[History]:
        """The same for several streams at once, in the order given."""
        pipeline = self._client.pipeline(transaction=True)
        for stream in streams:
            pipeline.hget(keys.meta(stream), "epoch")
            pipeline.xrange(keys.history(stream), min=str(after + 1), count=_PAGE_ENTRIES)
        with translated_errors():
            replies = await pipeline.execute()
        return [
            History(
                _text(epoch), list(_to_batches(_text(epoch), entries)), len(entries) < _PAGE_ENTRIES
            )
            for epoch, entries in zip(replies[::2], replies[1::2], strict=True)
        ]


def new_epoch(after: str = "") -> str:
    """A name for a new numbering: unique, and greater than `after` as text.

    It is the time in microseconds and a random part, in hexadecimal of a fixed width.
    """
    us = time.time_ns() // 1000
    if after:
        us = max(us, int(after.partition("-")[0], 16) + 1)
    return f"{us:014x}-{secrets.token_hex(3)}"


def _text(value: object) -> str:
    """A reply as text: redis-py's types allow for bytes and str alike."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _to_head(fields: Sequence[bytes | None]) -> Head:
    epoch, seq, latest, published_us = fields
    if epoch is None or seq is None:
        return Head("", 0, None, 0)
    try:
        tick = number(unpack(latest), int(seq))[0] if latest else None
    except (InvalidTick, IndexError) as error:
        logger.warning("left out a latest tick: %s", error)
        tick = None
    return Head(epoch.decode(), int(seq), tick, int(published_us or 0))


def _to_batches(epoch: str, entries: Iterable[tuple[bytes, dict[bytes, Any]]]) -> Iterable[Batch]:
    for entry_id, fields in entries:
        last, _, stored_ms = entry_id.partition(b"-")
        try:
            ticks = unpack(fields[b"b"])
        except (InvalidTick, KeyError) as error:
            logger.warning("left out history entry %s: %s", entry_id.decode(), error)
            continue
        first = int(last) - len(ticks) + 1
        yield Batch(epoch, number(ticks, first), int(stored_ms) * 1000)
