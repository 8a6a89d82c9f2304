"""`tickcast tape`: inspects, checks, edits and converts tapes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

import click

from producers.commands.table_options import TableOptions, show_notes, table_options
from tickcast.commands.options import POSITION, check_channel, check_feed, time_of
from tickcast.commands.running import BadLines, counted
from tickcast.tapes.editing import cut, merge
from tickcast.tapes.export import export
from tickcast.tapes.manifest import (
    SUFFIX,
    Manifest,
    StreamSummary,
    encode_manifest,
    id_of,
    is_tape_id,
    manifest_path,
)
from tickcast.tapes.tape import Tape
from tickcast.tapes.verify import TapeChain, TapeReport, verify
from tickcast.tapes.writer import FRAME_BYTES, TapeWriter
from tickcast.tasks import stop_signals
from tickcast.wire.errors import (
    InvalidRecording,
    InvalidSettings,
    InvalidTape,
    InvalidTick,
    RecordingFailed,
)
from tickcast.wire.subscriptions import Coverage, Subscription, is_pattern
from tickcast.wire.ticks import CHANNELS, DEFAULT_FEED

_SHOWN_MAX: Final = 20
# All tapes of a merge are open at once.
_TAPES_MAX: Final = 200

_files = click.argument(
    "files", nargs=-1, required=True, metavar="FILE…",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)  # fmt: skip
_file = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
_out = click.option(
    "--out", "-o", type=click.Path(dir_okay=False, path_type=Path), required=True,
    metavar="FILE", help=f"The new tape: NAME{SUFFIX}.",
)  # fmt: skip


@click.group()
def tape() -> None:
    """Inspect, check, cut, merge, export and import tapes.

    docs/recording.md describes tapes.
    """


# -- inspect


@tape.command()
@_files
@click.option("--all", "show_all", is_flag=True, help=f"All streams and gaps, not {_SHOWN_MAX}.")
@click.option("--json", "as_json", is_flag=True, help="The manifests, as JSON.")
def info(files: tuple[Path, ...], show_all: bool, as_json: bool) -> None:
    """Show the contents of tapes, including unfinished ones."""
    for path in files:
        opened = Tape.open(path)
        if as_json:
            click.echo(encode_manifest(opened.manifest), nl=False)
        else:
            for line in _describe(opened, None if show_all else _SHOWN_MAX):
                click.echo(line)


def _describe(tape: Tape, shown: int | None) -> Iterator[str]:
    manifest = tape.manifest
    state = "complete" if manifest.complete else "not finished"
    yield f"{tape.id}: {_counts(manifest)}, {state}"
    if tape.torn_bytes:
        yield f"  {tape.torn_bytes:,} bytes at the end belong to no finished flush"
    source = f" from {manifest.source}" if manifest.source else ""
    yield f"  feed {manifest.feed}{source}"
    if manifest.ticks:
        yield f"  {tape.first.rfc3339()} to {tape.last.rfc3339()}"
    yield f"  content {manifest.content}"
    for stream in manifest.streams[:shown]:
        yield f"  {_describe_stream(stream)}"
    if shown is not None and len(manifest.streams) > shown:
        yield f"  and {len(manifest.streams) - shown:,} more streams: --all"
    for gap in manifest.gaps[:shown]:
        what = "the numbering restarts"
        if gap.reason != "epoch":
            what = f"{_number(gap.first_seq)} to {_number(gap.last_seq)} ({gap.reason})"
        yield f"  gap {gap.channel} {gap.symbol}: {what}"
    if shown is not None and len(manifest.gaps) > shown:
        yield f"  and {len(manifest.gaps) - shown:,} more gaps: --all"


def _describe_stream(stream: StreamSummary) -> str:
    text = f"{stream.channel} {stream.symbol}: {counted(stream.ticks, 'tick')}"
    if stream.first_seq is not None:
        text += f", {stream.first_seq:,} to {_number(stream.last_seq)}"
    return f"{text}, epoch {stream.epoch}" if stream.epoch else text


def _number(seq: int | None) -> str:
    return "…" if seq is None else f"{seq:,}"


def _counts(manifest: Manifest) -> str:
    return (
        f"{counted(manifest.ticks, 'tick')} of {counted(len(manifest.streams), 'stream')},"
        f" {counted(len(manifest.gaps), 'gap')}, {manifest.bytes:,} bytes"
    )


@tape.command("verify")
@_files
def verify_(files: tuple[Path, ...]) -> None:
    """Check the hashes, manifests and numbers of tapes.

    Every tick must be on the tape or in a gap.

    If you name several tapes of one feed in their order, this also checks that each tape continues
    where the one before ends.
    """
    chain = TapeChain()
    bad = 0
    for path in files:
        try:
            report = verify(path)
        except InvalidTape as error:
            click.echo(f"BAD   {error}")
            bad += 1
            continue
        faults = [*report.faults, *chain.check(path, report)]
        click.echo(_line_of(path, report, faults))
        for fault in faults:
            click.echo(f"      {fault}")
        bad += bool(faults)
    if bad:
        raise InvalidTape(f"{bad:,} of {len(files):,} tapes {'is' if bad == 1 else 'are'} bad")


def _line_of(path: Path, report: TapeReport, faults: list[str]) -> str:
    line = f"{'BAD ' if faults else 'good'}  {id_of(path)}: {_counts(report.manifest)}"
    if not report.manifest.complete:
        line += ", not finished"
    if report.torn_bytes:
        line += f", {report.torn_bytes:,} bytes behind the last flush"
    return line


# -- edit


@tape.command("cut")
@_file
@_out
@click.option("--from", "begin", type=POSITION, metavar="TIME",
              help="Ticks from this time on: 2013-09-02T13:00:00Z, +10m after the beginning, -1h"
              " before the end,")  # fmt: skip
@click.option("--to", "end", type=POSITION, metavar="TIME", help="and before this one.")
@click.option("--symbols", metavar="SYMBOLS", help="Of these alone: 'ES,BTC-*'.")
@click.option("--channels", metavar="CHANNELS", help="Of these alone: trades,bars:5s.")
def cut_(
    file: Path, out: Path, begin: str | None, end: str | None, symbols: str | None,
    channels: str | None,
) -> None:  # fmt: skip
    """Copy part of a tape: a time span, some symbols, some channels."""
    source = Tape.open(file)
    coverage = coverage_of(symbols, channels)
    try:
        begin_at, end_at = (time_of(each, source.first, source.last) for each in (begin, end))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    with new_tape(out, source.manifest.feed, source.id) as writer:
        cut(source, writer, begin_at, end_at, coverage)


@tape.command("merge")
@_files
@_out
def merge_(files: tuple[Path, ...], out: Path) -> None:
    """Merge several tapes into one, in the order of their ticks' times.

    The order is stable. Tapes of one recording keep their numbers if you name them in their order.
    """
    if len(files) > _TAPES_MAX:
        raise InvalidSettings(f"{len(files)} tapes, and at most {_TAPES_MAX} at a time")
    sources = [Tape.open(path) for path in files]
    feeds = {source.manifest.feed for source in sources}
    with new_tape(out, feeds.pop() if len(feeds) == 1 else "merged") as writer:
        merge(sources, writer)


def coverage_of(symbols: str | None, channels: str | None) -> Coverage | None:
    """Return the coverage of the options for symbols and channels; None means all."""
    if symbols is None and channels is None:
        return None
    patterns = ["*"] if symbols is None else symbols.split(",")
    names = list(CHANNELS) if channels is None else channels.split(",")
    for pattern in patterns:
        if not is_pattern(pattern):
            raise InvalidSettings(f"--symbols: {pattern!a} is not a symbol")
    for name in names:
        check_channel(name, "--channels")
    return Coverage([Subscription(name, pattern) for name in names for pattern in patterns])


@contextmanager
def new_tape(path: Path, feed: str, source: str = "") -> Iterator[TapeWriter]:
    """Create a tape, and remove it again if writing it fails.

    Raises InvalidSettings for an invalid name, and RecordingFailed.
    """
    if not path.name.endswith(SUFFIX) or not is_tape_id(id_of(path)):
        raise InvalidSettings(f"--out: {path}: the name of a tape is NAME{SUFFIX}")
    if manifest_path(path).exists():
        raise RecordingFailed(f"{manifest_path(path)}: File exists")
    with _interrupted_by_signals():
        writer = TapeWriter(path, feed, source)
        try:
            yield writer
            writer.close()
        except BaseException:
            writer.discard()
            raise
    click.echo(f"{id_of(path)}: {_counts(Tape.open(path).manifest)}", err=True)


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Treat signals that end a command like Ctrl-C, so that it can clean up."""
    before = {number: signal.signal(number, _interrupt) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


# -- export and import


@tape.command("export")
@_files
@click.option("--format", "format", type=click.Choice(["parquet", "csv"]), default="parquet",
              show_default=True)  # fmt: skip
@click.option("--out", "-o", type=click.Path(file_okay=False, path_type=Path), default=".",
              show_default=True, metavar="FOLDER")  # fmt: skip
@click.option("--symbols", metavar="SYMBOLS", help="Of these alone: 'ES,BTC-*'.")
@click.option("--channels", metavar="CHANNELS", help="Of these alone: trades,bars:5s.")
def export_(
    files: tuple[Path, ...], format: str, out: Path, symbols: str | None, channels: str | None
) -> None:
    """Export tapes to Parquet or CSV tables.

    There is one table for each channel: NAME-trades.parquet, and so on.

    Times keep their nanoseconds. Parquet requires pyarrow: pip install 'tickcast[parquet]'.
    """
    coverage = coverage_of(symbols, channels)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecordingFailed(f"{out}: {error.strerror}") from None
    for path in files:
        for written, rows in export(Tape.open(path), out, format, coverage):
            click.echo(f"{written}: {rows:,} rows", err=True)


@tape.command("import")
@_file
@_out
@table_options
@click.option("--feed", default=DEFAULT_FEED, show_default=True, callback=check_feed,
              help="The feed that the tape is to be of.")  # fmt: skip
def import_(file: Path, out: Path, table: TableOptions, feed: str) -> None:
    """Make a tape from any file that `tickcast replay` plays.

    The file can be CSV, Parquet, Databento's DBN, a capture of a venue or a tape, which is detected
    from its content. Rows that are not valid ticks are left out, and the exit code is 1.
    """
    bad = BadLines(str(file), strict=False)
    recording = table.open(file, bad.report)
    show_notes(file, recording)
    # A file name need not be UTF-8, but the text on a tape is.
    name = os.fsencode(file.name).decode("utf-8", "replace")
    with new_tape(out, feed, name) as writer:
        for tick in recording:
            writer.append_tick(tick)
            if writer.waiting_bytes > FRAME_BYTES:
                writer.flush()
        if not writer.stats.ticks:
            raise InvalidRecording(f"{file}: no ticks, so no tape; {counted(bad.count, 'bad row')}")
    if bad.count:
        raise InvalidTick(f"{file}: {counted(bad.count, 'bad row')} left out")
