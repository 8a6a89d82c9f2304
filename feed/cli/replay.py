"""`tickcast replay`: a recorded file, in its own rhythm or faster."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from feed.cli.common import (
    BadInput,
    config_option,
    feed_option,
    open_publisher,
    redis_option,
    run,
)
from feed.cli.parameters import Rate
from feed.settings import Settings, load_settings
from feed.ticks import Tick, is_symbol
from producers.pacing import Pacer, play
from producers.recordings import CsvRecording, parse_columns


class Speed(click.ParamType[float | None]):
    """A factor above 0, or `max`."""

    name = "speed"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        if value == "max":
            return None
        try:
            speed = float(str(value))
        except ValueError:
            speed = 0.0
        if not 0.01 <= speed <= 10_000:
            self.fail(f"{value!a} is neither a number from 0.01 to 10000 nor max", param, ctx)
        return speed


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--symbol", help="Symbol of rows that name none.")
@click.option("--columns", metavar="WHAT=NAME,…",
              help="Which column holds what, if names do not say: time=When,price=Px")  # fmt: skip
@click.option("--speed", type=Speed(), default="1", show_default=True, metavar="FACTOR|max",
              help="Divides the recorded spacing.")  # fmt: skip
@click.option("--max-rate", type=Rate(), metavar="TICKS",
              help="At most that many ticks per second, evenly.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Stop after that many ticks.")
@click.option("--strict", is_flag=True, help="Stop at the first bad row.")
@feed_option
@redis_option
@config_option
def replay(
    file: Path,
    symbol: str | None,
    columns: str | None,
    speed: float | None,
    max_rate: float | None,
    limit: int | None,
    strict: bool,
    feed: str,
    redis_url: str | None,
    config: Path | None,
) -> None:
    """Publish the trades and quotes of a CSV file (also .gz and .zst).

    Columns are found by their usual names: time or timestamp, price, size or volume, symbol, side,
    bid, ask, bid_size, ask_size. Times keep all their digits.
    """
    settings = load_settings(config, redis_url=redis_url)
    if symbol is not None and not is_symbol(symbol):
        raise click.BadParameter(f"{symbol!a} is no symbol", param_hint="--symbol")
    try:
        mapping = parse_columns(columns) if columns else {}
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--columns") from None
    bad = BadInput(str(file), strict)
    recording = CsvRecording(file, symbol, mapping, bad.report)
    pacer = Pacer(speed, max_rate)
    run(_replay(settings, feed, recording, limit, pacer, bad))


async def _replay(
    settings: Settings,
    feed: str,
    recording: CsvRecording,
    limit: int | None,
    pacer: Pacer,
    bad: BadInput,
) -> None:
    began = time.monotonic()
    async with open_publisher(settings, feed, waits=True) as publisher:
        with _progress(recording, limit) as on_progress:
            count = await play(islice(recording, limit), publisher, pacer, on_progress)
    took = time.monotonic() - began
    bad.fail_if_any(count)
    click.echo(f"replayed {count:,} ticks in {took:.1f} s ({count / took:,.0f} ticks/s)", err=True)


@contextmanager
def _progress(recording: CsvRecording, limit: int | None) -> Iterator[Callable[[Tick, int], None]]:
    """A bar on the terminal: share done, position in the recording, ticks/s, speed, time left."""
    if not sys.stderr.isatty():
        yield lambda tick, count: None
        return
    with Progress(
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[position]}", style="cyan"),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=5,
        transient=True,
    ) as bar:
        task = bar.add_task("", total=limit or recording.size_bytes, position="", figures="")
        meter = _Meter()

        def on_progress(tick: Tick, count: int) -> None:
            bar.update(
                task,
                completed=count if limit else recording.position_bytes,
                position=tick.time.rfc3339(),
                figures=meter.read(tick, count),
            )

        yield on_progress


class _Meter:
    """Ticks per second and speed, over the last second or so."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._from: tuple[int, int] | None = None
        self._text = ""

    def read(self, tick: Tick, count: int) -> str:
        now = time.monotonic()
        if self._from is None:
            self._from = (count, tick.time)
        elapsed = now - self._since
        if elapsed >= 1:
            ticks, recorded_ns = count - self._from[0], tick.time - self._from[1]
            self._text = f"{ticks / elapsed:,.0f} ticks/s, {recorded_ns / 1e9 / elapsed:,.1f}×"
            self._since, self._from = now, (count, tick.time)
        return self._text
