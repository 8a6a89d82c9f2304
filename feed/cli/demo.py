"""`tickcast demo`: everything in one command."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from socket import socket

import click

from feed.broker.embedded import provided_store
from feed.cli.common import config_option, open_publisher, run_server_loop, set_up_logging
from feed.cli.parameters import Rate
from feed.cli.serve import cannot_listen, serve_feed
from feed.errors import TickcastError
from feed.server import address_of, bind
from feed.settings import Settings, load_settings
from feed.tasks import end_tasks
from feed.ticks import DEFAULT_FEED
from feed.times import Time
from producers.pacing import Pacer, play
from producers.synthetic import generate, symbol_names

_PORTS_TRIED = 50
_AGAIN_S = 1.0


@click.command()
@click.option("--port", type=int, help="Port to try first.  [default: 8000]")
@click.option("--symbols", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--rate", type=Rate(), default=200, show_default=True,
              help="Ticks per second, over all symbols.")  # fmt: skip
@config_option
def demo(port: int | None, symbols: int, rate: float, config: Path | None) -> None:
    """Show it all: a store, a server and a made-up market. Ctrl-C ends it."""
    settings = load_settings(config, port=port)
    set_up_logging(settings)
    with _bind_free(settings) as listener:
        run_server_loop(_demo(settings, listener, symbols, rate))


async def _demo(settings: Settings, listener: socket, symbols: int, rate: float) -> None:
    async with provided_store(settings) as redis_url:
        tasks: list[asyncio.Task[None]] = []

        def start_market() -> None:
            click.echo(f"open {address_of(listener)}/ in a browser; Ctrl-C ends the demo")
            tasks.append(asyncio.create_task(_run_market(settings, symbols, rate)))

        try:
            await serve_feed(settings, redis_url, listener, start_market)
        finally:
            await end_tasks(tasks)


async def _run_market(settings: Settings, symbols: int, rate: float) -> None:
    while True:
        try:
            async with open_publisher(settings, DEFAULT_FEED) as publisher:
                ticks = generate(symbol_names(symbols), rate, seed=7, start=Time.now())
                await play(ticks, publisher, Pacer())
        except TickcastError as error:
            # An outage is the publisher's affair; but a Redis that is named may not be there yet.
            click.echo(f"tickcast: no market for now: {error}", err=True)
            await asyncio.sleep(_AGAIN_S)


def _bind_free(settings: Settings) -> socket:
    """A socket on the port, or on the next one that is free."""
    last = min(settings.port + _PORTS_TRIED, 65_535)
    for port in range(settings.port, last + 1):
        try:
            listener = bind(settings.host, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            raise cannot_listen(settings.host, port, error) from None
        if port != settings.port:
            click.echo(f"port {settings.port} is taken, using {port}")
        return listener
    raise TickcastError(f"ports {settings.port} to {last} are all taken")
