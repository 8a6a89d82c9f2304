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

_MESSAGE_BYTES: Final = 1024
_Id = Annotated[str, Meta(min_length=1, max_length=64)]


class _Command(Struct, tag_field="do", forbid_unknown_fields=True, kw_only=True):
    """The base of all commands. The reply repeats `id`."""

    id: _Id


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


ReplayCommand = (
    PauseCommand | ResumeCommand | StatusCommand | SeekCommand | SpeedCommand | StepCommand
)
_DECODER: Final[msgspec.json.Decoder[ReplayCommand]] = msgspec.json.Decoder(ReplayCommand)


def parse_command(data: bytes) -> ReplayCommand:
    """Parse a command.

    Raises:
        ReplayFailed: the message is not a valid command.
    """
    if len(data) > _MESSAGE_BYTES:
        raise ReplayFailed(f"a command has at most {_MESSAGE_BYTES} bytes")
    try:
        return _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ReplayFailed(f"no command: {error}") from None


EXPIRY_S: Final = 3.0
"""A replay that has not announced itself for this long counts as gone."""
REPLY_TIMEOUT_S: Final = 5.0
_PAUSE_S: Final = 0.5
_POLL_S: Final = 1.0
_PIPELINE_KEYS: Final = 500

# Atomic, so that of two replays that begin at once one wins, and neither overwrites the other.
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

# Use Redis's clock, like the publishers' marks that `publish.lua` writes.
_NOTE: Final = Script("""
if ARGV[2] == '1' then redis.call('DEL', KEYS[1]) end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSETNX', KEYS[1], 'since', string.format('%d', now))
redis.call('HSET', KEYS[1], ARGV[1], '')
""")

logger = logging.getLogger("tickcast.replay")


class ReplayControl:
    """The exclusive right to replay into a feed, and the channel for commands to that replay.

    Attributes:
        feed: the name of the feed.
        origins: tells which of its streams have been replayed.
    """

    def __init__(self, client: Redis, feed: str) -> None:
        self._client = client
        self.feed = feed
        self._name = secrets.token_hex(8)
        self.origins = ReplayedStreams(client, feed)

    async def announce(self, state: ReplayState) -> None:
        """Take or keep the stage, and publish the replay's state.

        Raises:
            ReplayFailed: another replay has the stage.
            BrokerUnavailable, BrokerUnsuitable: see `translated_errors`.
        """
        done = await _ANNOUNCE.call(
            self._client, [keys.replay(self.feed)], self._name, pack_state(state),
            int(EXPIRY_S * 1000), self._channel(keys.replay_states(self.feed)),
        )  # fmt: skip
        if not done:
            raise ReplayFailed(
                f"another replay plays into the feed {self.feed}; tickcast replayctl steers it"
            )

    async def leave(self, state: ReplayState) -> None:
        """Publish a last state and leave the stage. Raises like `announce`, except ReplayFailed."""
        await _LEAVE.call(
            self._client, [keys.replay(self.feed)], self._name, pack_state(state),
            self._channel(keys.replay_states(self.feed)),
        )  # fmt: skip

    async def serve(self, carry_out: Callable[[ReplayCommand], Awaitable[ReplayState]]) -> None:
        """Carry out commands one after the other until cancelled, and wait during outages.

        Args:
            carry_out: carries out a command and returns the new state, or raises ReplayFailed.
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

    async def _answer(
        self, data: bytes, carry_out: Callable[[ReplayCommand], Awaitable[ReplayState]]
    ) -> None:
        reply: dict[str, Any] = {"id": (_read_map(data) or {}).get("id")}
        try:
            reply |= (await carry_out(parse_command(data))).to_fields()
        except ReplayFailed as error:
            reply["error"] = str(error)
        channel = self._channel(keys.replay_replies(self.feed))
        await self._client.publish(channel, encode(reply, Encoding.JSON))

    def _channel(self, name: str) -> str:
        return channel_of(self._client, name)


class ReplayedStreams:
    """Distinguishes the streams of a feed that replays have published from those of other programs.

    A replay that begins an epoch notes the time and the name of its publisher. Each stream's meta
    hash says which publishers have published there, and when. So ticks that another program has
    published since can be detected even after the replay has ended.
    """

    def __init__(self, client: Redis, feed: str) -> None:
        self._client = client
        self._feed = feed

    async def others(self) -> list[StreamKey]:
        """Return the streams with ticks that did not come from replays, sorted.

        Bars that are made from replayed trades count as replayed.

        Raises:
            BrokerUnavailable, BrokerUnsuitable: see `translated_errors`.
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
            alone: no ticks of other publishers are left.

        Raises:
            BrokerUnavailable, BrokerUnsuitable: see `translated_errors`.
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


async def steer(client: Redis, feed: str, command: Mapping[str, object]) -> ReplayState:
    """Send a command to a feed's replay and return its new state.

    Args:
        command: the fields of a command (see `tickcast.broker.replays`), without an `id`.

    Raises:
        ReplayFailed: there is no replay, it does not answer, or it refuses the command.
        BrokerUnavailable, BrokerUnsuitable: see `translated_errors`.
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


async def _reply(replies: PubSub, id_: str) -> ReplayState:
    while True:
        data = await _next(replies)
        reply = None if data is None else _read_map(data)
        if reply is None or reply.get("id") != id_:
            continue
        if "error" in reply:
            raise ReplayFailed(str(reply["error"]))
        try:
            return ReplayState.from_fields(reply)
        except (ValueError, KeyError, TypeError):
            raise ReplayFailed("the replay gives an answer that makes no sense") from None


async def read_state(client: Redis, feed: str) -> ReplayState | None:
    """Return the last announced state of a feed's replay, or None if there is no replay.

    Raises:
        BrokerUnavailable, BrokerUnsuitable: see `translated_errors`.
    """
    with translated_errors():
        data: Any = await client.hget(keys.replay(feed), "state")
    return None if data is None else unpack_state(data)


def pack_state(state: ReplayState) -> bytes:
    """Encode a state for Redis, as the JSON map that clients receive."""
    return encode(state.to_fields(), Encoding.JSON)


def unpack_state(data: bytes) -> ReplayState | None:
    """Decode the output of `pack_state`; return None if it is invalid."""
    try:
        return ReplayState.from_fields(_read_map(data) or {})
    except (ValueError, KeyError, TypeError):
        return None


def _read_map(data: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


@asynccontextmanager
async def _listening(client: Redis, channel: str) -> AsyncIterator[PubSub]:
    """Subscribe to a channel, and wait until Redis has confirmed the subscription."""
    async with client.pubsub() as heard:
        await heard.subscribe(channel_of(client, channel))
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            while await heard.get_message(timeout=_POLL_S) is None:
                pass
        yield heard


async def _next(heard: PubSub) -> bytes | None:
    """Return the next message, or None if none arrives for a while."""
    message = await heard.get_message(ignore_subscribe_messages=True, timeout=_POLL_S)
    return message["data"] if message is not None else None
