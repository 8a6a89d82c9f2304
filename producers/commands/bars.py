"""`tickcast bars`: makes bars from the trades of a feed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

import click

from producers.bars.bar_maker import BarMaker
from producers.bars.builder import BarBuilder
from tickcast.broker.client import make_client
from tickcast.broker.embedded import find_store
from tickcast.commands.options import DURATION, config_option, feed_option, redis_option
from tickcast.commands.running import run, set_up_logging
from tickcast.commands.store import open_publisher
from tickcast.settings import Settings, load_settings
from tickcast.wire.subscriptions import is_pattern
from tickcast.wire.ticks import Timeframe

_TIMEFRAMES: Final[tuple[Timeframe, ...]] = get_args(Timeframe)


class Timeframes(click.ParamType[tuple[Timeframe, ...]]):
    """Timeframes, separated by commas."""

    name = "timeframes"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Timeframe, ...]:
        if isinstance(value, tuple):
            return value
        words = [word.strip() for word in str(value).split(",")]
        for word in words:
            if word not in _TIMEFRAMES:
                self.fail(f"{word!a} is none of {', '.join(_TIMEFRAMES)}", param, ctx)
        return tuple(each for each in _TIMEFRAMES if each in words)


def _check_patterns(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[str, ...]:
    for value in values:
        if not is_pattern(value):
            raise click.BadParameter(f"{value!a} is neither a symbol nor a prefix with *")
    return values


@click.command()
@click.option("--timeframes", type=Timeframes(), default="1s,1m", show_default=True,
              help="Of 1s, 5s, 1m, 5m, 1h, 1d, with commas between.")  # fmt: skip
@click.option("--lateness", type=DURATION,
              help="How much later than a newer one a trade may come.  [default: 2s]")  # fmt: skip
@click.option("--fill/--no-fill", help="Bars without trades, for symbols that are quiet.")
@click.option("--symbols", multiple=True, metavar="PATTERN", default=["*"], show_default=True,
              callback=_check_patterns,
              help="A symbol, or a prefix such as BTC-*; may be repeated.")  # fmt: skip
@feed_option
@redis_option
@config_option
def bars(
    timeframes: tuple[Timeframe, ...],
    lateness: float | None,
    fill: bool,
    symbols: tuple[str, ...],
    feed: str,
    redis_url: str | None,
    config: Path | None,
) -> None:
    """Publish bars of a feed's trades until Ctrl-C.

    Each bar is published when it closes. After a restart, the command continues where it stopped.
    """
    settings = load_settings(config, redis_url=redis_url, bars_lateness_s=lateness)
    set_up_logging(settings)
    run(make_bars(settings, feed, timeframes, symbols, fill=fill))


async def make_bars(
    settings: Settings,
    feed: str,
    timeframes: Sequence[Timeframe],
    symbols: Sequence[str] = ("*",),
    *,
    fill: bool = False,
) -> None:
    """Make bars until cancelled. Raises like `BarMaker.run_forever`, and StoreUnavailable."""
    async with (
        make_client(await find_store(settings)) as client,
        open_publisher(settings, feed, waits=True) as publisher,
    ):
        made = BarBuilder(timeframes, settings.bars_lateness_s, fill)
        await BarMaker(client, feed, settings, made, symbols, publisher).run_forever()
