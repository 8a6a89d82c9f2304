from __future__ import annotations

from collections.abc import Callable

import pytest
from redis import exceptions
from redis._parsers.base import BaseParser
from redis.asyncio import Redis

from tickcast.broker import keys
from tickcast.broker.client import check_version, make_client, safe_url, translated_errors
from tickcast.broker.connection import _to_error
from tickcast.wire.errors import (
    AccessDenied,
    BrokerUnavailable,
    BrokerUnsuitable,
    InvalidSettings,
    TickcastError,
)
from tickcast.wire.ticks import CHANNELS, StreamKey


def test_credentials_stay_out_of_messages() -> None:
    assert safe_url("redis://user:secret@host:6379/0") == "redis://host:6379/0"
    with pytest.raises(InvalidSettings) as caught:
        make_client("http://user:secret@host")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://x", "redis://host:port"])
def test_invalid_urls_are_rejected(url: str) -> None:
    with pytest.raises(InvalidSettings, match="redis_url"):
        make_client(url)


async def test_a_redis_that_does_not_listen_is_unavailable() -> None:
    client = make_client("redis://127.0.0.1:1")
    with pytest.raises(BrokerUnavailable, match="no answer from Redis"):
        await check_version(client)
    await client.aclose()


async def test_the_embedded_store_is_new_enough(redis: Redis) -> None:
    await check_version(redis)


@pytest.mark.parametrize(
    ("info", "good"),
    [
        ({"redis_version": "6.2.14"}, False),
        ({"redis_version": "7.0.0"}, True),
        ({"redis_version": "7.2.4", "valkey_version": "7.2.5"}, False),
        ({"redis_version": "7.2.4", "valkey_version": "8.0.1"}, True),
    ],
)
async def test_versions(info: dict[str, str], good: bool, redis: Redis) -> None:
    class Claims:
        async def info(self, section: str) -> dict[str, str]:
            return info

    client: Redis = Claims()  # type: ignore[assignment]
    if good:
        await check_version(client)
    else:
        with pytest.raises(BrokerUnsuitable, match="too old"):
            await check_version(client)


def test_refusals_and_outages_are_distinguished() -> None:
    with pytest.raises(BrokerUnsuitable), translated_errors():
        raise exceptions.NoPermissionError("no")
    with pytest.raises(BrokerUnsuitable), translated_errors():
        raise exceptions.AuthenticationError("no")
    for passing in (
        exceptions.BusyLoadingError("LOADING Redis is loading the dataset in memory"),
        exceptions.ReadOnlyError("READONLY You can't write against a read only replica."),
        exceptions.MasterDownError("MASTERDOWN Link with MASTER is down"),
    ):
        with pytest.raises(BrokerUnavailable, match="no service from Redis"), translated_errors():
            raise passing
    with pytest.raises(BrokerUnsuitable, match="can't do that"), translated_errors():
        raise exceptions.ResponseError("WRONGTYPE Operation against a key")
    with pytest.raises(BrokerUnavailable), translated_errors():
        raise exceptions.TimeoutError


def test_no_two_streams_share_a_key() -> None:
    streams = [
        StreamKey(feed, channel, symbol)
        for feed in ("live", "live-trades")
        for channel in CHANNELS
        for symbol in ("5s", "5s/X", "5s:X", "X", "trades/X", "bars:5s/X")
    ]
    assert len({keys.meta(stream) for stream in streams}) == len(streams)
    for stream in streams:
        assert keys.from_member(stream.feed, keys.to_member(stream)) == stream


def test_all_keys_of_a_stream_share_a_slot() -> None:
    stream = StreamKey("live", "bars:5s", "BTC/USD")
    tags = {
        name[name.index("{") : name.index("}") + 1]
        for name in (keys.meta(stream), keys.history(stream), keys.ticks(stream))
    }
    assert tags == {"{live/bars:5s/BTC/USD}"}


REPLIES = {
    "OOM command not allowed when used memory > 'maxmemory'.": BrokerUnavailable,
    "OOM command not allowed. script: 8a9b, on @user_script:57.": BrokerUnavailable,
    "NOREPLICAS Not enough good replicas to write.": BrokerUnavailable,
    "MISCONF Valkey is configured to save snapshots, but can't persist on disk.": BrokerUnavailable,
    "BUSY Redis is busy running a script.": BrokerUnavailable,
    "LOADING Redis is loading the dataset in memory": BrokerUnavailable,
    "CLUSTERDOWN The cluster is down": BrokerUnavailable,
    "MASTERDOWN Link with MASTER is down": BrokerUnavailable,
    "READONLY You can't write against a read only replica.": BrokerUnavailable,
    "TRYAGAIN Multiple keys request during rehashing of slot": BrokerUnavailable,
    "SOMETHINGNEW that may pass": BrokerUnavailable,
    "ERR unknown command 'SPUBLISH', with args beginning with: 'x'": BrokerUnsuitable,
    "ERR DB index is out of range": BrokerUnsuitable,
    "WRONGTYPE Operation against a key holding the wrong kind of value": BrokerUnsuitable,
    "WRONGPASS invalid username-password pair or user is disabled.": BrokerUnsuitable,
    "NOAUTH Authentication required.": BrokerUnsuitable,
    "NOPERM User x has no permissions to run the 'set' command": AccessDenied,
    "MOVED 3999 127.0.0.1:6381": BrokerUnsuitable,
    "CROSSSLOT Keys in request don't hash to the same slot": BrokerUnsuitable,
}


@pytest.mark.parametrize(("reply", "expected"), REPLIES.items())
@pytest.mark.parametrize("parse", [BaseParser.parse_error, _to_error])
def test_only_listed_error_codes_are_permanent(
    parse: Callable[[str], Exception], reply: str, expected: type[TickcastError]
) -> None:
    with pytest.raises(TickcastError) as caught, translated_errors():
        raise parse(reply)
    assert type(caught.value) is expected
