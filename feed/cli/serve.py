"""`tickcast serve`: the server, with the embedded store where none is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from socket import socket

import click

import clients
from feed.app import create_app
from feed.broker.embedded import provided_store
from feed.cli.common import (
    config_option,
    redis_option,
    refuse_unsuitable,
    run_server_loop,
    set_up_logging,
)
from feed.errors import TickcastError
from feed.server import address_of, bind
from feed.server import serve as run_server
from feed.settings import Settings, load_settings

DASHBOARD = Path(clients.__file__).parent / "dashboard" / "dist"


@click.command()
@click.option("--host", help="Address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port to listen on; 0 takes any free one.  [default: 8000]")
@click.option("--metrics-bind", metavar="HOST:PORT",
              help="Serve /metrics there alone, instead of beside the stream.")  # fmt: skip
@redis_option
@config_option
def serve(
    host: str | None,
    port: int | None,
    metrics_bind: str | None,
    redis_url: str | None,
    config: Path | None,
) -> None:
    """Serve ticks to WebSocket clients.

    Without --redis an embedded store is started, which the other commands then find.
    """
    settings = load_settings(
        config, host=host, port=port, metrics_bind=metrics_bind, redis_url=redis_url
    )
    set_up_logging(settings)
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        raise cannot_listen(settings.host, settings.port, error) from None
    with listener:
        run_server_loop(_serve(settings, listener))


async def _serve(settings: Settings, listener: socket) -> None:
    async with provided_store(settings) as redis_url:
        await refuse_unsuitable(redis_url)
        await serve_feed(settings, redis_url, listener, lambda: None)


def cannot_listen(host: str, port: int, error: OSError) -> TickcastError:
    """The error that tells why a socket could not be opened."""
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
    return TickcastError(f"can't listen on {host}:{port}: {reason}")


async def serve_feed(
    settings: Settings, redis_url: str, listener: socket, on_started: Callable[[], None]
) -> None:
    """Serve until SIGINT or SIGTERM, with the page at `/`; says where once it listens."""
    with bind_metrics(settings) or nullcontext() as metrics_listener:

        def started() -> None:
            if metrics_listener is not None:
                click.echo(f"metrics at {address_of(metrics_listener)}/metrics")
            click.echo(f"listening on {address_of(listener)}")
            on_started()

        app = create_app(settings, redis_url, DASHBOARD, metrics_listener)
        await run_server(app, settings, listener, started)


def bind_metrics(settings: Settings) -> socket | None:
    """The socket that `metrics_bind` asks for.

    Raises:
        TickcastError: it could not be opened.
    """
    if settings.metrics_address is None:
        return None
    try:
        return bind(*settings.metrics_address)
    except OSError as error:
        raise cannot_listen(*settings.metrics_address, error) from None
