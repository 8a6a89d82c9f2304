"""`tickcast doctor`: checks a set-up and says what to change."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import click
from cryptography import x509
from redis.asyncio import Redis

from feed.access.authenticator import Authenticator
from feed.transport.tls import certificate_of
from tickcast.broker.client import check_version, make_client, safe_url, translated_errors
from tickcast.broker.embedded import find_store
from tickcast.broker.preflight import preflight
from tickcast.commands.options import config_option, redis_option
from tickcast.commands.running import run
from tickcast.settings import Settings, load_with_sources
from tickcast.wire.addresses import is_local
from tickcast.wire.errors import AccessDenied, TickcastError

# NTP keeps the clocks of one network within a few milliseconds.
_CLOCK_MAX_S: Final = 0.05
# Within one network a round trip takes less than a millisecond.
_ROUND_TRIP_MAX_S: Final = 0.005
# The server reads ticks in bulk, so a burst of a few seconds must fit (see embedded.py).
_PUBSUB_BUFFER_MIN: Final = 32 << 20
# Redis connections, listeners, log files and the like.
_OTHER_FILES: Final = 100
# Automatic renewals, such as those of Let's Encrypt, happen 30 days before the end.
_CERTIFICATE_DAYS_MIN: Final = 14
_TIMEOUT_S: Final = 3.0


class Finding(NamedTuple):
    """The result of one check."""

    level: str  # ok, warn or fail
    subject: str
    text: str


class _DoctorFailed(TickcastError):
    """Some check failed."""


@click.command()
@redis_option
@click.option("--port", type=int, help="Port of the server to ask.  [default: 8000]")
@config_option
def doctor(redis_url: str | None, port: int | None, config: Path | None) -> None:
    """Check the settings, Redis and this machine; suggest changes.

    Give it the options and the environment of `tickcast serve`. The exit code is 1 if a check
    fails; warnings don't change it.
    """
    settings, sources = load_with_sources(config, redis_url=redis_url, port=port)
    named = sorted({source for source in sources.values() if source})
    click.echo(_line(Finding("ok", "settings", ", ".join(named) or "all at their defaults")))
    run(_print_findings(settings))


async def _print_findings(settings: Settings) -> None:
    failed = 0
    async for finding in examine(settings):
        click.echo(_line(finding))
        failed += finding.level == "fail"
    if failed:
        raise _DoctorFailed("1 check failed" if failed == 1 else f"{failed} checks failed")


def _line(finding: Finding) -> str:
    return f"{finding.level:4}  {finding.subject}: {finding.text}"


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Run all checks. A check that can't be done because an earlier one failed is left out."""
    for finding in (*check_access(settings), check_files(settings)):
        yield finding
    try:
        url = await find_store(settings)
        client = make_client(url)
    except TickcastError as error:
        yield Finding("fail", "redis", str(error))
        return
    try:
        async for finding in _examine_redis(client, url, settings):
            yield finding
    except TickcastError as error:
        yield Finding("fail", "redis", f"{safe_url(url)}: {error}")
    finally:
        await client.aclose()
    yield await asyncio.to_thread(check_server, settings)


def check_access(settings: Settings) -> Iterator[Finding]:
    """Check who may connect, and the certificate."""
    listens_locally = all(map(is_local, settings.host))
    try:
        is_required = Authenticator(settings).is_required
        if is_required:
            yield Finding("ok", "access", "clients need credentials")
        elif listens_locally:
            yield Finding("ok", "access", "open to every program on this machine, and to no other")
        else:
            yield Finding(
                "warn", "access",
                f"everyone who reaches {', '.join(settings.host)} receives all ticks;"
                " set `auth` (see docs/security.md)",
            )  # fmt: skip
        if certificate_of(settings) is None:
            if not listens_locally and not settings.trusted_proxies:
                yield Finding(
                    "warn", "tls",
                    "connections are not encrypted; set tls_cert and tls_key, or use a proxy and"
                    " name it in trusted_proxies",
                )  # fmt: skip
        else:
            yield check_certificate(Path(settings.tls_cert or ""), datetime.now(UTC))
    except TickcastError as error:
        yield Finding("fail", "access", str(error))


def check_certificate(path: Path, now: datetime) -> Finding:
    """Check how long the server's certificate remains valid."""
    end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    text = f"{path} is valid until {end:%Y-%m-%d}"
    if end < now:
        return Finding("fail", "tls", f"{path} has expired on {end:%Y-%m-%d}; renew it")
    if end < now + timedelta(days=_CERTIFICATE_DAYS_MIN):
        return Finding("warn", "tls", f"{text}; renew it")
    return Finding("ok", "tls", text)


def check_files(settings: Settings) -> Finding:
    """Check the limit of open files; `serve` raises the soft limit to the hard one itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.connections_max + _OTHER_FILES
    if hard != resource.RLIM_INFINITY and hard < wanted:
        return Finding(
            "warn", "open files",
            f"the limit is {hard:,}, too few for connections_max = {settings.connections_max:,};"
            f" set LimitNOFILE={wanted} in the unit, or ulimit -Hn {wanted}",
        )  # fmt: skip
    return Finding("ok", "open files", f"enough for {settings.connections_max:,} clients")


async def _examine_redis(client: Redis, url: str, settings: Settings) -> AsyncIterator[Finding]:
    await check_version(client)
    with translated_errors():
        info = await client.info()
    name, version = (
        ("Valkey", info["valkey_version"])
        if "valkey_version" in info
        else ("Redis", info["redis_version"])
    )
    yield Finding("ok", "redis", f"{name} {version} at {safe_url(url)}")
    if info.get("role") != "master":
        yield Finding("fail", "redis role", "this is a replica; give the address of the primary")
    yield await _check_clock(client)
    try:
        with translated_errors():
            values = await client.config_get(
                "maxmemory", "maxmemory-policy", "client-output-buffer-limit"
            )
        for finding in check_config(values):
            yield finding
    except AccessDenied:
        yield Finding("ok", "redis config", "not checked, because CONFIG is not permitted here")
    try:
        await preflight(client, settings.feeds)
        yield Finding("ok", "permissions", "all commands of a server are permitted")
    except TickcastError as error:
        yield Finding("fail", "permissions", f"{error}; see docs/security.md")


async def _check_clock(client: Redis) -> Finding:
    offsets = []
    # The fastest of several answers tells most about the clock.
    for _ in range(5):
        start_s = time.time()
        with translated_errors():
            seconds, microseconds = await client.time()
        end_s = time.time()
        offsets.append((end_s - start_s, (start_s + end_s) / 2 - seconds - microseconds / 1e6))
    return check_clock(*min(offsets))


def check_clock(round_trip_s: float, ahead_s: float) -> Finding:
    """Check the distance to Redis, and how far this machine's clock is ahead of Redis's."""
    text = f"{round_trip_s * 1e3:.2f} ms round trip, clock {round(ahead_s * 1e3, 1) + 0.0:+.1f} ms"
    if abs(ahead_s) > _CLOCK_MAX_S + round_trip_s:
        return Finding(
            "warn", "redis clock",
            f"{text}; delays in metrics and stamps are off by this much: synchronize both with NTP",
        )  # fmt: skip
    if round_trip_s > _ROUND_TRIP_MAX_S:
        return Finding("warn", "redis clock", f"{text}; put servers and Redis into one network")
    return Finding("ok", "redis clock", text)


def check_config(values: Mapping[Any, Any]) -> Iterator[Finding]:
    """Check the configuration of Redis, as CONFIG GET returns it."""
    policy = values.get("maxmemory-policy", "noeviction")
    limit = int(values.get("maxmemory", 0))
    if limit and policy != "noeviction":
        yield Finding(
            "fail", "redis eviction",
            f"maxmemory-policy {policy} may delete the numbering of streams; set it to noeviction",
        )  # fmt: skip
    elif limit:
        yield Finding("ok", "redis eviction", f"noeviction, at {limit >> 20:,} MiB")
    else:
        yield Finding("ok", "redis eviction", "no memory limit")
    words = str(values.get("client-output-buffer-limit", "")).split()
    limits = dict(zip(words[::4], words[1::4], strict=False))
    hard = int(limits.get("pubsub", 0))
    if 0 < hard < _PUBSUB_BUFFER_MIN:
        yield Finding(
            "warn", "redis buffers",
            f"a server that pauses for a moment is disconnected at {hard >> 20} MiB;"
            " CONFIG SET client-output-buffer-limit 'pubsub 64mb 32mb 10'",
        )  # fmt: skip
    else:
        yield Finding("ok", "redis buffers", f"pubsub {hard >> 20} MiB" if hard else "unlimited")


def check_server(settings: Settings) -> Finding:
    """Ask the server that these settings describe whether it is ready."""
    scheme = "http" if settings.tls_cert is None else "https"
    host = settings.host[0].replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - replaced, not bound
    shown = f"[{host.replace('::', '::1') if host == '::' else host}]" if ":" in host else host
    address = f"{scheme}://{shown}:{settings.port}"
    try:
        # Without the proxies that the environment names.
        with build_opener(ProxyHandler({})).open(f"{address}/ready", timeout=_TIMEOUT_S):
            return Finding("ok", "server", f"{address} is ready")
    except HTTPError as error:
        body = error.read(300).decode(errors="replace")
        return Finding("fail", "server", f"{address} answers {error.code}: {body}")
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        return Finding("ok", "server", f"none answers at {address}: {reason}")
