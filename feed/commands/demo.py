"""`tickcast demo`: a store, a server and a market in one command."""

from __future__ import annotations

import asyncio
import ipaddress
import shlex
import socket as sockets
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from socket import socket
from typing import Final

import click

from feed.commands.serve import check_tapes, serve_feed
from feed.server.sockets import CannotListen, address_of, bind_all
from feed.transport.tls import Certificate, certificate_of, fingerprint, provide_self_signed
from tickcast.broker.embedded import prepare_directory, provided_store
from tickcast.commands.group import command_module
from tickcast.commands.options import RATE, config_option
from tickcast.commands.running import run_server_loop, set_up_logging
from tickcast.settings import Settings, load_settings
from tickcast.tasks import OutageLog, cancel_and_wait
from tickcast.wire.errors import InvalidSettings, LeaseHeld, TickcastError
from tickcast.wire.ticks import DEFAULT_FEED, Timeframe

_PORTS_TRIED = 50
_AGAIN_S = 1.0
# A failure after working for this long is reported again, as a new one.
_SETTLED_S = 30.0
_TIMEFRAMES: Final[tuple[Timeframe, ...]] = ("1s", "5s", "1m")


@click.command()
@click.option("--port", type=int, help="Port to try first.  [default: 8000]")
@click.option("--symbols", type=click.IntRange(1, 1000), default=20, show_default=True)
@click.option("--rate", type=RATE, default=200, show_default=True,
              help="Ticks per second, over all symbols.")  # fmt: skip
@click.option("--tls", "self_signed", is_flag=True,
              help="Serve https and wss, with a self-signed certificate.")  # fmt: skip
@config_option
def demo(
    port: int | None, symbols: int, rate: float, self_signed: bool, config: Path | None
) -> None:
    """Run a store, a server and a simulated market, until Ctrl-C."""
    settings = load_settings(config, port=port)
    set_up_logging(settings)
    certificate = certificate_of(settings)
    check_tapes(settings)
    if self_signed and certificate is not None:
        raise InvalidSettings("--tls makes a certificate; tls_cert names one already")
    with ExitStack() as stack:
        listeners = [stack.enter_context(each) for each in _bind_free(settings)]
        run_server_loop(_demo(settings, listeners, symbols, rate, certificate, self_signed))


async def _demo(
    settings: Settings,
    listeners: Sequence[socket],
    symbols: int,
    rate: float,
    certificate: Certificate | None,
    self_signed: bool,
) -> None:
    async with provided_store(settings) as redis_url:
        tasks: list[asyncio.Task[None]] = []
        advice = ""
        if self_signed:
            certificate, advice = _make_certificate(settings, address_of(listeners[0], tls=True))

        def start_market() -> None:
            address = address_of(listeners[0], tls=certificate is not None)
            click.echo(
                f"open {address}{settings.root_path or ''}/ in a browser; Ctrl-C ends the demo"
            )
            click.echo(advice, nl=False)
            tasks.append(asyncio.create_task(_run_market(settings, symbols, rate)))
            tasks.append(asyncio.create_task(_run_bars(settings)))

        try:
            await serve_feed(settings, redis_url, listeners, start_market, certificate)
        finally:
            await cancel_and_wait(tasks)


def _make_certificate(settings: Settings, address: str) -> tuple[Certificate, str]:
    """Create a self-signed certificate, and a message that says how to trust it."""
    directory, _ = prepare_directory(settings)
    try:
        files = provide_self_signed(directory, _names_of(settings.host))
    except OSError as error:
        raise TickcastError(f"{error.filename}: {error.strerror}") from None
    file = shlex.quote(str(files.cert))
    stream = address.replace("https", "wss", 1) + "/stream"
    return Certificate(*files), (
        f"its certificate is self-signed; tell each client once to trust it:\n"
        f"  tickcast watch '*' --ca {file} --url {stream}\n"
        f"  curl --cacert {file} {address}/health\n"
        "  a browser warns; go on if the certificate it shows has the SHA-256 fingerprint\n"
        f"  {fingerprint(files.cert)}\n"
    )


def _names_of(hosts: Sequence[str]) -> list[str]:
    """Return the names by which clients may call the hosts that the server listens on."""
    names = list(hosts)
    for host in hosts:
        try:
            is_any = ipaddress.ip_address(host).is_unspecified
        except ValueError:
            continue
        if is_any:
            names.append(sockets.gethostname())
    return names


async def _run_market(settings: Settings, symbols: int, rate: float) -> None:
    publish_market = command_module("synth").publish_market
    reminders = OutageLog()
    while True:
        started_s = time.monotonic()
        try:
            await publish_market(settings, DEFAULT_FEED, symbols, rate)
        except TickcastError as error:
            # The publisher handles outages, but a configured Redis may not be running yet.
            await _report_and_wait(reminders, error, "no market for now", started_s)


async def _run_bars(settings: Settings) -> None:
    make_bars = command_module("bars").make_bars
    reminders = OutageLog()
    while True:
        started_s = time.monotonic()
        try:
            await make_bars(settings, DEFAULT_FEED, _TIMEFRAMES)
        except LeaseHeld:
            await asyncio.sleep(_AGAIN_S)  # Another demo on the same store makes the bars.
        except TickcastError as error:
            await _report_and_wait(reminders, error, "no bars for now", started_s)


async def _report_and_wait(
    reminders: OutageLog, error: TickcastError, message: str, started_s: float
) -> None:
    now_s = time.monotonic()
    if now_s - started_s > _SETTLED_S:
        reminders.reset()
    if reminders.should_log(now_s, error):
        click.echo(f"tickcast: {message}: {error}", err=True)
    await asyncio.sleep(_AGAIN_S)


def _bind_free(settings: Settings) -> list[socket]:
    """Bind sockets to the port, or to the next free one."""
    last = min(settings.port + _PORTS_TRIED, 65_535)
    for port in range(settings.port, last + 1):
        try:
            listeners = bind_all(settings.host, port)
        except CannotListen as error:
            if error.is_in_use:
                continue
            raise
        if port != settings.port:
            click.echo(f"port {settings.port} is taken, using {port}")
        return listeners
    raise TickcastError(f"ports {settings.port} to {last} are all taken")
