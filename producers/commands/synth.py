"""`tickcast synth`: publishes a simulated market."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from producers.simulation.scenarios import SCENARIOS, generate_scenario
from producers.simulation.synthetic import generate, play, symbol_names
from tickcast.commands.options import RATE, config_option, feed_option, redis_option
from tickcast.commands.running import run
from tickcast.commands.store import open_publisher
from tickcast.settings import Settings, load_settings
from tickcast.wire.times import Time


@click.command()
@click.option("--symbols", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--rate", type=RATE, default=200, show_default=True,
              help="Ticks per second on average, over all symbols.")  # fmt: skip
@click.option("--seed", type=int, default=7, show_default=True,
              help="The same seed gives the same ticks.")  # fmt: skip
@click.option("--scenario", type=click.Choice(list(SCENARIOS)),
              help="What happens to it every minute; see docs/scenarios.md.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Stop after that many ticks.")
@feed_option
@redis_option
@config_option
def synth(
    symbols: int,
    rate: float,
    seed: int,
    scenario: str | None,
    limit: int | None,
    feed: str,
    redis_url: str | None,
    config: Path | None,
) -> None:
    """Publish trades and quotes of a simulated market until Ctrl-C."""
    settings = load_settings(config, redis_url=redis_url)
    run(_synth(settings, feed, symbols, rate, seed, scenario, limit))


async def _synth(
    settings: Settings,
    feed: str,
    symbols: int,
    rate: float,
    seed: int,
    scenario: str | None,
    limit: int | None,
) -> None:
    async with open_publisher(settings, feed) as publisher:
        click.echo(f"publishing {symbols} symbols at {rate:g} ticks/s into {feed}", err=True)
        names, start = symbol_names(symbols), Time.now()
        if scenario is None:
            await play(islice(generate(names, rate, seed, start), limit), publisher)
            return
        click.echo(f"{scenario}, every minute: {SCENARIOS[scenario].text}", err=True)
        await play(
            islice(generate_scenario(scenario, names, rate, seed, start), limit),
            publisher,
            stamp=lambda tick: SCENARIOS[scenario].stamp(tick, start),
        )


async def publish_market(settings: Settings, feed: str, symbols: int, rate: float) -> None:
    """Publish a simulated market until cancelled.

    `rate` is in ticks per second over all symbols.

    Raises:
        TickcastError: Redis can't be reached at the start; outages later are handled.
    """
    async with open_publisher(settings, feed) as publisher:
        await play(generate(symbol_names(symbols), rate, seed=7, start=Time.now()), publisher)
