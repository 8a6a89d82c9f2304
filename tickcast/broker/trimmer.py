"""Keeps the embedded store below its memory limit by trimming history early.

The eviction policies of Redis don't suit: evicting whole keys loses the numbering, and refusing
writes stops the feed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.client import make_client, translated_errors
from tickcast.settings import Settings
from tickcast.wire.errors import TickcastError

_INTERVAL_S: Final = 0.25
_PAUSE_S: Final = 10.0
_HIGH: Final = 0.85
_LOW: Final = 0.70
_SCAN_COUNT: Final = 1000
_MIB: Final = 1 << 20

logger = logging.getLogger("tickcast.store")


async def keep_bounded(
    url: str, settings: Settings, is_ours: Callable[[], bool] = lambda: True
) -> None:
    """Trim the store while `is_ours` is true, until cancelled."""
    client = make_client(url, max_connections=2)
    try:
        while True:
            try:
                has_room = not is_ours() or await trim_if_full(client, settings.store_memory_bytes)
            except TickcastError as error:
                logger.debug("can't look after the store's memory: %s", error)
                has_room = False
            await asyncio.sleep(_INTERVAL_S if has_room else _PAUSE_S)
    finally:
        await client.aclose()


async def trim_if_full(client: Redis, memory_bytes: int) -> bool:
    """Halve the longest histories until there is room again, if memory use is near the limit.

    Each history keeps at least its newest batch, and short histories are not changed. Return False
    if nothing more can be trimmed because there are too many streams for the limit.
    """
    used = await _used_bytes(client)
    if used < _HIGH * memory_bytes:
        return True
    before = used
    lengths = await _history_lengths(client)
    longest = max(lengths.values(), default=0)
    while longest > 1 and used > _LOW * memory_bytes:
        longest = max(1, longest // 2)
        await _trim(client, [key for key, length in lengths.items() if length > longest], longest)
        used = await _used_bytes(client)
    logger.warning(
        "the store is near its bound of %d MiB: history trimmed to %d batches a stream, "
        "%.1f MiB became %.1f MiB",
        memory_bytes // _MIB,
        longest,
        before / _MIB,
        used / _MIB,
    )
    return used <= _LOW * memory_bytes


async def _used_bytes(client: Redis) -> int:
    with translated_errors():
        return int((await client.info("memory"))["used_memory"])


async def _history_lengths(client: Redis) -> dict[bytes, int]:
    with translated_errors():
        found = [
            key async for key in client.scan_iter(keys.ALL_HISTORIES, _SCAN_COUNT, _type="stream")
        ]
        pipeline = client.pipeline(transaction=False)
        for key in found:
            pipeline.xlen(key)
        return dict(zip(found, await pipeline.execute(), strict=True))


async def _trim(client: Redis, histories: list[bytes], length: int) -> None:
    pipeline = client.pipeline(transaction=False)
    for key in histories:
        pipeline.xtrim(key, maxlen=length, approximate=False)
    with translated_errors():
        await pipeline.execute()
