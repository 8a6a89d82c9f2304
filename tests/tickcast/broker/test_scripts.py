"""Calling scripts on a store that may not have them loaded."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from tests.tickcast.broker.stores import OwnStore
from tickcast.broker.connection import PipelinedConnection
from tickcast.broker.scripts import Script, is_unknown
from tickcast.wire.errors import BrokerUnavailable, BrokerUnsuitable

COUNT = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
READ = Script("return redis.call('GET', KEYS[1])", reads_only=True)
ONE_OF_EACH = [(["a"], ["1"]), (["b"], ["10"]), (["a"], ["2"])]


async def test_an_unknown_script_is_loaded(client: Redis) -> None:
    for _ in range(2):
        assert await COUNT.call(client, ["n"], 5) in (5, 10)
        await client.script_flush()
    assert await READ.call(client, ["n"]) == b"10"


async def test_executed_calls_are_not_repeated(client: Redis) -> None:
    assert await COUNT.call_all(client, ONE_OF_EACH) == [1, 10, 3]
    await client.script_flush()
    assert await COUNT.call_all(client, ONE_OF_EACH) == [4, 20, 6]


async def test_calls_over_a_pipelined_connection(client: Redis) -> None:
    pipe = PipelinedConnection(client)
    try:
        assert await COUNT.call_all(client, ONE_OF_EACH, pipe) == [1, 10, 3]
        await client.script_flush()
        (reply,) = await pipe.call([COUNT.to_command(["a"], "1")])
        assert is_unknown(reply)
        await COUNT.load(client)
        assert await pipe.call([COUNT.to_command(["a"], "1")]) == [4]
    finally:
        await pipe.close()


async def test_errors_are_translated(client: Redis, store: OwnStore) -> None:
    await client.set("text", "x")
    for calls in ([(["text"], ["1"])], [(["a"], ["1"]), (["text"], ["1"])]):
        with pytest.raises(BrokerUnsuitable, match="not an integer"):
            await COUNT.call_all(client, calls)
    with pytest.raises(BrokerUnsuitable):
        await Script("return redis.call('SET', KEYS[1], 1)", reads_only=True).call(client, ["a"])
    store.kill()
    with pytest.raises(BrokerUnavailable):
        await COUNT.call(client, ["a"], 1)
