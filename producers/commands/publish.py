"""`tickcast publish`: publishes ticks from a file or a pipe."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from producers.commands.table_options import TableOptions, table_options
from producers.recordings.following import FollowedFile
from producers.recordings.formats import StreamParser
from tickcast.broker.publisher import FeedPublisher
from tickcast.commands.options import config_option, feed_option, redis_option
from tickcast.commands.running import BadLines, counted, run
from tickcast.commands.store import flush_in_time, open_publisher
from tickcast.settings import Settings, load_settings
from tickcast.wire.errors import InvalidRecording
from tickcast.wire.ticks import Tick

_READ_BYTES: Final = 64 * 1024
# How often a followed file is checked for new data.
_FOLLOW_EVERY_S: Final = 0.05


@click.command()
@click.argument("file", default="-", metavar="[FILE|-]",
                type=click.Path(dir_okay=False, allow_dash=True))  # fmt: skip
@feed_option
@click.option("--follow", is_flag=True, help="Wait for lines that are appended, until Ctrl-C.")
@click.option("--strict", is_flag=True, help="Stop at the first bad line.")
@table_options
@redis_option
@config_option
def publish(
    file: str,
    feed: str,
    follow: bool,
    strict: bool,
    table: TableOptions,
    redis_url: str | None,
    config: Path | None,
) -> None:
    """Publish ticks from JSON or CSV.

    \b
    A line is a tick as clients receive it; without "t" it has the present time:
      {"T":"t","S":"AAPL","p":187.1,"s":100}
      {"T":"q","S":"AAPL","bp":187.0,"bs":3,"ap":187.1,"as":2,"t":"2026-01-05T14:30:00Z"}

    Arrays of ticks, the output of `tickcast watch`, and messages and answers of Alpaca are accepted
    too. "t" may be a number of seconds, milliseconds, microseconds or nanoseconds since 1970.
    CSV needs a header, or --columns.
    """
    settings = load_settings(config, redis_url=redis_url)
    bad = BadLines("stdin" if file == "-" else file, strict)
    if follow:
        if file == "-":
            raise click.UsageError("--follow needs a FILE; a pipe is read to its end anyway")
        if not Path(file).exists():
            click.echo(f"tickcast: waiting for {file}", err=True)
        with FollowedFile(Path(file)) as followed:
            run(_publish(settings, feed, _follow(followed), table, bad, follow=True))
        return
    if file != "-" and not Path(file).exists():
        raise click.BadParameter(f"File {file!r} does not exist.", param_hint="'[FILE|-]'")
    with ExitStack() as stack:
        source = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        run(_publish(settings, feed, _read_all(source.fileno()), table, bad, follow=False))


async def _publish(
    settings: Settings,
    feed: str,
    source: AsyncIterator[bytes],
    table: TableOptions,
    bad: BadLines,
    *,
    follow: bool,
) -> None:
    """Publish a source, in which b"" marks the end of a file. Another one may follow."""
    left_out: set[str] = set()
    notes: set[str] = set()

    def show_note(note: str) -> None:
        if note not in notes:
            notes.add(note)
            click.echo(f"tickcast: {bad.source}: {note}", err=True)

    parser: StreamParser | None = None
    async with open_publisher(settings, feed, waits=True) as publisher:
        try:
            async for data in source:
                parser = parser or table.parse_stream(bad.report, show_note, left_out)
                await _publish_data(publisher, parser, data, bad.source)
                if not data:
                    parser = None
            await publisher.flush()
        except asyncio.CancelledError:
            await flush_in_time(publisher)
            if follow:
                show_note(f"published {counted(publisher.published, 'tick')}")
            raise
        finally:
            if left_out:
                show_note(f"left out {', '.join(sorted(left_out))}, which ticks do not have")
    bad.fail_if_any(publisher.published)
    click.echo(f"published {counted(publisher.published, 'tick')}", err=True)


async def _publish_data(
    publisher: FeedPublisher, parser: StreamParser, data: bytes, source: str
) -> None:
    ticks: list[Tick] = []
    try:
        for tick in parser.parse(data):
            ticks.append(tick)  # noqa: PERF402 - keeps the ticks before an error
    except InvalidRecording as error:
        raise InvalidRecording(f"{source}: {error}") from None
    finally:
        await publisher.publish(ticks)


async def _follow(file: FollowedFile) -> AsyncIterator[bytes]:
    while True:
        data = file.read()
        if data is None:
            await asyncio.sleep(_FOLLOW_EVERY_S)
        else:
            yield data
            await asyncio.sleep(0)


async def _read_all(source: int) -> AsyncIterator[bytes]:
    """Read a file descriptor as data arrives, and yield b"" at the end."""
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    try:
        loop.add_reader(source, readable.set)
        is_polled = True
    except PermissionError:
        # A regular file or /dev/null is always ready, and event loops can't poll it.
        readable.set()
        is_polled = False
    try:
        while True:
            await readable.wait()
            if is_polled:
                readable.clear()
            data = os.read(source, _READ_BYTES)
            yield data
            if not data:
                return
            await asyncio.sleep(0)
    finally:
        if is_polled:
            loop.remove_reader(source)
