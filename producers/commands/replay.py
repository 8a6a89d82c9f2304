"""`tickcast replay`: plays recorded files at any speed, with controls while they play."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, Literal

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn

from producers.commands.replay_screen import shown
from producers.commands.rows import Rows, row_options, show_notes
from producers.recordings.csv import CsvRecording
from producers.recordings.sources import open_recording
from producers.simulation.merging import Chosen, Limited, Merged, parse_patterns
from producers.simulation.replay import Replay, ReplayOrder
from tickcast.broker.replays import ReplayControl
from tickcast.commands.options import (
    POSITION,
    RATE,
    SPEED,
    config_option,
    feed_option,
    redis_option,
    time_of,
)
from tickcast.commands.running import BadLines, counted, open_client, open_publisher, run
from tickcast.settings import Settings, load_settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.playback import Player, TickSource
from tickcast.wire.ticks import Tick

_SCAN_SHOWN_S: Final = 0.5


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…",
                type=click.Path(exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@row_options
@click.option("--symbols", metavar="SYMBOL,…", help="Only these; BTC-* is a prefix.")
@click.option("--speed", type=SPEED, default="1", show_default=True,
              metavar="FACTOR|max", help="How many times as fast as it happened.")  # fmt: skip
@click.option("--from", "start", type=POSITION, metavar="TIME",
              help="Begin there: 2013-09-02T13:00:00Z, +10m after the beginning, -1h before the"
                   " end.")  # fmt: skip
@click.option("--to", "end", type=POSITION, metavar="TIME", help="End there.")
@click.option("--loop", is_flag=True, help="Begin again at the end.")
@click.option("--stay", is_flag=True, help="Stay at the end, to be sent back.")
@click.option("--retime", type=click.Choice(["now"]),
              help="Give ticks the time at which they are due in place of their own.")  # fmt: skip
@click.option("--max-rate", type=RATE, metavar="TICKS",
              help="At most that many ticks per second, evenly.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Stop after that many ticks.")
@click.option("--overwrite", is_flag=True,
              help="Discard what other programs have published into the feed.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Stop at the first bad row.")
@click.option("--hash", "hashed", is_flag=True,
              help="Print the SHA-256 of each stream's ticks.")  # fmt: skip
@feed_option
@redis_option
@config_option
def replay(
    files: Sequence[Path],
    rows: Rows,
    symbols: str | None,
    speed: float,
    start: str | None,
    end: str | None,
    loop: bool,
    stay: bool,
    retime: Literal["now"] | None,
    max_rate: float | None,
    limit: int | None,
    overwrite: bool,
    strict: bool,
    hashed: bool,
    feed: str,
    redis_url: str | None,
    config: Path | None,
) -> None:
    """Replay recorded ticks into a feed.

    FILE can be a tape, a capture, or a Parquet, DBN or CSV file.

    A replay restarts the feed's numbers and discards its history. So it refuses the default feed if
    other programs have published into it, unless --feed or --overwrite is given.

    Several files are played together, in the order of their times. In a terminal, space pauses and
    resumes, the arrows seek, + and - change the speed, s steps and q quits. From elsewhere, use
    `tickcast replayctl`.

    Columns of CSV and Parquet files are found by their usual names: time or timestamp, price, size
    or volume, symbol, side, bid, ask, bid_size, ask_size. Times keep all their digits.
    """
    settings = load_settings(config, redis_url=redis_url)
    if hashed and retime:
        raise click.UsageError("--hash goes with the times of the recording, not with --retime")
    bad = [BadLines(str(file), strict) for file in files]
    recordings = [
        open_recording(file, rows.symbol, rows.columns, each.report, rows.form)
        for file, each in zip(files, bad, strict=True)
    ]
    source = _choose(recordings, symbols, limit)
    for file, recording in zip(files, recordings, strict=True):
        show_notes(file, recording)
    source_of_feed = click.get_current_context().get_parameter_source("feed")
    order = ReplayOrder(
        retime=retime is not None,
        max_rate=max_rate,
        limit=limit,
        stay=stay,
        hashed=hashed,
        overwrite=overwrite or source_of_feed is not ParameterSource.DEFAULT,
    )
    with closing(_deck(source, speed, start, end, loop)) as deck:
        run(_replay(settings, feed, deck, order, bad))


def _choose(
    recordings: Sequence[TickSource[Tick]], symbols: str | None, limit: int | None
) -> TickSource[Tick]:
    """Return the source of the selected ticks of the recordings."""
    for recording in recordings:
        if isinstance(recording, CsvRecording):
            _scan(recording)
    source = recordings[0] if len(recordings) == 1 else Merged(recordings)
    if symbols is not None:
        try:
            source = Chosen(source, parse_patterns(symbols))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--symbols") from None
    return source if limit is None else Limited(source, limit)


def _scan(recording: CsvRecording) -> None:
    """Find the first and last time of a recording, with a progress bar if that takes long."""
    began = time.monotonic()
    with ExitStack() as stack:
        bar: Progress | None = None

        def on_progress() -> None:
            nonlocal bar
            if bar is None and sys.stderr.isatty() and time.monotonic() - began > _SCAN_SHOWN_S:
                columns = ("looking through the file", BarColumn(), TimeRemainingColumn())
                bar = stack.enter_context(
                    Progress(*columns, console=Console(stderr=True), transient=True)
                )
                bar.add_task("", total=recording.size_bytes)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=recording.position_bytes)

        recording.scan(on_progress)


def _deck(
    source: TickSource[Tick], speed: float, start: str | None, end: str | None, loop: bool
) -> Player[Tick]:
    try:
        return Player(
            source,
            time.monotonic(),
            speed=speed,
            start=time_of(start, source.first, source.last),
            end=time_of(end, source.first, source.last),
            loop=loop,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None


async def _replay(
    settings: Settings, feed: str, deck: Player[Tick], order: ReplayOrder, bad: Sequence[BadLines]
) -> None:
    async with (
        open_client(settings) as client,
        open_publisher(settings, feed, waits=True) as publisher,
    ):
        deck.postpone(time.monotonic())
        replay = Replay(deck, publisher, ReplayControl(client, feed), order)
        began = time.monotonic()
        screen = asyncio.create_task(shown(replay))
        try:
            await replay.run()
        finally:
            await cancel_and_wait([screen])
        took = time.monotonic() - began
    for key, digest in replay.hashes().items():
        click.echo(f"{digest}  {key}")
    for each in bad:
        each.fail_if_any(replay.count)
    rate = replay.count / max(took, 1e-9)
    click.echo(
        f"replayed {counted(replay.count, 'tick')} in {took:.1f} s ({rate:,.0f} ticks/s)", err=True
    )
