"""`tickcast serve`: runs the server, with the embedded store unless another one is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from importlib import resources
from pathlib import Path
from socket import socket

import click

from feed.server.app import create_app
from feed.server.running import serve as run_server
from feed.server.sockets import CannotListen, address_of, bind, bind_all, raise_file_limit
from feed.transport.tls import Certificate, certificate_of
from tickcast.broker.embedded import provided_store
from tickcast.commands.options import config_option, redis_option
from tickcast.commands.running import run_server_loop, set_up_logging
from tickcast.commands.store import check_redis
from tickcast.settings import Settings, load_settings
from tickcast.wire.errors import InvalidSettings

# The built page, found by name because the server imports no client.
DASHBOARD = Path(str(resources.files("clients"))) / "dashboard" / "dist"


@click.command()
@click.option("--host", multiple=True,
              help="Address to listen on; repeatable, and :: is every address of IPv6 and IPv4."
                   "  [default: 127.0.0.1]")  # fmt: skip
@click.option("--port", type=int, help="Port to listen on; 0 takes any free one.  [default: 8000]")
@click.option("--tls-cert", metavar="FILE",
              help="PEM file of a certificate and its chain: serve https and wss.")  # fmt: skip
@click.option("--tls-key", metavar="FILE", help="PEM file of its private key.")
@click.option("--auth", metavar="FILE", help="API keys, as `tickcast keys` makes them.")
@click.option(
    "--jwt-key", metavar="FILE", help="Take tokens signed with this key: PEM, or a secret."
)
@click.option("--jwks-url", metavar="URL", help="Take tokens signed with the keys published there.")
@click.option("--tapes", metavar="DIR",
              help="Let clients have the tapes there played to themselves.")  # fmt: skip
@click.option("--root-path", metavar="PATH",
              help="Serve below this path, such as /ticks, for a proxy that keeps it.")  # fmt: skip
@click.option("--metrics-bind", metavar="HOST:PORT",
              help="Serve /metrics there alone, instead of beside the stream.")  # fmt: skip
@redis_option
@config_option
def serve(config: Path | None, host: tuple[str, ...], **options: str | int | None) -> None:
    """Serve ticks to WebSocket clients.

    Without --redis, an embedded store is started, and other commands find it. With --auth,
    --jwt-key or --jwks-url, clients need credentials.
    """
    settings = load_settings(config, None, host=",".join(host) or None, **options)
    set_up_logging(settings)
    certificate = certificate_of(settings)
    check_tapes(settings)
    with ExitStack() as stack:
        listeners = [stack.enter_context(each) for each in bind_all(settings.host, settings.port)]
        run_server_loop(_serve(settings, listeners, certificate))


def check_tapes(settings: Settings) -> None:
    """Check that the directory of tapes is a directory. Raises InvalidSettings."""
    if settings.tapes is not None and not Path(settings.tapes).is_dir():
        raise InvalidSettings(f"tapes: {settings.tapes} is no directory")


async def _serve(
    settings: Settings, listeners: Sequence[socket], certificate: Certificate | None
) -> None:
    async with provided_store(settings) as redis_url:
        await check_redis(redis_url, settings.feeds)
        await serve_feed(settings, redis_url, listeners, lambda: None, certificate)


async def serve_feed(
    settings: Settings,
    redis_url: str,
    listeners: Sequence[socket],
    on_started: Callable[[], None],
    certificate: Certificate | None = None,
) -> None:
    """Serve until a signal arrives, with the page at `/`, and print the address when listening."""
    raise_file_limit()
    with bind_metrics(settings) or nullcontext() as metrics_listener:

        def started() -> None:
            if metrics_listener is not None:
                click.echo(f"metrics at {address_of(metrics_listener)}/metrics")
            for listener in listeners:
                click.echo(f"listening on {address_of(listener, tls=certificate is not None)}")
            on_started()

        app = create_app(settings, redis_url, DASHBOARD, metrics_listener)
        await run_server(app, settings, listeners, started, certificate)


def bind_metrics(settings: Settings) -> socket | None:
    """Bind the socket for the setting `metrics_bind`. Raises TickcastError."""
    if settings.metrics_address is None:
        return None
    try:
        return bind(*settings.metrics_address)
    except OSError as error:
        raise CannotListen(*settings.metrics_address, error) from None
