"""Makes a plan from the options of `tickcast load`, and checks their limits and combinations."""

from __future__ import annotations

import re
import resource
from typing import Final

from msgspec.structs import replace

from clients.load.gauges import check_pids
from clients.load.plan import Plan, pool_names
from clients.load.symbols import ask_symbols
from clients.load.wire import parse_url
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import InvalidSettings
from tickcast.wire.subscriptions import is_pattern
from tickcast.wire.ticks import CHANNELS, is_symbol

_SPARE_FILES: Final = 50
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~]*)")


def make_plan(
    url: str,
    *,
    connections: int,
    symbols: str | None,
    channels: str,
    encoding: str,
    duration: float,
    warmup: float,
    publish_rate: float | None,
    burst: int,
    pool: int,
    pool_prefix: str,
    slow: float,
    stall: float,
    read: float,
    slow_policy: str | None,
    conflate_ms: int | None,
    churn: float | None,
    ramp: float,
    processes: int,
    seed: int,
    snapshot: bool,
    stamps: bool,
    heartbeat_ms: int,
    headers: tuple[str, ...],
    key: str | None,
    secret: str | None,
    token: str | None,
    token_file: str | None,
    ca_file: str | None,
    timeout: float,
    pids: tuple[int, ...],
) -> Plan:
    """Make a plan from the options, and ask the server for its symbols if necessary.

    Raises:
        InvalidSettings: options are malformed, or can't be combined.
        ConnectionFailed: the server did not return its symbols.
    """
    parse_url(url)
    check_pids(pids)
    if duration <= 0 or stall <= 0 or read <= 0 or timeout <= 0:
        raise InvalidSettings("--duration, --stall, --read and --timeout must be above 0")
    if heartbeat_ms and heartbeat_ms < 100:
        raise InvalidSettings("--heartbeat-ms: 0, or 100 to 60000")
    processes = min(processes, connections)
    _check_files(connections // processes + 1)
    if publish_rate is None and burst > 1:
        raise InvalidSettings("--burst goes with --publish-rate")
    published = _pool(pool_prefix, pool) if publish_rate is not None else ()
    plan = Plan(
        url=url, connections=connections, channels=_channels(channels),
        encoding=Encoding(encoding), duration_s=duration, warmup_s=warmup,
        published=published, publish_rate=publish_rate, burst=burst, slow_share=slow,
        stall_s=stall, read_s=read, churn_rate=churn or 0.0, ramp_rate=ramp, processes=processes,
        seed=seed, settle_s=timeout, headers=tuple(map(_header, headers)),
        auth=_auth(key, secret, token, token_file), snapshot=snapshot, stamps=stamps,
        heartbeat_ms=heartbeat_ms, conflate_ms=conflate_ms, slow_policy=slow_policy,
        ca_file=ca_file, pids=pids,
    )  # fmt: skip
    return _with_symbols(plan, symbols)


def _with_symbols(plan: Plan, symbols: str | None) -> Plan:
    if symbols is not None and re.fullmatch("[0-9]+", symbols) is None:
        names = tuple(dict.fromkeys(name.strip() for name in symbols.split(",") if name.strip()))
        for name in names:
            if not is_pattern(name):
                raise InvalidSettings(f"--symbols: {name!a} is no symbol")
        if not names:
            raise InvalidSettings("--symbols: a number, names, or *")
        published = plan.published
        if published and not any("*" in name for name in names):
            # Publish the named symbols.
            published = names
        return replace(plan, pool=names, published=published)
    each = 20 if symbols is None else int(symbols)
    if each < 1:
        raise InvalidSettings("--symbols: at least 1")
    pool = plan.published or tuple(ask_symbols(plan))
    if symbols is not None and each > len(pool):
        raise InvalidSettings(f"--symbols: {each} is more than the {len(pool)} there are")
    return replace(plan, pool=pool, symbols_each=each if each < len(pool) else None)


def _pool(prefix: str, count: int) -> tuple[str, ...]:
    names = pool_names(prefix, count)
    if not is_symbol(names[-1]):
        raise InvalidSettings(f"--pool-prefix: {names[-1]!a} is no symbol")
    return names


def _channels(text: str) -> tuple[str, ...]:
    channels = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for channel in channels:
        if channel not in CHANNELS:
            raise InvalidSettings(f"--channels: {channel!a} is none of {', '.join(CHANNELS)}")
    return channels


def _header(text: str) -> tuple[str, str]:
    match = _HEADER.fullmatch(text)
    if match is None:
        raise InvalidSettings("--header: give it as 'NAME: VALUE'")
    return match[1], match[2].strip()


def _auth(
    key: str | None, secret: str | None, token: str | None, token_in_file: str | None
) -> dict[str, str] | None:
    if token is not None and token_in_file is not None:
        raise InvalidSettings("give --token or --token-file, not both")
    token = token if token_in_file is None else token_in_file
    if token is not None and key is None and secret is None:
        return {"token": token}
    if key is not None and secret is not None and token is None:
        return {"key": key, "secret": secret}
    if key is secret is token is None:
        return None
    raise InvalidSettings("give --key with --secret, or --token alone, or --token-file alone")


def _check_files(connections: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and connections + _SPARE_FILES > most:
        raise InvalidSettings(
            f"a process would need {connections:,} open files, and may have {most:,}:"
            " raise `ulimit -n`, or use more --processes"
        )
