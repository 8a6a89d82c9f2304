"""`tickcast replay` and `replayctl`: play recorded files at any speed, and control that."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, Literal

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn

from producers.commands.replay_screen import format_speed_factor, show_replay
from producers.commands.table_options import TableOptions, show_notes, table_options
from producers.recordings.csv import CsvRecording
from producers.recordings.files import Recording
from producers.simulation.merging import MergedSource, parse_patterns
from producers.simulation.replay import Replay, ReplayOptions
from tickcast.broker.replays import ReplayControl, steer
from tickcast.commands.options import (
    POSITION,
    RATE,
    SPEED,
    config_option,
    feed_option,
    redis_option,
    time_of,
)
from tickcast.commands.running import BadLines, counted, run
from tickcast.commands.store import open_client, open_publisher
from tickcast.settings import Settings, load_settings
from tickcast.tasks import cancel_and_wait
from tickcast.wire.encoding import Encoding, encode
from tickcast.wire.playback import (
    STEPS_MAX,
    Player,
    ReplayState,
    TickSource,
    parse_speed,
    resolve_time,
)
from tickcast.wire.ticks import Tick
from tickcast.wire.times import Time

_SCAN_SHOWN_AFTER_S: Final = 0.5
_ACTIONS: Final = ("pause", "resume", "seek", "speed", "step", "status")


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE…",
                type=click.Path(exists=True, dir_okay=False, path_type=Path))  # fmt: skip
@table_options
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
              help="The maximum number of ticks per second, evenly spread.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this number of ticks.")
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
    table: TableOptions,
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
        raise click.UsageError("--hash needs the times of the recording, so --retime excludes it")
    bad = [BadLines(str(file), strict) for file in files]
    recordings = [table.open(file, each.report) for file, each in zip(files, bad, strict=True)]
    for file, recording in zip(files, recordings, strict=True):
        if isinstance(recording, CsvRecording):
            _scan(recording, file.stat().st_size)
    source = _select(recordings, symbols, limit)
    for file, recording in zip(files, recordings, strict=True):
        show_notes(file, recording)
    source_of_feed = click.get_current_context().get_parameter_source("feed")
    options = ReplayOptions(
        retime=retime is not None,
        max_rate=max_rate,
        limit=limit,
        stay=stay,
        hashed=hashed,
        overwrite=overwrite or source_of_feed is not ParameterSource.DEFAULT,
    )
    with closing(_player(source, speed, start, end, loop)) as player:
        run(_replay(settings, feed, player, options, bad))


def _scan(recording: CsvRecording, size_bytes: int) -> None:
    """Find the first and last time of a recording, with a progress bar if that takes long."""
    began = time.monotonic()
    with ExitStack() as stack:
        bar: Progress | None = None

        def on_progress(position: int) -> None:
            nonlocal bar
            took_s = time.monotonic() - began
            if bar is None and sys.stderr.isatty() and took_s > _SCAN_SHOWN_AFTER_S:
                columns = ("looking through the file", BarColumn(), TimeRemainingColumn())
                bar = stack.enter_context(
                    Progress(*columns, console=Console(stderr=True), transient=True)
                )
                bar.add_task("", total=size_bytes)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=position)

        recording.scan(on_progress)


def _select(
    recordings: Sequence[Recording], symbols: str | None, limit: int | None
) -> TickSource[Tick]:
    """Return the source of the selected ticks of the recordings."""
    try:
        patterns = None if symbols is None else parse_patterns(symbols)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--symbols") from None
    if len(recordings) == 1 and patterns is None and limit is None:
        return recordings[0]
    return MergedSource(recordings, patterns, limit)


def _player(
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
    settings: Settings,
    feed: str,
    player: Player[Tick],
    options: ReplayOptions,
    bad: Sequence[BadLines],
) -> None:
    async with (
        open_client(settings) as client,
        open_publisher(settings, feed, waits=True) as publisher,
    ):
        player.postpone(time.monotonic())
        replay = Replay(player, publisher, ReplayControl(client, feed), options)
        began = time.monotonic()
        screen = asyncio.create_task(show_replay(replay))
        try:
            await replay.run()
        finally:
            await cancel_and_wait([screen])
        took_s = time.monotonic() - began
    for stream, digest in replay.hashes().items():
        click.echo(f"{digest}  {stream}")
    for each in bad:
        each.fail_if_any(replay.count)
    rate = replay.count / max(took_s, 1e-9)
    ticks = counted(replay.count, "tick")
    click.echo(f"replayed {ticks} in {took_s:.1f} s ({rate:,.0f} ticks/s)", err=True)


# -- control


# An unknown option may be a value, as in `seek -30s`.
@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("action", type=click.Choice(_ACTIONS), metavar="ACTION")
@click.argument("value", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the state as clients get it.")
@feed_option
@redis_option
@config_option
def replayctl(
    action: str,
    value: str | None,
    as_json: bool,
    feed: str,
    redis_url: str | None,
    config: Path | None,
) -> None:
    """Control the replay of a feed, and print its state.

    \b
    replayctl status
    replayctl pause                  and resume
    replayctl seek 2013-09-02T13:00:00Z
    replayctl seek +10m              relative to the current time; also -30s
    replayctl speed 50               or max
    replayctl step 3                 pause, and publish three ticks
    """
    settings = load_settings(config, redis_url=redis_url)
    state = run(_steer(settings, feed, _command(action, value)))
    click.echo(encode(state.to_fields(), Encoding.JSON) if as_json else describe(state))


def _command(action: str, value: str | None) -> dict[str, Any]:
    """Return the message for a command."""
    try:
        match action, value:
            case "seek", str():
                resolve_time(value, Time(0))
                return {"do": "seek", "position": value}
            case "speed", str():
                parse_speed(value)
                return {"do": "speed", "speed": value}
            case "step", _:
                count = int(value or "1")
                if not 1 <= count <= STEPS_MAX:
                    raise ValueError(f"a step is 1 to {STEPS_MAX} ticks")
                return {"do": "step", "ticks": count}
            case (("seek" | "speed"), None):
                raise click.UsageError(f"{action} needs a value")
            case _, None:
                return {"do": action}
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=action) from None
    raise click.UsageError(f"{action} does not take a value")


async def _steer(settings: Settings, feed: str, command: dict[str, Any]) -> ReplayState:
    async with open_client(settings) as client:
        return await steer(client, feed, command)


def describe(state: ReplayState) -> str:
    """Describe a state in one line."""
    return (
        f"{state.mode.value} at {state.position.rfc3339()}, {format_speed_factor(state.speed)},"
        f" of {state.first.rfc3339()} to {state.last.rfc3339()}"
    )
