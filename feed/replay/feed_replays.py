"""Send the state of a feed's replay to the clients that follow it, and steer it for them.

Such a replay is a program that publishes recorded ticks into the feed; all clients see it.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final, Protocol

from redis.asyncio import Redis

from feed.fanout.hub import Hub
from feed.fanout.outbox import Outbox
from feed.ingest.upstream import Upstream
from tickcast.broker import keys
from tickcast.broker.replays import read_state, steer, unpack_state
from tickcast.wire.actions import SteerReplay
from tickcast.wire.errors import TickcastError, log_level_of
from tickcast.wire.playback import ReplayState, format_speed
from tickcast.wire.times import Instant

_RETRY_S: Final = 1.0
# Each command holds a pooled connection to Redis until the replay has answered.
_COMMANDS_AT_ONCE: Final = 4

logger = logging.getLogger("tickcast.replays")


class ReplayFollower(Protocol):
    """What is needed of a `feed.server.session.Session`."""

    feed: str
    outbox: Outbox

    def send_replay_state(self, state: ReplayState) -> None:
        """Send the state of the feed's replay."""


class FeedReplays:
    """The replays of feeds, and the clients that follow them.

    The server subscribes to replay states only for feeds with such clients.
    """

    def __init__(self, client: Redis, upstream: Upstream, hub: Hub) -> None:
        self._client = client
        self._upstream = upstream
        self._hub = hub
        self._followers: dict[str, set[ReplayFollower]] = {}
        self._command_slots = asyncio.Semaphore(_COMMANDS_AT_ONCE)

    async def follow(self, follower: ReplayFollower) -> None:
        """Send a client the state of the replay now and at each change.

        While Redis is unavailable, the state is sent later.
        """
        followers = self._followers.setdefault(follower.feed, set())
        followers.add(follower)
        try:
            await self._listen(follower.feed)
            state = await read_state(self._client, follower.feed)
        except TickcastError as error:
            _log_failure(error)
            return
        if state is not None and follower in followers:
            follower.send_replay_state(state)

    def unfollow(self, follower: ReplayFollower) -> None:
        """Stop sending replay states to a client."""
        followers = self._followers.get(follower.feed)
        if followers is None:
            return
        followers.discard(follower)
        if not followers:
            del self._followers[follower.feed]
            self._upstream.stop_listening(keys.replay_states(follower.feed))

    async def steer(self, feed: str, action: SteerReplay) -> ReplayState:
        """Steer the replay of a feed and return its new state.

        Raises ReplayFailed, BrokerUnavailable or BrokerUnsuitable.
        """
        command: dict[str, object] = {"do": action.command.value.removeprefix("replay.")}
        if action.position is not None:
            command["position"] = int(action.position)
        if action.speed is not None:
            command["speed"] = format_speed(action.speed)
        async with self._command_slots:
            return await steer(self._client, feed, command)

    async def retry_forever(self) -> None:
        """Retry failed subscriptions to replay states until cancelled."""
        while True:
            await asyncio.sleep(_RETRY_S)
            for feed in list(self._followers):
                is_subscribed = keys.replay_states(feed) in self._upstream.subscriber.channels
                if is_subscribed or feed not in self._followers:
                    continue
                try:
                    await self._listen(feed)
                except TickcastError as error:
                    _log_failure(error)

    async def _listen(self, feed: str) -> None:
        await self._upstream.listen(keys.replay_states(feed), partial(self._on_state, feed))

    def _on_state(self, feed: str, data: bytes) -> None:
        state = unpack_state(data)
        if state is None:
            logger.warning("ignored an invalid replay state in the feed %s", feed)
            return
        # First send the ticks that were published before this state.
        self._hub.flush(Instant.now())
        for follower in list(self._followers.get(feed, ())):
            try:
                follower.send_replay_state(state)
            except Exception:
                # An exception here would end the Redis connection that all clients share.
                logger.exception("a bug in sending a replay state to a client; it is disconnected")
                follower.outbox.fail()


def _log_failure(error: TickcastError) -> None:
    logger.log(log_level_of(error), "no replay states for now: %s", error)
