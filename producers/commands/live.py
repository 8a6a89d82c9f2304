"""`tickcast live`: publishes live market data of a venue."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click
from click.shell_completion import CompletionItem
from rich.console import Console
from rich.live import Live
from rich.text import Text

from producers.venues.capture import CaptureDirectory
from producers.venues.client import VenueClient
from producers.venues.registry import find_venue, venue_names
from tickcast.commands.options import config_option, feed_option, redis_option
from tickcast.commands.running import run, set_up_logging
from tickcast.commands.standard_streams import logged_on_stderr
from tickcast.commands.store import flush_in_time, open_publisher
from tickcast.settings import Settings, load_settings
from tickcast.tasks import cancel_and_wait
from tickcast.venues import TickKinds, Venue

_SYMBOLS_MAX: Final = 5000
_REFRESH_S: Final = 0.5


class VenueName(click.ParamType["Venue"]):
    """The name of a venue, converted to the venue."""

    name = "venue"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Venue:
        """Load the venue. Raises InvalidVenue."""
        with logged_on_stderr("tickcast.venues"):
            venue = value if isinstance(value, Venue) else find_venue(value)
            if venue is None:
                names = ", ".join(map(repr, venue_names()))
                self.fail(f"{value!r} is not one of {names}.", param, ctx)
        return venue

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete the names, without importing the venues of other packages."""
        return [CompletionItem(name) for name in venue_names() if name.startswith(incomplete)]


class _LiveCommand(click.Command):
    """Lists the venues in the help. They depend on the installed packages."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(f"Venues: {', '.join(venue_names())}.")


@click.command(cls=_LiveCommand)
@click.argument("venue", type=VenueName(), metavar="VENUE")
@click.argument("symbols", nargs=-1, required=True, metavar="SYMBOL…")
@click.option("--trades", is_flag=True, help="Trades; with neither option, both.")
@click.option("--quotes", is_flag=True, help="Best bids and asks.")
@click.option("--capture", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
              help="Keep all raw frames there, for `tickcast replay`.")  # fmt: skip
@click.option("--url", metavar="URL", help="Where, if not at the venue's public address.")
@feed_option
@redis_option
@config_option
def live(
    venue: Venue,
    symbols: tuple[str, ...],
    trades: bool,
    quotes: bool,
    capture: Path | None,
    url: str | None,
    feed: str,
    redis_url: str | None,
    config: Path | None,
) -> None:
    """Publish live market data of a venue until Ctrl-C.

    Symbols have the form BASE-QUOTE at every built-in venue, such as BTC-USD.
    """
    settings = load_settings(config, redis_url=redis_url)
    _check_symbols(venue, symbols)
    if url is not None:
        _check_url(url)
    try:
        directory = CaptureDirectory(capture, venue) if capture else None
    except OSError as error:
        raise click.BadParameter(
            f"{capture}: {error.strerror or error}", param_hint="--capture"
        ) from None
    kinds = TickKinds(trades or not quotes, quotes or not trades)
    run(_live(settings, feed, venue, tuple(dict.fromkeys(symbols)), kinds, url, directory))


def _check_symbols(venue: Venue, symbols: tuple[str, ...]) -> None:
    if len(symbols) > _SYMBOLS_MAX:
        raise click.BadParameter(f"more than {_SYMBOLS_MAX:,}", param_hint="SYMBOL")
    for symbol in symbols:
        try:
            venue.symbols.to_market(symbol)
        except ValueError as error:
            raise click.BadParameter(f"{venue.name}: {error}", param_hint="SYMBOL") from None


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("ws", "wss") and parts.hostname and not parts.fragment
        _ = parts.port  # Raises ValueError for an invalid port.
    except ValueError:
        is_valid = False
    if not is_valid:
        raise click.BadParameter(f"{url!a} is not a ws:// or wss:// address", param_hint="--url")


async def _live(
    settings: Settings,
    feed: str,
    venue: Venue,
    symbols: tuple[str, ...],
    kinds: TickKinds,
    url: str | None,
    capture: CaptureDirectory | None,
) -> None:
    with _screen(settings) as screen:  # Before the publisher, which then writes to the log.
        async with open_publisher(settings, feed) as publisher:
            client = VenueClient(venue, symbols, kinds, publisher.publish, url=url, capture=capture)
            refreshing = asyncio.create_task(_refresh(screen, client)) if screen else None
            try:
                await client.follow_markets()
            finally:
                await flush_in_time(publisher)
                if screen and refreshing:
                    await cancel_and_wait([refreshing])
                    screen.stop()
                counts = client.normalizer.counts
                click.echo(
                    f"{counts.ticks:,} ticks from {venue.name}, {counts.missing:,} missing,"
                    f" {client.reconnects:,} reconnects, {counts.bad_frames:,} bad frames",
                    err=True,
                )


@contextmanager
def _screen(settings: Settings) -> Iterator[Live | None]:
    """Set up logging, and on a terminal a status line below the log."""
    if not sys.stderr.isatty():
        set_up_logging(settings)
        yield None
        return
    with Live(Text(), console=Console(stderr=True), auto_refresh=False, transient=True) as screen:
        set_up_logging(settings)  # Now, so that log lines appear above.
        yield screen


async def _refresh(screen: Live, client: VenueClient) -> None:
    status = StatusLine()
    while True:
        screen.update(Text(status.format(client, time.monotonic()), no_wrap=True), refresh=True)
        await asyncio.sleep(_REFRESH_S)


class StatusLine:
    """Formats totals, and rates since the line before."""

    def __init__(self) -> None:
        # When the line before was formatted, and the number of ticks then.
        self._before: tuple[float, int] | None = None

    def format(self, client: VenueClient, now_s: float) -> str:
        """Return the current line."""
        counts = client.normalizer.counts
        rate = 0.0
        if self._before and now_s > self._before[0]:
            rate = (counts.ticks - self._before[1]) / (now_s - self._before[0])
        self._before = (now_s, counts.ticks)
        skew_ns = client.normalizer.skew.ns
        parts = [
            f"{counts.ticks:,} ticks",
            f"{rate:,.0f}/s",
            f"{counts.gaps:,} gaps",
            f"{client.reconnects:,} reconnects",
            f"{counts.bad_frames:,} bad frames",
            "skew unknown" if skew_ns is None else f"skew {skew_ns / 1e6:+,.0f} ms",
        ]
        if not client.connected:
            parts.insert(0, "not connected")
        return ", ".join(parts)
