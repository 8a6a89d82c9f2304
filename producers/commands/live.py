"""`tickcast live`: publishes live market data of a venue."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from producers.venues.capture import Capture
from producers.venues.registry import VENUES
from producers.venues.runner import Runner
from producers.venues.venue import Venue, Wants
from tickcast.broker.publisher import Publisher
from tickcast.commands.options import (
    config_option,
    feed_option,
    open_publisher,
    redis_option,
    run,
    set_up_logging,
)
from tickcast.settings import Settings, load_settings
from tickcast.tasks import cancel_and_wait

_SYMBOLS_MAX: Final = 5000
_PROGRESS_S: Final = 0.5
_DRAIN_S: Final = 2.0


@click.command()
@click.argument("venue", type=click.Choice(sorted(VENUES)), metavar="VENUE")
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
    venue: str,
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

    Symbols have the form BASE-QUOTE at every venue, such as BTC-USD.
    """
    settings = load_settings(config, redis_url=redis_url)
    chosen = VENUES[venue]
    _check_symbols(chosen, symbols)
    if url is not None:
        _check_url(url)
    try:
        kept = Capture(capture, chosen) if capture else None
    except OSError as error:
        raise click.BadParameter(
            f"{capture}: {error.strerror or error}", param_hint="--capture"
        ) from None
    wants = Wants(trades or not quotes, quotes or not trades)
    run(_live(settings, feed, chosen, tuple(dict.fromkeys(symbols)), wants, url, kept))


def _check_symbols(venue: Venue, symbols: tuple[str, ...]) -> None:
    if len(symbols) > _SYMBOLS_MAX:
        raise click.BadParameter(f"more than {_SYMBOLS_MAX:,}", param_hint="SYMBOL")
    for symbol in symbols:
        try:
            venue.symbols.theirs(symbol)
        except ValueError as error:
            raise click.BadParameter(f"{venue.name}: {error}", param_hint="SYMBOL") from None


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("ws", "wss") and parts.hostname and not parts.fragment
        _ = parts.port  # raises ValueError for an invalid port
    except ValueError:
        good = False
    if not good:
        raise click.BadParameter(f"{url!a} is no ws:// or wss:// address", param_hint="--url")


async def _live(
    settings: Settings,
    feed: str,
    venue: Venue,
    symbols: tuple[str, ...],
    wants: Wants,
    url: str | None,
    capture: Capture | None,
) -> None:
    with _screen(settings) as line:  # Before the publisher, which then writes to the log.
        async with open_publisher(settings, feed) as publisher:
            runner = Runner(venue, symbols, wants, publisher.publish, url=url, capture=capture)
            drawing = asyncio.create_task(_draw(line, runner)) if line else None
            try:
                await runner.run()
            finally:
                await _drain(publisher)
                if line and drawing:
                    await cancel_and_wait([drawing])
                    line.stop()
                tally = runner.intake.tally
                click.echo(
                    f"{tally.ticks:,} ticks from {venue.name}, {tally.missing:,} missing,"
                    f" {runner.reconnects:,} reconnects, {tally.bad_frames:,} bad frames",
                    err=True,
                )


async def _drain(publisher: Publisher) -> None:
    """Publish the ticks accepted so far, in spite of the cancellation.

    Ticks that can't be published in time are reported when the publisher closes.
    """
    draining = asyncio.create_task(publisher.drain_or_give_up(_DRAIN_S))
    while not draining.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([draining])
    draining.exception()


@contextmanager
def _screen(settings: Settings) -> Iterator[Live | None]:
    """Set up logging, and on a terminal a status line below the log."""
    if not sys.stderr.isatty():
        set_up_logging(settings)
        yield None
        return
    with Live(Text(), console=Console(stderr=True), auto_refresh=False, transient=True) as line:
        set_up_logging(settings)  # Now, so that log lines appear above.
        yield line


async def _draw(line: Live, runner: Runner) -> None:
    meter = LiveMeter()
    while True:
        line.update(Text(meter.read(runner, time.monotonic()), no_wrap=True), refresh=True)
        await asyncio.sleep(_PROGRESS_S)


class LiveMeter:
    """Makes the status line: totals, and rates since the last reading."""

    def __init__(self) -> None:
        self._before: tuple[float, int] | None = None

    def read(self, runner: Runner, now_s: float) -> str:
        """Return the current status line."""
        tally = runner.intake.tally
        rate = 0.0
        if self._before and now_s > self._before[0]:
            rate = (tally.ticks - self._before[1]) / (now_s - self._before[0])
        self._before = (now_s, tally.ticks)
        skew = runner.intake.skew.ns
        parts = [
            f"{tally.ticks:,} ticks",
            f"{rate:,.0f}/s",
            f"{tally.gaps:,} gaps",
            f"{runner.reconnects:,} reconnects",
            f"{tally.bad_frames:,} bad frames",
            f"skew {skew / 1e6:+,.0f} ms" if skew is not None else "skew unknown",
        ]
        if not runner.connected:
            parts.insert(0, "not connected")
        return ", ".join(parts)
