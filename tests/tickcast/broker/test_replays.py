from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from tests.builders import T0
from tickcast.broker import keys
from tickcast.broker.replays import (
    ControlCommand,
    ReplayControl,
    SeekCommand,
    StatusCommand,
    StepCommand,
    pack_state,
    parse_command,
    read_state,
    steer,
    unpack_state,
)
from tickcast.tasks import cancel_and_wait
from tickcast.wire.errors import ReplayFailed
from tickcast.wire.playback import MAX_SPEED, ReplayMode, ReplayState
from tickcast.wire.times import Time

STATE = ReplayState(ReplayMode.PLAYING, T0, 2.5, T0, Time(T0 + 5))


@asynccontextmanager
async def served(redis: Redis, answer: Any) -> AsyncIterator[list[ControlCommand]]:
    """A replay that answers every command in the same way, and the commands that it received."""
    commands: list[ControlCommand] = []

    async def carry_out(command: ControlCommand) -> ReplayState:
        commands.append(command)
        if isinstance(answer, Exception):
            raise answer
        return answer  # type: ignore[no-any-return]

    task = asyncio.create_task(ReplayControl(redis, "live").serve_commands(carry_out))
    try:
        async with asyncio.timeout(10):
            while dict(await redis.pubsub_numsub(keys.replay_commands("live"))) == {
                keys.replay_commands("live").encode(): 0
            }:
                await asyncio.sleep(0.01)
        yield commands
    finally:
        await cancel_and_wait([task])


@pytest.mark.parametrize("speed", [0.5, 10.0, MAX_SPEED])
def test_a_state_survives_a_round_trip(speed: float) -> None:
    state = STATE._replace(speed=speed)
    assert unpack_state(pack_state(state)) == state


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"state":"x"}', b"[" * 100_000])
def test_invalid_states_become_none(data: bytes) -> None:
    assert unpack_state(data) is None


async def test_one_replay_at_a_time(redis: Redis) -> None:
    first, second = ReplayControl(redis, "live"), ReplayControl(redis, "live")
    await first.announce(STATE)
    await first.announce(STATE._replace(mode=ReplayMode.PAUSED))
    with pytest.raises(ReplayFailed, match="another replay plays into the feed live"):
        await second.announce(STATE)
    await ReplayControl(redis, "other").announce(STATE)
    await second.withdraw(STATE)
    state = await read_state(redis, "live")
    assert state is not None
    assert state.mode is ReplayMode.PAUSED
    await first.withdraw(STATE)
    assert await read_state(redis, "live") is None
    await second.announce(STATE)


async def test_a_replay_expires(redis: Redis) -> None:
    await ReplayControl(redis, "live").announce(STATE)
    assert 0 < await redis.pttl(keys.replay("live")) <= 3000


async def test_states_are_published(redis: Redis) -> None:
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(keys.replay_states("live"))
        control = ReplayControl(redis, "live")
        await control.announce(STATE)
        await control.withdraw(STATE._replace(mode=ReplayMode.ENDED))
        found: list[ReplayState | None] = []
        async with asyncio.timeout(10):
            while len(found) < 2:
                if message := await pubsub.get_message(ignore_subscribe_messages=True, timeout=1):
                    found.append(unpack_state(message["data"]))
    assert found == [STATE, STATE._replace(mode=ReplayMode.ENDED)]


async def test_commands_are_answered(redis: Redis) -> None:
    async with served(redis, STATE) as commands:
        assert await steer(redis, "live", {"do": "status"}) == STATE
        assert await steer(redis, "live", {"do": "seek", "position": "+10m"}) == STATE
    assert [type(command) for command in commands] == [StatusCommand, SeekCommand]


async def test_refusals_are_reported(redis: Redis) -> None:
    async with served(redis, ReplayFailed("not like this")) as commands:
        with pytest.raises(ReplayFailed, match="not like this"):
            await steer(redis, "live", {"do": "pause"})
        with pytest.raises(ReplayFailed, match="invalid command: "):
            await steer(redis, "live", {"do": "explode"})
        await redis.publish(keys.replay_commands("live"), b"\xff" * 2000)
        with pytest.raises(ReplayFailed, match="not like this"):
            await steer(redis, "live", {"do": "pause"})
    assert len(commands) == 2


async def test_steering_without_a_replay_fails(redis: Redis) -> None:
    with pytest.raises(ReplayFailed, match="no replay plays into the feed live"):
        await steer(redis, "live", {"do": "status"})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"do": "pause"},
        {"do": "pause", "id": ""},
        {"do": "pause", "id": 7},
        {"do": "pause", "id": "x" * 65},
        {"do": "pause", "id": "x", "now": True},
        {"do": "seek", "id": "x"},
        {"do": "seek", "id": "x", "position": 1.5},
        {"do": "seek", "id": "x", "position": "x" * 65},
        {"do": "speed", "id": "x", "speed": None},
        {"do": "step", "id": "x", "ticks": 0},
        {"do": "step", "id": "x", "ticks": 10_001},
        {"do": "step", "id": "x" * 2000},
        {"do": "quit", "id": "x"},
    ],
)
def test_invalid_commands_are_rejected(fields: dict[str, Any]) -> None:
    with pytest.raises(ReplayFailed):
        parse_command(msgspec.json.encode(fields))


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff", b"[" * 1000, b"{" * 5000])
def test_invalid_messages_are_rejected(data: bytes) -> None:
    with pytest.raises(ReplayFailed):
        parse_command(data)


def test_commands_are_parsed() -> None:
    assert parse_command(b'{"do":"step","id":"x"}') == StepCommand(id="x", ticks=1)
