"""`tickcast synth`: a made-up market."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from feed.cli.common import config_option, feed_option, open_publisher, redis_option, run
from feed.cli.parameters import Rate
from feed.settings import Settings, load_settings
from feed.times import Time
from producers.pacing import Pacer, play
from producers.synthetic import generate, symbol_names


@click.command()
@click.option("--symbols", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--rate", type=Rate(), default=200, show_default=True,
              help="Ticks per second on average, over all symbols.")  # fmt: skip
@click.option("--seed", type=int, default=7, show_default=True,
              help="The same seed gives the same ticks.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Stop after that many ticks.")
@feed_option
@redis_option
@config_option
def synth(
    symbols: int,
    rate: float,
    seed: int,
    limit: int | None,
    feed: str,
    redis_url: str | None,
    config: Path | None,
) -> None:
    """Publish trades and quotes of a made-up market until Ctrl-C."""
    settings = load_settings(config, redis_url=redis_url)
    run(_synth(settings, feed, symbols, rate, seed, limit))


async def _synth(
    settings: Settings, feed: str, symbols: int, rate: float, seed: int, limit: int | None
) -> None:
    async with open_publisher(settings, feed) as publisher:
        click.echo(f"publishing {symbols} symbols at {rate:g} ticks/s into {feed}", err=True)
        ticks = generate(symbol_names(symbols), rate, seed, Time.now())
        await play(islice(ticks, limit), publisher, Pacer())
