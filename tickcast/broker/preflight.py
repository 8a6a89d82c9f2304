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

_NAME: Final = "rehearsal"


async def rehearse(client: Redis, feeds: Sequence[str]) -> None:
    """Read and subscribe like a server, in the given feeds or else in the default feed.

    Like a first client, this gives a feed without an epoch one that lasts for a day. It leaves
    nothing else behind. A server's writes after a loss of data are not checked, because that would
    mean doing them.

    Raises:
        BrokerUnavailable, BrokerUnsuitable: see `translated_errors`. `AccessDenied` names the
            command and its keys.
    """
    store = Store(client)
    channels = [keys.heartbeat(_NAME)]
    for feed in feeds or (DEFAULT_FEED,):
        nowhere = StreamKey(feed, "trades", "")
        await store.epoch(feed)
        await store.streams(feed)
        await store.heads([nowhere])
        await store.history(nowhere, 0)
        await read_state(client, feed)
        channels += [keys.announcements(feed), keys.ticks(nowhere), keys.replay_states(feed)]
    channels = [channel_of(client, channel) for channel in channels]
    await _subscribe(client, channels)
    with translated_errors():
        await client.zrem(keys.CONNECTION_SERVERS, _NAME)
        await client.hgetall(keys.connections(_NAME))
        await client.get(f"{keys.ATTEMPTS}:{_NAME}")
        await client.publish(channels[0], b"")


async def _subscribe(client: Redis, channels: Sequence[str]) -> None:
    pipe = PipelinedConnection(client)
    try:
        with translated_errors():
            for reply in await pipe.call([("SUBSCRIBE", channel) for channel in channels]):
                if isinstance(reply, exceptions.RedisError):
                    raise reply
    finally:
        await pipe.close()
