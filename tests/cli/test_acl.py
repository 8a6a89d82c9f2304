"""The commands with the users of the aclfile in docs/security.md."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.tickcast.broker.locked import PUBLISHER, SERVER, LockedStore, locked_store


@pytest.fixture
async def store(runtime_dir: Path) -> AsyncIterator[LockedStore]:
    async with locked_store(runtime_dir) as store:
        yield store


async def test_each_command_works_as_its_user(cli: Cli, store: LockedStore) -> None:
    words = ("--redis", store.url_of(PUBLISHER))
    finished = await cli.run("publish", *words, stdin='{"T":"t","S":"A","p":1,"s":1}\n')
    assert (finished.code, finished.err) == (0, "published 1 tick\n")
    assert (await cli.run("synth", "--limit", "5", *words)).code == 0
    async with cli.serving("serve", "--redis", store.url_of(SERVER)):
        pass
    assert await store.refused() == []


async def test_missing_right_is_reported_in_one_line(cli: Cli, store: LockedStore) -> None:
    tick = '{"T":"t","S":"A","p":1,"s":1}\n'
    words = ("publish", "--feed", "cme", "--redis", store.url_of(PUBLISHER))
    finished = await cli.run(*words, stdin=tick)
    assert (finished.code, finished.out) == (1, "")
    assert finished.err == (
        "tickcast: Redis refuses us: No permissions to access a key (SET tickcast:{cme}:epoch)\n"
    )


@pytest.mark.parametrize(
    ("right", "message"),
    [
        ("info", "User tickcast-server has no permissions to run the 'info' command (INFO server)"),
        ("subscribe", "the 'subscribe' command (SUBSCRIBE tickcast:heartbeat:preflight)"),
        ("publish", "the 'publish' command (PUBLISH tickcast:heartbeat:preflight)"),
        ("evalsha_ro", "the 'evalsha_ro' command (EVALSHA_RO "),
        ("zrem", "the 'zrem' command (ZREM tickcast:seats:{seats}:servers)"),
    ],
)
async def test_server_without_a_right_does_not_start(
    cli: Cli, store: LockedStore, right: str, message: str
) -> None:
    await store.take_away(SERVER, right)
    finished = await cli.run("serve", "--port", "0", "--redis", store.url_of(SERVER))
    assert (finished.code, finished.out) == (1, "")
    last = finished.err.splitlines()[-1]
    assert last.startswith("tickcast: Redis refuses us: ")
    assert message in last


async def test_forbidden_feed_is_reported_at_the_start(cli: Cli, store: LockedStore) -> None:
    cli.environment["TICKCAST_FEEDS"] = "live,other"
    finished = await cli.run("serve", "--port", "0", "--redis", store.url_of(SERVER))
    assert finished.code == 1
    assert finished.err.endswith("a key (SET tickcast:{other}:epoch)\n")
