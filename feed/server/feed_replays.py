"""Sends the state of a feed's replay to the clients that follow it."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Final

from redis.asyncio import Redis

from feed.fanout.hub import Hub
from feed.ingest.upstream import Upstream
from feed.server.session import Session
from tickcast.broker import keys
from tickcast.broker.replays import read_state, steer, unpack_state
from tickcast.wire.actions import SteerReplay
from tickcast.wire.errors import TickcastError, log_level_of
from tickcast.wire.playback import ReplayState, format_speed
from tickcast.wire.times import Instant

_LOOK_S: Final = 1.0
_STEERED_AT_ONCE: Final = 4

logger = logging.getLogger("tickcast.replays")


class ReplayFollowers:
    """The clients that follow the replay of their feed.

    The server subscribes to replay states only for feeds with such clients.
    """

    def __init__(self, client: Redis, upstream: Upstream, hub: Hub) -> None:
        self._client = client
        self._upstream = upstream
        self._hub = hub
        self._followers: dict[str, set[Session]] = {}
        self._steering = asyncio.Semaphore(_STEERED_AT_ONCE)

    async def follow(self, session: Session) -> None:
        """Send a client the state of the replay now and at each change.

        While Redis is unavailable, the state is sent later.
        """
        followers = self._followers.setdefault(session.feed, set())
        followers.add(session)
        try:
            await self._listen(session.feed)
            state = await read_state(self._client, session.feed)
        except TickcastError as error:
            logger.log(log_level_of(error), "no word of replays for now: %s", error)
            return
        if state is not None and session in followers:
            session.send_replay_state(state)

    def forget(self, session: Session) -> None:
        """Stop sending replay states to a client."""
        followers = self._followers.get(session.feed)
        if followers is None:
            return
        followers.discard(session)
        if not followers:
            del self._followers[session.feed]
            self._upstream.stop_listening(keys.replay_states(session.feed))

    async def steer(self, feed: str, action: SteerReplay) -> ReplayState:
        """Steer the replay of a feed and return its new state.

        Raises:
            ReplayFailed: no replay is playing, or it refuses.
            BrokerUnavailable, BrokerUnsuitable: Redis does not answer, or refuses.
        """
        command: dict[str, object] = {"do": action.command.value.removeprefix("replay.")}
        if action.position is not None:
            command["position"] = int(action.position)
        if action.speed is not None:
            command["speed"] = format_speed(action.speed)
        # Each command holds a pooled connection until the replay has answered.
        async with self._steering:
            return await steer(self._client, feed, command)

    async def keep_up(self) -> None:
        """Retry failed subscriptions to replay states until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            for feed in list(self._followers):
                known = keys.replay_states(feed) in self._upstream.subscriber.channels
                if known or feed not in self._followers:
                    continue
                try:
                    await self._listen(feed)
                except TickcastError as error:
                    logger.log(log_level_of(error), "no word of replays for now: %s", error)

    async def _listen(self, feed: str) -> None:
        await self._upstream.listen(keys.replay_states(feed), partial(self._take, feed))

    def _take(self, feed: str, data: bytes) -> None:
        state = unpack_state(data)
        if state is None:
            logger.warning("ignored what is no state of a replay in the feed %s", feed)
            return
        # First send the ticks that were published before this state.
        self._hub.flush(Instant.now())
        for session in list(self._followers.get(feed, ())):
            try:
                session.send_replay_state(state)
            except Exception:
                # An exception here would end the Redis connection that all clients share.
                logger.exception("a bug in telling a client of a replay, whose connection ends")
                session.outbox.fail()
