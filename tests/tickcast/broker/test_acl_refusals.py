"""Actions that users with minimal rights are refused, and the resulting errors."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.conftest import running_server, until
from tests.faults.valkey import Valkey
from tests.talk import talking
from tests.tickcast.broker.locked import (
    ADMIN,
    BAR_MAKER,
    PUBLISHER,
    READER,
    SERVER,
    USERS,
    LockedStore,
    block,
    client_of,
    locked_store,
)
from tests.tickcast.broker.stores import numbered
from tickcast.broker.publisher import FeedPublisher
from tickcast.broker.store import Store
from tickcast.settings import Settings
from tickcast.wire.errors import AccessDenied
from tickcast.wire.ticks import StreamKey

META, HISTORY = "tickcast:{live/trades/ES}:meta", "tickcast:{live/trades/ES}:history"
FOREIGN_META, FOREIGN_HISTORY = META.replace("live", "cme"), HISTORY.replace("live", "cme")
EVERYBODY = [
    *("FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "RANDOMKEY", "DBSIZE", "SELECT 1"),
    *("CONFIG GET *", "CONFIG SET dir /", "ACL LIST", "ACL SETUSER x on", "ACL LOG", "MONITOR"),
    *("CLIENT LIST", "CLIENT KILL ID 1", "SHUTDOWN", "SAVE", "DEBUG SLEEP 1", "REPLICAOF x 1"),
    *("FUNCTION LIST", "SCRIPT FLUSH", "SCRIPT KILL", "MULTI", "SWAPDB 0 1"),
    *("GET other", "SET other 1", "DEL other", "PUBLISH other x", "SUBSCRIBE other"),
    *("PSUBSCRIBE *", "PSUBSCRIBE tickcast:*"),
    *(f"DEL {META}", f"XTRIM {HISTORY} MAXLEN 0", f"RENAME {META} x", f"RESTORE {META} 0 x"),
    *("DEL tickcast:{live}:epoch", "DEL tickcast:{live}:streams", f"DUMP {META}"),
    *(f"EVAL x 1 {META}", f"EVAL_RO x 1 {META}", "EVAL x 1 tickcast:{live}:epoch"),
]
REFUSED = {
    PUBLISHER: [
        *(f"HMGET {FOREIGN_META} seq", f"HSET {FOREIGN_META} seq 1"),
        *(f"XRANGE {FOREIGN_HISTORY} - +", f"XADD {FOREIGN_HISTORY} * b x"),
        *(f"DEL {FOREIGN_HISTORY}", "SET tickcast:{cme}:epoch x", "GET tickcast:{cme}:epoch"),
        *("SADD tickcast:{cme}:streams trades/ES", "SMEMBERS tickcast:{cme}:streams"),
        *("PUBLISH tickcast:{cme/trades/ES}:ticks x", "PUBLISH tickcast:{cme}:announcements x"),
        *("PUBLISH tickcast:heartbeat:x x", "SUBSCRIBE tickcast:{live/trades/ES}:ticks"),
        *(f"EVALSHA x 2 {FOREIGN_META} {FOREIGN_HISTORY}", "EVALSHA x 1 tickcast:{cme}:epoch"),
        *("SREM tickcast:{live}:streams trades/ES", "HGETALL tickcast:seats:{seats}:all"),
        *("GET tickcast:limits:x", "ZADD tickcast:seats:{seats}:servers 1 x"),
        *("HSET tickcast:{cme}:replay owner x", "PUBLISH tickcast:{cme}:replay:commands x"),
        *("SUBSCRIBE tickcast:{cme}:replay:replies", "SUBSCRIBE tickcast:{live}:replay:states"),
    ],
    BAR_MAKER: [
        *(f"XADD {HISTORY} * b x", f"HSET {META} latest x", f"DEL {HISTORY}"),
        *(f"EVALSHA x 2 {META} {HISTORY}", f"HGETALL {META}", f"XDEL {HISTORY} 1-1"),
        *("PUBLISH tickcast:{live/trades/ES}:ticks x", "PUBLISH tickcast:{live/quotes/ES}:ticks x"),
        *("SUBSCRIBE tickcast:{live/quotes/ES}:ticks", "SUBSCRIBE tickcast:{cme/trades/ES}:ticks"),
        *(f"HMGET {FOREIGN_META} seq", f"EVALSHA_RO x 2 {FOREIGN_META} {FOREIGN_HISTORY}"),
        *("SET tickcast:{cme}:maker:bars x", "EVALSHA x 1 tickcast:{cme}:maker:bars"),
        *("SREM tickcast:{live}:streams trades/ES", "GET tickcast:limits:x"),
    ],
    SERVER: [
        "GET tickcast:{live}:maker:bars",
        *(f"XADD {HISTORY} * b x", f"XDEL {HISTORY} 1-1"),
        *("EVALSHA x 1 tickcast:{live}:streams", "EVALSHA x 1 tickcast:{live}:replay"),
        *("PUBLISH tickcast:{live/trades/ES}:ticks x", "PUBLISH tickcast:{live}:announcements x"),
        *("SADD tickcast:{live}:streams trades/ES", "SREM tickcast:{live}:streams trades/ES"),
        *("GET tickcast:{other}:epoch", "SUBSCRIBE tickcast:{other}:announcements"),
        *("DEL tickcast:limits:x", "DEL tickcast:seats:{seats}:servers"),
        *("HSET tickcast:{live}:replay owner x", "SUBSCRIBE tickcast:{live}:replay:commands"),
        *("PUBLISH tickcast:{live}:replay:replies x", "PUBLISH tickcast:{live}:replay:states x"),
    ],
    READER: [
        *(f"HSET {META} latest x", f"HDEL {META} latest", f"XADD {HISTORY} * b x"),
        *(f"DEL {HISTORY}", f"PEXPIRE {HISTORY} 1", f"XDEL {HISTORY} 1-1"),
        *("SET tickcast:{live}:epoch x", "PERSIST tickcast:{live}:epoch"),
        *("SADD tickcast:{live}:streams trades/ES", "PUBLISH tickcast:heartbeat:x x"),
        *("PUBLISH tickcast:{live/trades/ES}:ticks x", f"EVALSHA x 1 {META}"),
        *(f"EVALSHA x 2 {META} {HISTORY}", f"FCALL x 1 {META}", "INFO"),
        *("HGETALL tickcast:seats:{seats}:all", "GET tickcast:limits:x", f"HGETALL x{META}"),
        *("DEL tickcast:{live}:replay", "PUBLISH tickcast:{live}:replay:commands x"),
        *("GET tickcast:{other}:epoch", "SUBSCRIBE tickcast:{other/trades/ES}:ticks"),
    ],
}


@pytest.fixture
async def store(runtime_dir: Path) -> AsyncIterator[LockedStore]:
    async with locked_store(runtime_dir) as store:
        yield store


async def test_each_user_is_refused_everything_else(store: LockedStore) -> None:
    for user, commands in REFUSED.items():
        answers = {command: await store.may(user, command) for command in EVERYBODY + commands}
        # An unknown command or a wrong number of arguments would not count as a refusal for the
        # user.
        wrong = {command: said for command, said in answers.items() if "permissions" not in said}
        assert wrong == {}, user


async def test_a_reader_writes_nothing_in_scripts_either(store: LockedStore) -> None:
    async with client_of(store, READER) as client:
        script = await client.script_load("return redis.call('HSET', KEYS[1], 'seq', 1)")
        pipeline = client.pipeline(transaction=False)
        pipeline.evalsha_ro(script, 1, META)
        (answer,) = await pipeline.execute(raise_on_error=False)
    assert isinstance(answer, Exception)
    assert await store.ask("EXISTS", META) == 0


async def test_a_file_that_is_not_completed_starts_no_store(runtime_dir: Path) -> None:
    store = Valkey(runtime_dir)
    (runtime_dir / "users.acl").write_text(block("acl").replace("\n  (", " ("))
    try:
        with pytest.raises(AssertionError, match="password hash must be exactly 64 characters"):
            await store.start(aclfile=str(runtime_dir / "users.acl"))
    finally:
        await store.close()


def test_every_user_has_a_password_and_only_the_administrator_all_rights() -> None:
    lines = [line for line in block("acl").splitlines() if not line.startswith("  (")]
    assert [line.split()[1] for line in lines] == list(USERS)
    for name, line in zip(USERS, lines, strict=True):
        assert line.startswith(f"user {name} reset on #SHA256-OF-ITS-PASSWORD ")
        assert ("+@all" in line) == (name == ADMIN)
        assert "nopass" not in line


# ----------------------------------------------------------------------------------------- messages


async def test_the_wrong_feed_is_refused_by_name(store: LockedStore, settings: Settings) -> None:
    async with client_of(store, PUBLISHER) as client:
        with pytest.raises(AccessDenied, match=r"a key \(SET tickcast:\{cme\}:epoch\)$"):
            await FeedPublisher(client, "cme", settings).__aenter__()
        with pytest.raises(AccessDenied, match=r"a key \(HMGET tickcast:\{cme/trades/ES\}:meta\)$"):
            await Store(client).heads([StreamKey("cme", "trades", "ES")])


async def test_a_publisher_that_lacks_a_right_in_a_script_ends(
    store: LockedStore, settings: Settings
) -> None:
    await store.take_away(PUBLISHER, "xadd")
    told = re.escape(f"run the 'xadd' command (EVALSHA {META} {HISTORY})")
    async with client_of(store, PUBLISHER) as client, asyncio.timeout(10):
        with pytest.raises(AccessDenied, match=told):
            async with FeedPublisher(client, "live", settings, waits=True) as publisher:
                await publisher.publish(numbered(1))


async def test_a_right_withdrawn_while_a_server_runs_is_logged(
    store: LockedStore, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        client_of(store, PUBLISHER) as client,
        FeedPublisher(client, "live", settings) as publisher,
    ):
        await publisher.publish(numbered(1))
    async with running_server(settings, store.url_of(SERVER)) as server:
        await store.take_away(SERVER, "xrange")
        async with talking(server.stream) as talk:
            await talk.ask(action="subscribe", trades=["ES"], start="2000-01-01T00:00:00Z")
            told = "run the 'xrange' command (EVALSHA_RO tickcast:"
            await until(lambda: any(told in line for line in errors_in(caplog)))


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.ERROR]
