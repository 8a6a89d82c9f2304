"""`tickcast load`: tests a server with many clients, and checks every tick."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from msgspec.structs import replace
from rich.console import Console

from clients.commands.connecting import ca_option, read_token
from clients.load.addresses import feed_of, fetch_symbols, parse_url
from clients.load.html import to_html
from clients.load.plan import Plan, pool_names
from clients.load.publishing import LoadProducer
from clients.load.report import LoadReport, to_json
from clients.load.results import read_usage
from clients.load.run import Load
from clients.load.text import ProgressLine, print_report
from tickcast.broker.client import make_client
from tickcast.broker.embedded import find_store
from tickcast.broker.store import Store
from tickcast.commands.options import (
    DURATION,
    RATE_PER_SECOND,
    SHARE,
    check_channel,
    config_option,
    redis_option,
)
from tickcast.commands.running import run_server_loop
from tickcast.commands.store import open_publisher
from tickcast.settings import Settings, load_settings
from tickcast.tasks import stop_signals
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import InvalidSettings, TickcastError
from tickcast.wire.subscriptions import is_pattern
from tickcast.wire.ticks import CHANNELS, DEFAULT_FEED, is_feed_name, is_symbol

_INTERRUPTED: Final = 130
_REPORT_WIDTH: Final = 100
_SYMBOLS_EACH: Final = 20
_SPARE_FILES: Final = 50
_HEADER: Final = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~]*)")


@click.command()
@click.argument("url")
@click.option("--connections", "-c", type=click.IntRange(1, 1_000_000), default=100,
              show_default=True)  # fmt: skip
@click.option("--symbols", "-s", metavar="N|NAMES|*", default=None,
              help="Symbols of each connection: how many of the pool at random, names separated"
              " by commas, or * for all.  [default: 20; all, if the pool is smaller]")  # fmt: skip
@click.option("--channels", default="trades", show_default=True,
              help="Comma-separated: " + ", ".join(CHANNELS))  # fmt: skip
@click.option("--encoding", "-e", type=click.Choice([each.value for each in Encoding]),
              default="json", show_default=True)  # fmt: skip
@click.option("--duration", "-d", "duration_s", type=DURATION, default="30s",
              show_default=True, help="How long to measure.")  # fmt: skip
@click.option("--warmup", "warmup_s", type=DURATION, default="1s", show_default=True,
              help="How long to receive ticks before that.")  # fmt: skip
@click.option("--publish-rate", "-r", "publish_ticks_per_s", type=RATE_PER_SECOND,
              help="Ticks to publish a second; without it, measure the existing flow.")  # fmt: skip
@click.option("--burst", "burst_ticks", type=click.IntRange(1, 10_000), default=1,
              show_default=True, help="Ticks to publish at a time.")  # fmt: skip
@click.option("--pool", type=click.IntRange(1, 100_000), default=100, show_default=True,
              help="Number of symbols to generate and publish.")  # fmt: skip
@click.option(
    "--pool-prefix", default="LOAD", show_default=True, help="What their names begin with."
)
@click.option("--feed", help="Feed to publish into.  [default: the URL's]")
@click.option("--slow", "slow_share", type=SHARE, default="0%", show_default=True,
              help="Share of connections that stop reading repeatedly.")  # fmt: skip
@click.option("--stall", "stall_s", type=DURATION, default="2s", show_default=True,
              help="How long slow connections stop.")  # fmt: skip
@click.option("--read", "read_s", type=DURATION, default="1s", show_default=True,
              help="How long they read in between.")  # fmt: skip
@click.option("--slow-policy", type=click.Choice(["conflate", "skip", "close"]),
              help="Request this from the server.")  # fmt: skip
@click.option("--conflate-ms", type=click.IntRange(0, 60_000),
              help="Request this from the server.")  # fmt: skip
@click.option("--churn", "churn_per_s", type=RATE_PER_SECOND, metavar="N/S",
              help="Connections to replace a second.")  # fmt: skip
@click.option("--ramp", "ramp_per_s", type=RATE_PER_SECOND, default="500/s", show_default=True,
              metavar="N/S", help="Connections to open in a second.")  # fmt: skip
@click.option("--processes", "-p", type=click.IntRange(1, 256), default=1, show_default=True,
              help="Processes that share the connections.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True,
              help="The same seed makes the same choices.")  # fmt: skip
@click.option("--snapshot", is_flag=True, help="Request the latest tick of each stream first.")
@click.option("--stamps/--no-stamps", default=True, show_default=True,
              help="Request the times of publishing and sending with each tick.")  # fmt: skip
@click.option("--heartbeat-ms", type=click.IntRange(0, 60_000), default=1000, show_default=True,
              help="Interval of the server's reports of its queues; 0: none.")  # fmt: skip
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'",
              help="Send it with the handshake; repeatable.")  # fmt: skip
@click.option("--key", help="Log in with this key, and --secret.")
@click.option("--secret")
@click.option("--token", help="Log in with this token, which other users of the machine can see.")
@click.option("--token-file", metavar="FILE", callback=read_token,
              help="Log in with the token or the API key's secret in this file.")  # fmt: skip
@ca_option
@click.option("--timeout", "timeout_s", type=DURATION, default="10s", show_default=True,
              help="Longest wait for a connection, and for the last ticks.")  # fmt: skip
@click.option("--report", "report_file", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the report as one HTML page.")  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path),
              help="Write it as JSON.")  # fmt: skip
@click.option("--pid", "pids", type=click.IntRange(min=1), multiple=True,
              help="Measure this process, the server's; repeatable.")  # fmt: skip
@redis_option
@config_option
def load(
    url: str,
    redis_url: str | None,
    config: Path | None,
    feed: str | None,
    report_file: Path | None,
    json_file: Path | None,
    **options: Any,
) -> int:
    """Load a server with many connections, and check every tick.

    At the end, print a report.

    URL is the address of a stream: ws://HOST:PORT/stream, or /v2/FEED.

    \b
    Examples:
      tickcast load ws://127.0.0.1:8000/stream --publish-rate 1000
      tickcast load ws://127.0.0.1:8000/stream -c 1000 -r 5000 --slow 5% --report load.html

    Exit code 1 means that a tick could not be explained, or that something else failed.
    """
    settings = load_settings(config, redis_url=redis_url)
    for name, path in (("--report", report_file), ("--json", json_file)):
        if path is not None and not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InvalidSettings(f"{name}: {str(path)!a} can't be written")
    plan = make_plan(url, options)
    feed = feed or feed_of(url) or DEFAULT_FEED
    if not is_feed_name(feed):
        raise InvalidSettings(f"--feed: {feed!a} is not 1 to 32 characters of a-z 0-9 _ -")
    report = run_server_loop(_run(plan, settings, feed))
    print_report(
        Console(width=None if sys.stdout.isatty() else _REPORT_WIDTH, highlight=False), report
    )
    if json_file is not None:
        _write(json_file, to_json(report))
    if report_file is not None:
        _write(report_file, to_html(report).encode())
    if not report.verdict.passed:
        return 1
    return _INTERRUPTED if report.interrupted else 0


def make_plan(url: str, options: dict[str, Any]) -> Plan:
    """Make a plan from the command's options, and ask the server for its symbols if necessary.

    Raises InvalidSettings or ConnectionFailed.
    """
    parse_url(url)
    symbols, count, prefix = (options.pop(name) for name in ("symbols", "pool", "pool_prefix"))
    secrets = [options.pop(name) for name in ("key", "secret", "token", "token_file")]
    options["processes"] = min(options["processes"], options["connections"])
    options["churn_per_s"] = options["churn_per_s"] or 0.0
    options["channels"] = list(
        dict.fromkeys(each.strip() for each in options["channels"].split(","))
    )
    options["headers"] = [_parse_header(text) for text in options["headers"]]
    plan = msgspec.convert({**options, "url": url, "auth": _auth(*secrets)}, Plan)
    _check(plan)
    if plan.publish_ticks_per_s is not None:
        plan = replace(plan, published=pool_names(prefix, count))
        if not is_symbol(plan.published[-1]):
            raise InvalidSettings(f"--pool-prefix: {plan.published[-1]!a} is not a symbol")
    return _choose_symbols(plan, symbols)


def _check(plan: Plan) -> None:
    for pid in plan.pids:
        if read_usage([pid]) is None:
            raise InvalidSettings(f"--pid {pid}: no such process in /proc")
    if min(plan.duration_s, plan.stall_s, plan.read_s, plan.timeout_s) <= 0:
        raise InvalidSettings("--duration, --stall, --read and --timeout must be above 0")
    if 0 < plan.heartbeat_ms < 100:
        raise InvalidSettings("--heartbeat-ms: must be 0, or 100 to 60000")
    needed = plan.connections // plan.processes + 1
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and needed + _SPARE_FILES > limit:
        raise InvalidSettings(
            f"a process would need {needed:,} open files, and may have {limit:,}:"
            " raise `ulimit -n`, or use more --processes"
        )
    if plan.publish_ticks_per_s is None and plan.burst_ticks > 1:
        raise InvalidSettings("--burst requires --publish-rate")
    for channel in plan.channels:
        check_channel(channel, "--channels")


def _choose_symbols(plan: Plan, symbols: str | None) -> Plan:
    if symbols is not None and re.fullmatch("[0-9]+", symbols) is None:
        names = tuple(dict.fromkeys(name.strip() for name in symbols.split(",") if name.strip()))
        for name in names:
            if not is_pattern(name):
                raise InvalidSettings(f"--symbols: {name!a} is not a symbol")
        if not names:
            raise InvalidSettings("--symbols: give a number, names, or *")
        is_listed = plan.published and not any("*" in name for name in names)
        return replace(plan, pool=names, published=names if is_listed else plan.published)
    each = _SYMBOLS_EACH if symbols is None else int(symbols)
    if each < 1:
        raise InvalidSettings("--symbols: must be at least 1")
    pool = plan.published or tuple(fetch_symbols(plan))
    if symbols is not None and each > len(pool):
        raise InvalidSettings(f"--symbols: {each} is more than the pool of {len(pool)}")
    return replace(plan, pool=pool, symbols_per_connection=each if each < len(pool) else None)


def _parse_header(text: str) -> tuple[str, str]:
    match = _HEADER.fullmatch(text)
    if match is None:
        raise InvalidSettings("--header: give it as 'NAME: VALUE'")
    return match[1], match[2].strip()


def _auth(
    key: str | None, secret: str | None, token: str | None, token_in_file: str | None
) -> dict[str, str] | None:
    found = {"key": key, "secret": secret, "token": token or token_in_file}
    auth = {name: value for name, value in found.items() if value is not None}
    if set(auth) not in (set(), {"key", "secret"}, {"token"}) or (token and token_in_file):
        raise InvalidSettings("give --key with --secret, or --token alone, or --token-file alone")
    return auth or None


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise TickcastError(f"{path}: {error.strerror}") from None


async def _run(plan: Plan, settings: Settings, feed: str) -> LoadReport:
    stop = asyncio.Event()
    _watch_signals(stop)
    report: LoadReport | None = None
    try:
        async with AsyncExitStack() as stack:
            producer: LoadProducer | None = None
            if plan.publish_ticks_per_s is not None:
                publisher = await stack.enter_async_context(open_publisher(settings, feed))
                client = make_client(await find_store(settings))
                stack.push_async_callback(client.aclose)
                producer = LoadProducer(publisher, Store(client), feed)
            progress = ProgressLine(Console(stderr=True), plan.connections)
            stack.callback(progress.stop)
            report = await Load(plan, producer, stop).run(progress.show)
    except TickcastError:
        # A publisher that has failed raises again when it closes. The report includes that error.
        if report is None:
            raise
    return report


def _watch_signals(stop: asyncio.Event) -> None:
    """Stop the measurement on the first signal, and the command on the second."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def handle() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    for number in stop_signals():
        loop.add_signal_handler(number, handle)
