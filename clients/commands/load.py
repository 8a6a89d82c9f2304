"""`tickcast load`: tests a server with many clients, and checks every tick."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console

from clients.commands.load_plan import make_plan
from clients.load.page import to_html
from clients.load.plan import Plan
from clients.load.progress import LineStage, TerminalStage
from clients.load.report import LoadReport, to_json
from clients.load.run import Load, PublishSource
from clients.load.symbols import feed_of
from clients.load.text import print_report
from tickcast.broker.client import make_client
from tickcast.broker.embedded import find_store
from tickcast.broker.store import Store
from tickcast.commands.options import (
    ca_option,
    config_option,
    open_publisher,
    read_token,
    redis_option,
    run_server_loop,
)
from tickcast.commands.parameters import DurationParameter, PerSecondParameter, ShareParameter
from tickcast.settings import Settings, load_settings
from tickcast.tasks import stop_signals
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import InvalidSettings, TickcastError
from tickcast.wire.ticks import CHANNELS, DEFAULT_FEED, is_feed_name

_INTERRUPTED: Final = 130
_REPORT_WIDTH: Final = 100


@click.command()
@click.argument("url")
@click.option("--connections", "-c", type=click.IntRange(1, 1_000_000), default=100,
              show_default=True)  # fmt: skip
@click.option("--symbols", "-s", metavar="N|NAMES|*", default=None,
              help="Symbols of each connection: so many of the pool at random, names separated by"
              " commas, or * for all.  [default: 20; all, if the pool is smaller]")  # fmt: skip
@click.option("--channels", default="trades", show_default=True,
              help="Comma-separated: " + ", ".join(CHANNELS))  # fmt: skip
@click.option("--encoding", "-e", type=click.Choice([each.value for each in Encoding]),
              default="json", show_default=True)  # fmt: skip
@click.option("--duration", "-d", type=DurationParameter(), default="30s", show_default=True,
              help="How long figures are taken.")  # fmt: skip
@click.option("--warmup", type=DurationParameter(), default="1s", show_default=True,
              help="How long ticks flow before that.")  # fmt: skip
@click.option("--publish-rate", "-r", type=PerSecondParameter(),
              help="Publish so many ticks a second; else what flows is measured.")  # fmt: skip
@click.option("--burst", type=click.IntRange(1, 10_000), default=1, show_default=True,
              help="Publish so many ticks at a time.")  # fmt: skip
@click.option("--pool", type=click.IntRange(1, 100_000), default=100, show_default=True,
              help="Symbols to make up and publish.")  # fmt: skip
@click.option("--pool-prefix", default="LOAD", show_default=True, help="How their names begin.")
@click.option("--feed", help="Feed to publish into.  [default: the URL's]")
@click.option("--slow", type=ShareParameter(), default="0%", show_default=True,
              help="Share of connections that stop reading again and again.")  # fmt: skip
@click.option("--stall", type=DurationParameter(), default="2s", show_default=True,
              help="How long slow ones stop.")  # fmt: skip
@click.option("--read", type=DurationParameter(), default="1s", show_default=True,
              help="How long they read in between.")  # fmt: skip
@click.option("--slow-policy", type=click.Choice(["conflate", "skip", "close"]),
              help="Ask the server for it.")  # fmt: skip
@click.option("--conflate-ms", type=click.IntRange(0, 60_000), help="Ask the server for it.")
@click.option("--churn", type=PerSecondParameter(), metavar="N/S",
              help="Connections a second that leave, each replaced by a new one.")  # fmt: skip
@click.option("--ramp", type=PerSecondParameter(), default="500/s", show_default=True,
              metavar="N/S", help="Connections to open in a second.")  # fmt: skip
@click.option("--processes", "-p", type=click.IntRange(1, 256), default=1, show_default=True,
              help="Processes to share the connections.")  # fmt: skip
@click.option("--seed", type=int, default=1, show_default=True,
              help="The same seed makes the same choices.")  # fmt: skip
@click.option("--snapshot", is_flag=True, help="Ask for the latest tick of each stream first.")
@click.option("--stamps/--no-stamps", default=True, show_default=True,
              help="Ask for times of publishing and sending on each tick.")  # fmt: skip
@click.option("--heartbeat-ms", type=click.IntRange(0, 60_000), default=1000, show_default=True,
              help="Ask for the length of the server's queues; 0 does not.")  # fmt: skip
@click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'",
              help="Send it with the handshake; repeatable.")  # fmt: skip
@click.option("--key", help="Log in with this key, and --secret.")
@click.option("--secret")
@click.option("--token", help="Log in with this token, which other users of the machine can see.")
@click.option("--token-file", metavar="FILE", callback=read_token,
              help="Log in with the token or the API key's secret in this file.")  # fmt: skip
@ca_option
@click.option("--timeout", type=DurationParameter(), default="10s", show_default=True,
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
    plan = make_plan(url, **options)
    feed = feed or feed_of(url) or DEFAULT_FEED
    if not is_feed_name(feed):
        raise InvalidSettings(f"--feed: {feed!a} is not 1 to 32 characters of a-z 0-9 _ -")
    report = run_server_loop(_load(plan, settings, feed))
    out = Console(width=None if sys.stdout.isatty() else _REPORT_WIDTH, highlight=False)
    print_report(out, report)
    if json_file is not None:
        _write(json_file, to_json(report))
    if report_file is not None:
        _write(report_file, to_html(report).encode())
    if not report.verdict.passed:
        return 1
    return _INTERRUPTED if report.interrupted else 0


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise TickcastError(f"{path}: {error.strerror}") from None


async def _load(plan: Plan, settings: Settings, feed: str) -> LoadReport:
    report: LoadReport | None = None
    try:
        async with AsyncExitStack() as stack:
            source: PublishSource | None = None
            if plan.publish_rate is not None:
                publisher = await stack.enter_async_context(open_publisher(settings, feed))
                client = make_client(await find_store(settings))
                stack.push_async_callback(client.aclose)
                source = PublishSource(publisher, Store(client), feed)
            report = await _run(plan, source)
    except TickcastError:
        # A publisher that has failed raises again when it closes. The report includes that error.
        if report is None:
            raise
    return report


async def _run(plan: Plan, source: PublishSource | None) -> LoadReport:
    stop = asyncio.Event()
    _watch_signals(stop)
    console = Console(stderr=True)
    stage: TerminalStage | LineStage = LineStage(console)
    if console.is_terminal:
        stage = TerminalStage(console, plan.connections)
    with stage:
        return await Load(plan, source, stop).run(stage)


def _watch_signals(stop: asyncio.Event) -> None:
    """Stop the measurement on the first signal, and the command on the second."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None

    def act() -> None:
        if stop.is_set():
            task.cancel()
        stop.set()

    for number in stop_signals():
        loop.add_signal_handler(number, act)
