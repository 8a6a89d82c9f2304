"""`tickcast watch`: shows live ticks as a table on a terminal, or as lines elsewhere."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial

import click

from clients.commands.watch_screen import Dial, show
from tickcast.client.accounts import Gap, describe_gap, summarize
from tickcast.client.stream import Stream, connect
from tickcast.commands.hints import token_hint
from tickcast.commands.options import ca_option, run, token_option
from tickcast.commands.standard_streams import output_is_gone
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.errors import InvalidSettings, TickcastError
from tickcast.wire.subscriptions import is_pattern
from tickcast.wire.ticks import CHANNELS


@click.command()
@click.argument("symbols", nargs=-1, required=True, metavar="SYMBOL…")
@click.option("--url", default="ws://127.0.0.1:8000/stream", show_default=True,
              help="The stream: /stream, or /v2/FEED.")  # fmt: skip
@click.option("--channels", default="trades,quotes", show_default=True,
              help="Comma-separated: " + ", ".join(CHANNELS))  # fmt: skip
@click.option("--encoding", type=click.Choice([each.value for each in Encoding]), default="json",
              show_default=True)  # fmt: skip
@click.option("--audit", is_flag=True,
              help="Show what became of every tick; exit code 1 if some is missing.")  # fmt: skip
@ca_option
@token_option
@click.option("--limit", type=click.IntRange(min=1), help="Stop after that many ticks.")
def watch(
    symbols: tuple[str, ...],
    url: str,
    channels: str,
    encoding: str,
    audit: bool,
    ca_file: str | None,
    token: str | None,
    limit: int | None,
) -> None:
    """Watch symbols live.

    '*' means all symbols, and 'BTC-*' all that begin with BTC-.

    On a terminal, ticks are shown in a table; press ? for a list of keys. Otherwise each tick is
    one line of JSON, to pipe into other programs. With --audit, gaps are reported on stderr, with a
    summary at the end.
    """
    if not url.startswith(("ws://", "wss://")):
        raise InvalidSettings(f"--url: {url!a} does not begin with ws:// or wss://")
    for symbol in symbols:
        if not is_pattern(symbol):
            raise InvalidSettings(f"{symbol!a} is no symbol")
    wanted = {name.strip(): list(symbols) for name in channels.split(",")}
    for channel in wanted:
        if channel not in CHANNELS:
            raise InvalidSettings(f"--channels: {channel!a} is none of {', '.join(CHANNELS)}")
    run(_watch(url, Encoding(encoding), wanted, audit, ca_file, token, limit))


async def _watch(
    url: str,
    encoding: Encoding,
    wanted: dict[str, list[str]],
    audit: bool,
    ca_file: str | None,
    token: str | None,
    limit: int | None,
) -> None:
    headers = {"Authorization": f"Bearer {token}"} if token else None
    is_terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    on_gap = _print_gap if audit and not is_terminal else None
    dial: Dial = partial(connect, url, headers=headers, tls=ca_file)
    async with dial(encoding=encoding, on_gap=on_gap) as stream:
        with token_hint(token):
            await stream.subscribe(wanted, snapshot=not audit)
        try:
            if is_terminal:
                await show(stream, dial, url, audit, limit)
            else:
                await _print_lines(stream, limit)
        except asyncio.CancelledError:
            # Ctrl-C is the normal way to end a watch, so the audit decides the exit code.
            if not audit or stream.report().balanced:
                raise
        finally:
            if audit:
                for line in summarize(stream.report()):
                    click.echo(f"tickcast: {line}", err=True)
        if audit and not stream.report().balanced:
            raise TickcastError("some ticks are not accounted for")


def _print_gap(gap: Gap) -> None:
    click.echo(f"tickcast: {describe_gap(gap)}", err=True)


async def _print_lines(stream: Stream, limit: int | None) -> None:
    count = 0
    async for tick in stream:
        sys.stdout.buffer.write(encode(tick, Encoding.JSON) + b"\n")
        if not stream.waiting:
            sys.stdout.buffer.flush()
        count += 1
        if count == limit or output_is_gone():
            sys.stdout.buffer.flush()
            return
