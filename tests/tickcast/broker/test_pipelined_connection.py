from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis import exceptions
from redis.asyncio import Redis

from tests.conftest import until
from tickcast.broker.client import make_client
from tickcast.broker.connection import PipelinedConnection
from tickcast.wire.errors import BrokerUnavailable, BrokerUnsuitable


@pytest.fixture
async def pipe(redis: Redis) -> AsyncIterator[PipelinedConnection]:
    pipe = PipelinedConnection(redis)
    yield pipe
    await pipe.close()


async def test_replies_come_in_the_order_of_the_commands(pipe: PipelinedConnection) -> None:
    commands = [("ECHO", f"{number} ü\r\n") for number in range(5_000)]
    assert await pipe.call(commands) == [words.encode() for _, words in commands]
    assert await pipe.call([("SET", "n", 5), ("GET", b"n"), ("GET", "none")]) == [b"OK", b"5", None]


async def test_an_error_is_the_reply_to_one_command_only(pipe: PipelinedConnection) -> None:
    one, two, three = await pipe.call([("ECHO", "1"), ("EVALSHA", "0" * 40, 0), ("ECHO", "3")])
    assert (one, three) == (b"1", b"3")
    assert isinstance(two, exceptions.NoScriptError)


async def test_a_lost_connection_fails_the_call_and_the_next_call_reconnects(
    pipe: PipelinedConnection, redis: Redis
) -> None:
    (number,) = await pipe.call([("CLIENT", "ID")])
    waiting = asyncio.create_task(pipe.call([("ECHO", "1"), ("BLPOP", "nothing", 0)]))
    await until_blocked(redis)
    await redis.client_kill_filter(_id=str(number))
    with pytest.raises(BrokerUnavailable, match="connection closed"):
        await waiting
    (other,) = await pipe.call([("CLIENT", "ID")])
    assert other > number


async def test_it_can_be_opened_beforehand(pipe: PipelinedConnection, redis: Redis) -> None:
    assert not pipe.is_open
    await pipe.open()
    assert pipe.is_open
    (number,) = await pipe.call([("CLIENT", "ID")])
    await redis.client_kill_filter(_id=str(number))
    await until(lambda: not pipe.is_open)


async def test_a_call_without_an_answer_times_out(
    pipe: PipelinedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tickcast.broker.connection.COMMAND_TIMEOUT_S", 0.05)
    with pytest.raises(BrokerUnavailable, match=r"no answer from Redis: none within 0\.05 s"):
        await pipe.call([("BLPOP", "nothing", 0)])
    assert not pipe.is_open


async def test_late_replies_are_not_mixed_with_those_of_the_next_call(
    pipe: PipelinedConnection, redis: Redis
) -> None:
    waiting = asyncio.create_task(pipe.call([("BLPOP", "list", 0)]))
    await until_blocked(redis)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    later = asyncio.create_task(pipe.call([("ECHO", "mine")]))
    await redis.rpush("list", "not mine")
    assert await later == [b"mine"]


async def test_a_redis_that_does_not_listen_is_unavailable(tmp_path: object) -> None:
    async with make_client(f"unix://{tmp_path}/none") as client:
        with pytest.raises(BrokerUnavailable):
            await PipelinedConnection(client).call([("PING",)])


async def test_a_command_that_is_not_allowed(redis: Redis, redis_url: str) -> None:
    await redis.acl_setuser("nobody", enabled=True, nopass=True, commands=["+hello", "+client"])
    async with make_client(redis_url.replace("unix://", "unix://nobody:@")) as client:
        pipe = PipelinedConnection(client)
        (reply,) = await pipe.call([("GET", "x")])
        assert isinstance(reply, exceptions.NoPermissionError)
        await pipe.close()
    async with make_client(redis_url.replace("unix://", "unix://who:wrong@")) as client:
        with pytest.raises(BrokerUnsuitable):
            await PipelinedConnection(client).call([("PING",)])


async def until_blocked(redis: Redis) -> None:
    async def blocked() -> bool:
        return int((await redis.info("clients"))["blocked_clients"]) > 0

    while not await blocked():
        await asyncio.sleep(0.01)
