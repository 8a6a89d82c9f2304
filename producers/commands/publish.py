"""`tickcast publish`: publishes ticks from a file or a pipe."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import click

from producers.recordings.files import Utf8Converter, unpack_hint
from producers.recordings.json_lines import LINE_BYTES_MAX, LineSplitter, parse_line
from tickcast.commands.options import config_option, feed_option, redis_option
from tickcast.commands.running import BadLines, counted, run
from tickcast.commands.store import open_publisher
from tickcast.settings import Settings, load_settings
from tickcast.wire.errors import InvalidTick
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

_READ_BYTES: Final = 64 * 1024


@click.command()
@click.argument("file", default="-", metavar="[FILE|-]",
                type=click.Path(exists=True, dir_okay=False, allow_dash=True))  # fmt: skip
@feed_option
@click.option("--strict", is_flag=True, help="Stop at the first bad line.")
@redis_option
@config_option
def publish(file: str, feed: str, strict: bool, redis_url: str | None, config: Path | None) -> None:
    """Publish ticks from JSON lines.

    \b
    A line is a tick as clients receive it; without "t" it has the present time:
      {"T":"t","S":"AAPL","p":187.1,"s":100}
      {"T":"q","S":"AAPL","bp":187.0,"bs":3,"ap":187.1,"as":2,"t":"2026-01-05T14:30:00Z"}

    Lines may also be arrays of ticks or the output of `tickcast watch`. "t" may be a number of
    seconds, milliseconds, microseconds or nanoseconds since 1970.
    """
    settings = load_settings(config, redis_url=redis_url)
    bad = BadLines("stdin" if file == "-" else file, strict)
    with ExitStack() as stack:
        source = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        run(_publish(settings, source.fileno(), feed, bad))


async def _publish(settings: Settings, source: int, feed: str, bad: BadLines) -> None:
    converter, splitter = Utf8Converter(), LineSplitter()
    left_out: set[str] = set()
    number = 0
    async with open_publisher(settings, feed, waits=True) as publisher:
        async for data in _read_all(source):
            if not number and (hint := unpack_hint(data)) is not None:
                raise InvalidTick(f"{bad.source}: {hint}")
            ticks: list[Tick] = []
            for line in _lines(data, converter, splitter):
                number += 1
                try:
                    if line is None:
                        raise InvalidTick(f"longer than {LINE_BYTES_MAX} bytes")
                    if line.strip():
                        ticks += parse_line(line, Time.now(), left_out)
                except InvalidTick as error:
                    await publisher.publish(ticks)
                    ticks = []
                    bad.report(number, str(error))
            await publisher.publish(ticks)
        await publisher.flush()
    if left_out:
        fields = ", ".join(sorted(left_out))
        click.echo(f"tickcast: {bad.source}: left out {fields}, which ticks do not have", err=True)
    bad.fail_if_any(publisher.published)
    click.echo(f"published {counted(publisher.published, 'tick')}", err=True)


def _lines(data: bytes, converter: Utf8Converter, splitter: LineSplitter) -> Iterator[bytes | None]:
    """Yield the lines that this data completes. Empty data means the end of the input."""
    if converted := converter.convert(data):
        yield from splitter.split(converted)
    if not data:
        yield from splitter.split(b"")


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
