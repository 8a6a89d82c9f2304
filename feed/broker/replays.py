"""A feed's replay in Redis: one at a time, its state for all to see, and commands to it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from feed.broker import keys
from feed.broker.client import channel_of, execute, translated_errors
from feed.broker.scripts import Script
from feed.broker.steering import Command, parse_command
from feed.broker.store import Store
from feed.encoding import Encoding, encode
from feed.errors import BrokerUnavailable, ReplayFailed
from feed.playback import State
from feed.ticks import StreamKey

EXPIRY_S: Final = 3.0
"""So long after it was last heard of, a replay counts as gone."""
REPLY_TIMEOUT_S: Final = 5.0
_PAUSE_S: Final = 0.5
_POLL_S: Final = 1.0
_PIPELINE_KEYS: Final = 500

# In one step: of two that begin at once, one wins, and none writes over another's state.
_ANNOUNCE: Final = Script("""
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'state', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[2])
return 1
""")
_LEAVE: Final = Script("""
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[3], ARGV[2])
return 1
""")

# By the clock of `publish.lua`, which the marks of publishers have.
_NOTE: Final = Script("""
if ARGV[2] == '1' then redis.call('DEL', KEYS[1]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSETNX', KEYS[1], 'since', string.format('%d', now))
redis.call('HSET', KEYS[1], ARGV[1], '')
""")

logger = logging.getLogger("tickcast.replay")


class Stage:
    """The place of a feed's one replay, and the way by which it is steered.

    Attributes:
        feed: its name.
        origins: which of its streams have been replayed.
    """

    def __init__(self, client: Redis, feed: str) -> None:
        self._client = client
        self.feed = feed
        self._name = secrets.token_hex(8)
        self.origins = Origins(client, feed)

    async def announce(self, state: State) -> None:
        """Take the place, or keep it, and tell all who listen.

        Raises:
            ReplayFailed: another replay has it.
            BrokerUnavailable, BrokerUnsuitable: as `translated_errors` says.
        """
        done = await _ANNOUNCE.call(
            self._client, [keys.replay(self.feed)], self._name, pack_state(state),
            int(EXPIRY_S * 1000), self._channel(keys.replay_states(self.feed)),
        )  # fmt: skip
        if not done:
            raise ReplayFailed(
                f"another replay plays into the feed {self.feed}; tickcast replayctl steers it"
            )

    async def leave(self, state: State) -> None:
        """Give the place up, with last words. Raises as `announce` does but for ReplayFailed."""
        await _LEAVE.call(
            self._client, [keys.replay(self.feed)], self._name, pack_state(state),
            self._channel(keys.replay_states(self.feed)),
        )  # fmt: skip

    async def serve(self, carry_out: Callable[[Command], Awaitable[State]]) -> None:
        """Take commands, one after the other, until cancelled; an outage is waited for.

        Args:
            carry_out: does what a command says and returns what came of it, or raises ReplayFailed.
        """
        while True:
            try:
                with translated_errors():
                    async with _listening(self._client, keys.replay_commands(self.feed)) as heard:
                        while True:
                            data = await _next(heard)
                            if data is not None:
                                await self._answer(data, carry_out)
            except BrokerUnavailable as error:
                logger.debug("no commands for now: %s", error)
            await asyncio.sleep(_PAUSE_S)

    async def _answer(self, data: bytes, carry_out: Callable[[Command], Awaitable[State]]) -> None:
        reply: dict[str, Any] = {"id": (_read_map(data) or {}).get("id")}
        try:
            reply |= (await carry_out(parse_command(data))).fields()
        except ReplayFailed as error:
            reply["error"] = str(error)
        channel = self._channel(keys.replay_replies(self.feed))
        await self._client.publish(channel, encode(reply, Encoding.JSON))

    def _channel(self, name: str) -> str:
        return channel_of(self._client, name)


class Origins:
    """Tells the streams of a feed that replays have published from those of other programs.

    A replay that begins an epoch notes when it did so, and the name of its publisher. Each stream's
    meta hash says which publishers have published there, and when. So what another one has
    published since is known, whatever has become of the replay.
    """

    def __init__(self, client: Redis, feed: str) -> None:
        self._client = client
        self._feed = feed

    async def others(self) -> list[StreamKey]:
        """The streams with ticks that did not come from replays, sorted.

        Bars that are made of replayed trades count as replayed.

        Raises:
            BrokerUnavailable, BrokerUnsuitable: as `translated_errors` says.
        """
        with translated_errors():
            noted: Any = await self._client.hgetall(keys.replayed(self._feed))
        since_ms = int(noted.pop(b"since", 0))
        streams = sorted(await Store(self._client).streams(self._feed))
        trades = {each.symbol for each in streams if each.channel == "trades"}
        found = []
        for start in range(0, len(streams), _PIPELINE_KEYS):
            part = streams[start : start + _PIPELINE_KEYS]
            pipeline = self._client.pipeline(transaction=False)
            for stream in part:
                pipeline.hgetall(keys.meta(stream))
            for stream, fields in zip(part, await execute(pipeline), strict=True):
                is_made = stream.channel.startswith("bars") and stream.symbol in trades
                if not is_made and _is_of_others(fields, noted, since_ms):
                    found.append(stream)
        return found

    async def note(self, publisher: str, *, alone: bool) -> None:
        """Note that a publisher replays into the feed.

        Args:
            alone: nothing that others have published is left.

        Raises:
            BrokerUnavailable, BrokerUnsuitable: as `translated_errors` says.
        """
        await _NOTE.call(self._client, [keys.replayed(self._feed)], publisher, int(alone))


def _is_of_others(
    fields: Mapping[bytes, bytes], replays: Mapping[bytes, bytes], since_ms: int
) -> bool:
    """Whether a stream with this meta hash has ticks of a publisher other than a replay."""
    if int(fields.get(b"seq", 0)) == 0:
        return False
    return not replays or any(
        name.startswith(b"p:") and name not in replays and int(mark.split()[-1]) >= since_ms
        for name, mark in fields.items()
    )


async def steer(client: Redis, feed: str, command: Mapping[str, object]) -> State:
    """Send a command to a feed's replay; returns where it stands then.

    Args:
        command: as `feed.broker.steering` describes it, without an `id`.

    Raises:
        ReplayFailed: there is none, it does not answer, or it refuses.
        BrokerUnavailable, BrokerUnsuitable: as `translated_errors` says.
    """
    id_ = secrets.token_hex(8)
    with translated_errors():
        async with _listening(client, keys.replay_replies(feed)) as replies:
            heard_by = await client.publish(
                channel_of(client, keys.replay_commands(feed)),
                msgspec.json.encode({"id": id_, **command}),
            )
            if not heard_by:
                raise ReplayFailed(f"no replay plays into the feed {feed}")
            with suppress(TimeoutError):
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    return await _reply(replies, id_)
    raise ReplayFailed(f"the replay of the feed {feed} does not answer")


async def _reply(replies: PubSub, id_: str) -> State:
    while True:
        data = await _next(replies)
        reply = None if data is None else _read_map(data)
        if reply is None or reply.get("id") != id_:
            continue
        if "error" in reply:
            raise ReplayFailed(str(reply["error"]))
        try:
            return State.of_fields(reply)
        except (ValueError, KeyError, TypeError):
            raise ReplayFailed("the replay gives an answer that makes no sense") from None


async def read_state(client: Redis, feed: str) -> State | None:
    """The state of a feed's replay, as it was last told; None where there is none.

    Raises:
        BrokerUnavailable, BrokerUnsuitable: as `translated_errors` says.
    """
    with translated_errors():
        data: Any = await client.hget(keys.replay(feed), "state")
    return None if data is None else unpack_state(data)


def pack_state(state: State) -> bytes:
    """A state as it is kept and published: the map that clients get, in JSON."""
    return encode(state.fields(), Encoding.JSON)


def unpack_state(data: bytes) -> State | None:
    """Read what `pack_state` wrote; None where it is something else."""
    try:
        return State.of_fields(_read_map(data) or {})
    except (ValueError, KeyError, TypeError):
        return None


def _read_map(data: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


@asynccontextmanager
async def _listening(client: Redis, channel: str) -> AsyncIterator[PubSub]:
    """Messages of a channel, once Redis has confirmed that they will come."""
    async with client.pubsub() as heard:
        await heard.subscribe(channel_of(client, channel))
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            while await heard.get_message(timeout=_POLL_S) is None:
                pass
        yield heard


async def _next(heard: PubSub) -> bytes | None:
    """The next message; None after a while without one."""
    message = await heard.get_message(ignore_subscribe_messages=True, timeout=_POLL_S)
    return message["data"] if message is not None else None
