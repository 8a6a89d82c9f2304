"""`tickcast doctor`, against a real store."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from feed.commands.doctor import (
    check_certificate,
    check_clock,
    check_files,
    check_server,
    examine,
)
from feed.transport.tls import (
    CertificateFiles,
)
from tests.cli.conftest import Cli, Shell
from tests.conftest import RunningServer
from tickcast.settings import Settings


async def levels(settings: Settings) -> dict[str, str]:
    return {finding.subject: finding.level async for finding in examine(settings)}


async def test_a_running_demo_is_well(cli: Cli) -> None:
    async with cli.serving() as (address, _):
        port = address.rpartition(":")[2]
        code, out, err = await cli.run("doctor", "--port", port)
    assert (code, err) == (0, "")
    assert f"ok    server: {address} is ready\n" in out
    assert "ok    redis: Valkey " in out
    assert {line.split()[0] for line in out.splitlines()} == {"ok"}


def test_without_a_store_it_fails(shell: Shell) -> None:
    code, out, err = shell.run("doctor")
    assert (code, err) == (1, "tickcast: 1 check failed\n")
    assert "fail  redis: no store is running in " in out


async def test_it_finds_faults_in_the_configuration_of_redis(
    settings: Settings, redis_url: str, redis: Redis
) -> None:
    here = replace(settings, redis_url=redis_url)
    assert set((await levels(here)).values()) == {"ok"}
    await redis.config_set("maxmemory", "100mb")
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    await redis.config_set("client-output-buffer-limit", "pubsub 1mb 1mb 10")
    found = await levels(here)
    assert found["redis eviction"] == "fail"
    assert found["redis buffers"] == "warn"


async def test_it_finds_missing_permissions(
    settings: Settings, redis_url: str, redis: Redis
) -> None:
    await redis.execute_command(  # type: ignore[no-untyped-call]
        "ACL", "SETUSER", "weak", "on", ">pw", "~*", "&*", "+@all", "-subscribe", "-config"
    )
    path = redis_url.partition("unix://")[2]
    found = await levels(replace(settings, redis_url=f"unix://weak:pw@{path}"))
    assert found["permissions"] == "fail"
    assert found["redis config"] == "ok"


async def test_a_replica_is_a_fault(settings: Settings, redis_url: str, redis: Redis) -> None:
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    found = await levels(replace(settings, redis_url=redis_url))
    assert found["redis role"] == "fail"


async def test_an_open_server_is_a_warning(settings: Settings, redis_url: str) -> None:
    found = await levels(replace(settings, redis_url=redis_url, host=("0.0.0.0",)))
    assert (found["access"], found["tls"]) == ("warn", "warn")


def test_a_clock_that_differs_is_a_warning() -> None:
    assert check_clock(0.001, 0.01).level == "ok"
    assert check_clock(0.001, -0.2).level == "warn"
    assert "-200.0 ms" in check_clock(0.001, -0.2).text
    assert check_clock(0.02, 0.0).level == "warn"


def test_a_certificate_that_ends_soon_is_a_warning(pair: CertificateFiles) -> None:
    now = datetime.now(UTC)
    assert check_certificate(pair.cert, now).level == "ok"
    end = datetime.fromisoformat(check_certificate(pair.cert, now).text.rpartition(" ")[2])
    end = end.replace(tzinfo=UTC)
    assert check_certificate(pair.cert, end - timedelta(days=3)).level == "warn"
    assert check_certificate(pair.cert, end + timedelta(days=3)).level == "fail"


def test_too_few_files_are_a_warning(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda what: (256, 4096))
    assert check_files(settings).level == "warn"
    assert check_files(replace(settings, connections_max=2000)).level == "ok"


async def test_a_server_that_is_not_ready_is_a_fault(
    server: RunningServer, settings: Settings, redis: Redis
) -> None:
    here = replace(settings, port=int(server.http.rpartition(":")[2]))
    assert (await asyncio.to_thread(check_server, here)).level == "ok"
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    await redis.client_kill_filter(_type="pubsub")
    async with asyncio.timeout(10):
        while (finding := await asyncio.to_thread(check_server, here)).level == "ok":
            await asyncio.sleep(0.05)
    assert finding.level == "fail"
    assert " answers 503: " in finding.text
