"""A feed's replay in Redis: one at a time, with its public state and the commands to it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from tickcast.broker import keys
from tickcast.broker.client import channel_of, execute, translated_errors
from tickcast.broker.scripts import Script
from tickcast.broker.store import Store
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import BrokerUnavailable, ReplayFailed
from tickcast.wire.playback import STEPS_MAX, ReplayState
from tickcast.wire.ticks import StreamKey

# A replay that has not announced itself for this long counts as gone.
EXPIRY_S: Final = 3.0
REPLY_TIMEOUT_S: Final = 5.0
_RETRY_S: Final = 0.5
_POLL_S: Final = 1.0
_PIPELINE_KEYS: Final = 500
_COMMAND_BYTES: Final = 1024

# Atomic, so that of two replays that begin at once one wins, and neither overwrites the other.
_ANNOUNCE: Final = Script("""
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'state', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[2])
return 1
""")
_WITHDRAW: Final = Script("""
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[3], ARGV[2])
return 1
""")

# Use Redis's clock, like the publishers' marks that `publish.lua` writes.
_ADD_PUBLISHER: Final = Script("""
if ARGV[2] == '1' then redis.call('DEL', KEYS[1]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSETNX', KEYS[1], 'since', string.format('%d', now))
redis.call('HSET', KEYS[1], ARGV[1], '')
""")

logger = logging.getLogger("tickcast.replay")


# -- commands


class _Command(Struct, tag_field="do", forbid_unknown_fields=True, kw_only=True):
    """The base of all commands. The reply repeats `id`."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]


class PauseCommand(_Command, tag="pause"):
    """Pause the replay."""


class ResumeCommand(_Command, tag="resume"):
    """Resume the replay."""


class StatusCommand(_Command, tag="status"):
    """Report the state of the replay."""


class SeekCommand(_Command, tag="seek"):
    """Go to a time in the recording, or by an offset from the current one: `+10m`, `-30s`."""

    position: Annotated[str, Meta(max_length=64)] | int


class SpeedCommand(_Command, tag="speed"):
    """Change the speed to a number or `max`."""

    speed: float | Annotated[str, Meta(max_length=32)]


class StepCommand(_Command, tag="step"):
    """Pause, and publish a number of ticks."""

    ticks: Annotated[int, Meta(ge=1, le=STEPS_MAX)] = 1


ControlCommand = (
    PauseCommand | ResumeCommand | StatusCommand | SeekCommand | SpeedCommand | StepCommand
)
_DECODER: Final[msgspec.json.Decoder[ControlCommand]] = msgspec.json.Decoder(ControlCommand)


def parse_command(data: bytes) -> ControlCommand:
    """Parse a command, or raise ReplayFailed."""
    if len(data) > _COMMAND_BYTES:
        raise ReplayFailed(f"the command is longer than {_COMMAND_BYTES} bytes")
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReplayFailed(f"invalid command: {error}") from None


# -- the replay's end


class ReplayControl:
    """The exclusive right to replay into a feed, and the channel for commands to that replay."""

    def __init__(self, client: Redis, feed: str) -> None:
        self._client = client
        self._name = secrets.token_hex(8)
        self.feed = feed
        self.streams = ReplayedStreams(client, feed)

    async def announce(self, state: ReplayState) -> None:
        """Acquire or keep the right to replay, and publish the replay's state.

        Raises ReplayFailed if another replay has the right.
        """
        is_ours = await _ANNOUNCE.call(
            self._client, [keys.replay(self.feed)], self._name, pack_state(state),
            int(EXPIRY_S * 1000), channel_of(self._client, keys.replay_states(self.feed)),
        )  # fmt: skip
        if not is_ours:
            raise ReplayFailed(
                f"another replay plays into the feed {self.feed};"
                " control it with `tickcast replayctl`"
            )

    async def withdraw(self, state: ReplayState) -> None:
        """Publish a last state, and give up the right to replay."""
        await _WITHDRAW.call(
            self._client, [keys.replay(self.feed)], self._name, pack_state(state),
            channel_of(self._client, keys.replay_states(self.feed)),
        )  # fmt: skip

    async def serve_commands(
        self, execute: Callable[[ControlCommand], Awaitable[ReplayState]]
    ) -> None:
        """Execute commands one after the other until cancelled, and wait during outages.

        Args:
            execute: executes a command and returns the new state, or raises ReplayFailed.
        """
        while True:
            try:
                with translated_errors():
                    async with _subscribed(self._client, keys.replay_commands(self.feed)) as pubsub:
                        while True:
                            data = await _next_message(pubsub)
                            if data is not None:
                                await self._answer(data, execute)
            except BrokerUnavailable as error:
                logger.debug("can't receive commands: %s", error)
            await asyncio.sleep(_RETRY_S)

    async def _answer(
        self, data: bytes, execute: Callable[[ControlCommand], Awaitable[ReplayState]]
    ) -> None:
        reply: dict[str, Any] = {"id": (_decode_map(data) or {}).get("id")}
        try:
            reply |= (await execute(parse_command(data))).to_fields()
        except ReplayFailed as error:
            reply["error"] = str(error)
        channel = channel_of(self._client, keys.replay_replies(self.feed))
        await self._client.publish(channel, encode(reply, Encoding.JSON))


class ReplayedStreams:
    """Distinguishes the streams of a feed that replays have published from those of other programs.

    A replay that begins an epoch records the time and the name of its publisher. Each stream's meta
    hash says which publishers have published there, and when. So ticks that another program has
    published since can be detected even after the replay has ended.
    """

    def __init__(self, client: Redis, feed: str) -> None:
        self._client = client
        self._feed = feed

    async def find_others(self) -> list[StreamKey]:
        """Return the streams with ticks that did not come from replays, sorted.

        Bars that are made from replayed trades count as replayed.
        """
        with translated_errors():
            replays: Any = await self._client.hgetall(keys.replayed(self._feed))
        since_ms = int(replays.pop(b"since", 0))
        streams = sorted(await Store(self._client).streams(self._feed))
        traded = {each.symbol for each in streams if each.channel == "trades"}
        others = []
        for start in range(0, len(streams), _PIPELINE_KEYS):
            part = streams[start : start + _PIPELINE_KEYS]
            pipeline = self._client.pipeline(transaction=False)
            for stream in part:
                pipeline.hgetall(keys.meta(stream))
            for stream, fields in zip(part, await execute(pipeline), strict=True):
                is_derived = stream.channel.startswith("bars") and stream.symbol in traded
                if not is_derived and _has_other_ticks(fields, replays, since_ms):
                    others.append(stream)
        return others

    async def add_publisher(self, name: str, *, alone: bool) -> None:
        """Record that a publisher replays into the feed.

        Args:
            alone: no ticks of other publishers are left.
        """
        await _ADD_PUBLISHER.call(self._client, [keys.replayed(self._feed)], name, int(alone))


def _has_other_ticks(
    fields: Mapping[bytes, bytes], replays: Mapping[bytes, bytes], since_ms: int
) -> bool:
    """Whether a stream with this meta hash has ticks of a publisher other than a replay."""
    if int(fields.get(b"seq", 0)) == 0:
        return False
    return not replays or any(
        name.startswith(b"p:") and name not in replays and int(mark.split()[-1]) >= since_ms
        for name, mark in fields.items()
    )


# -- the other end


async def steer(client: Redis, feed: str, command: Mapping[str, object]) -> ReplayState:
    """Send a command to a feed's replay and return its new state.

    Args:
        command: the fields of a command, without `id`.

    Raises:
        ReplayFailed: no replay answers, or it refuses the command.
    """
    id_ = secrets.token_hex(8)
    with translated_errors():
        async with _subscribed(client, keys.replay_replies(feed)) as pubsub:
            receivers = await client.publish(
                channel_of(client, keys.replay_commands(feed)),
                msgspec.json.encode({"id": id_, **command}),
            )
            if not receivers:
                raise ReplayFailed(f"no replay plays into the feed {feed}")
            # Redis confirmed that a program listens, but not that it is alive.
            with suppress(TimeoutError):
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    return await _receive_reply(pubsub, id_)
    raise ReplayFailed(f"the replay of the feed {feed} does not answer")


async def _receive_reply(pubsub: PubSub, id_: str) -> ReplayState:
    while True:
        data = await _next_message(pubsub)
        reply = None if data is None else _decode_map(data)
        if reply is None or reply.get("id") != id_:
            continue
        if "error" in reply:
            raise ReplayFailed(str(reply["error"]))
        try:
            return ReplayState.from_fields(reply)
        except (ValueError, KeyError, TypeError):
            raise ReplayFailed("the replay's answer is invalid") from None


async def read_state(client: Redis, feed: str) -> ReplayState | None:
    """Return the last announced state of a feed's replay, or None without a replay."""
    with translated_errors():
        data: Any = await client.hget(keys.replay(feed), "state")
    return None if data is None else unpack_state(data)


def pack_state(state: ReplayState) -> bytes:
    """Encode a state for Redis, as the JSON map that clients receive."""
    return encode(state.to_fields(), Encoding.JSON)


def unpack_state(data: bytes) -> ReplayState | None:
    """Decode the output of `pack_state`; return None if it is invalid."""
    try:
        return ReplayState.from_fields(_decode_map(data) or {})
    except (ValueError, KeyError, TypeError):
        return None


def _decode_map(data: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


@asynccontextmanager
async def _subscribed(client: Redis, channel: str) -> AsyncIterator[PubSub]:
    """Subscribe to a channel, and wait until Redis has confirmed the subscription."""
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(channel_of(client, channel))
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            while await pubsub.get_message(timeout=_POLL_S) is None:
                pass
        yield pubsub


async def _next_message(pubsub: PubSub) -> bytes | None:
    """Return the next message, or None if none arrives for a while."""
    message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=_POLL_S)
    return message["data"] if message is not None else None
