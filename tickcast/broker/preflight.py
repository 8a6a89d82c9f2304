"""Checks before a server starts that it has the permissions that it needs in Redis.

Otherwise the first client or the first outage would reveal a missing permission.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from redis import exceptions
from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.client import channel_of, translated_errors
from tickcast.broker.connection import PipelinedConnection
from tickcast.broker.replays import read_state
from tickcast.broker.store import Store
from tickcast.wire.ticks import DEFAULT_FEED, StreamKey

_NAME: Final = "preflight"


async def preflight(client: Redis, feeds: Sequence[str]) -> None:
    """Read and subscribe like a server, in the given feeds or else in the default feed.

    Like a first client, this gives a feed without an epoch one that lasts for a day. It leaves
    nothing else behind. A server's writes after a loss of data are not checked, because that would
    mean doing them.

    Raises:
        AccessDenied: names the command and its keys.
    """
    store = Store(client)
    channels = [keys.heartbeat(_NAME)]
    for feed in feeds or (DEFAULT_FEED,):
        # No stream has an empty symbol.
        stream = StreamKey(feed, "trades", "")
        await store.epoch(feed)
        await store.streams(feed)
        await store.heads([stream])
        await store.history(stream, 0)
        await read_state(client, feed)
        channels += [keys.announcements(feed), keys.ticks(stream), keys.replay_states(feed)]
    channels = [channel_of(client, channel) for channel in channels]
    await _subscribe(client, channels)
    with translated_errors():
        await client.zrem(keys.CONNECTION_SERVERS, _NAME)
        await client.hgetall(keys.connections(_NAME))
        await client.get(f"{keys.ATTEMPTS}:{_NAME}")
        await client.publish(channels[0], b"")


async def _subscribe(client: Redis, channels: Sequence[str]) -> None:
    connection = PipelinedConnection(client)
    try:
        with translated_errors():
            for reply in await connection.call([("SUBSCRIBE", channel) for channel in channels]):
                if isinstance(reply, exceptions.RedisError):
                    raise reply
    finally:
        await connection.close()
