"""`tickcast record`: records ticks from a server to tapes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from clients.commands.connecting import (
    Connect,
    ca_option,
    check_symbol,
    connector,
    token_hint,
    token_option,
)
from clients.commands.recorder import DEFAULT_SLOW_POLICY, Recorder, Rotation, positions_of
from clients.load.addresses import feed_of
from clients.terminal.tables import format_age
from tickcast.client.accounts import Gap, Position, describe_gap
from tickcast.client.stream import Stream
from tickcast.commands.options import DURATION, ValueType, check_channel, parse_duration
from tickcast.commands.running import counted, run
from tickcast.tapes.library import RecordingDirectory
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import ConnectionFailed, InvalidSettings, RecordingFailed
from tickcast.wire.ticks import DEFAULT_FEED
from tickcast.wire.times import NS_PER_SECOND

_SIZE_UNITS: Final = {"KB": 1000, "MB": 1000**2, "GB": 1000**3}
_GAPS_SHOWN: Final = 20
# How often progress is shown on a terminal, and printed elsewhere.
_STATUS_S: Final = 1.0
_LINE_S: Final = 60.0


def _parse_rotation(text: str) -> Rotation:
    if match := re.fullmatch(r"(\d{1,9})(KB|MB|GB)", text):
        rotation = Rotation(after_bytes=int(match[1]) * _SIZE_UNITS[match[2]])
    else:
        rotation = Rotation(after_s=parse_duration(text))
    if not (rotation.after_s or rotation.after_bytes):
        raise ValueError("is neither a duration such as 1h nor a size such as 1GB")
    return rotation


@click.command()
@click.argument("url")
@click.option("--trades", multiple=True, metavar="SYMBOLS",
              help="Symbols, separated by commas; '*' is all of them.")  # fmt: skip
@click.option("--quotes", multiple=True, metavar="SYMBOLS", help="The same for quotes,")
@click.option("--bars", multiple=True, metavar="SYMBOLS", help="for one-minute bars,")
@click.option("--channel", "others", multiple=True, metavar="CHANNEL=SYMBOLS",
              help="and for any channel: bars:5s=ES,NQ")  # fmt: skip
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True,
              metavar="FOLDER", help="Where the tapes go; one recorder to a folder.")  # fmt: skip
@click.option("--rotate", "rotation", type=ValueType("rotation", _parse_rotation),
              metavar="TIME|SIZE",
              help="Begin another tape after this time, 1h, or size, 1GB.")  # fmt: skip
@click.option("--flush", "flush_s", type=DURATION, default="1s", show_default=True,
              help="Write ticks to disk at least this often.")  # fmt: skip
@click.option("--slow", type=click.Choice(["close", "skip", "conflate"]),
              default=DEFAULT_SLOW_POLICY, show_default=True,
              help="What the server does if the recorder is too slow.")  # fmt: skip
@click.option("--encoding", type=click.Choice([each.value for each in Encoding]), default="json",
              show_default=True)  # fmt: skip
@ca_option
@token_option
@click.option("--limit", type=click.IntRange(min=1), help="Stop after that many ticks.")
@click.option("--duration", "duration_s", type=DURATION, help="Stop after this time.")
def record(
    url: str,
    trades: tuple[str, ...],
    quotes: tuple[str, ...],
    bars: tuple[str, ...],
    others: tuple[str, ...],
    out: Path,
    rotation: Rotation | None,
    flush_s: float,
    slow: str,
    encoding: str,
    ca_file: str | None,
    token: str | None,
    limit: int | None,
    duration_s: float | None,
) -> None:
    """Record ticks from a server to tapes; see docs/recording.md.

    The recording continues where the newest tape in the folder ends. Ticks from in between that the
    server still has are recorded too; others are noted as a gap.
    """
    connect = partial(connector(url, ca_file, token), encoding=encoding)
    directory = RecordingDirectory(out, feed_of(url) or DEFAULT_FEED, url)
    options = [("trades", trades), ("quotes", quotes), ("bars", bars)]
    for option in others:
        channel, _, symbols = option.partition("=")
        check_channel(channel, "--channel")
        options.append((channel, (symbols,)))
    requested: dict[str, list[str]] = {}
    for channel, values in options:
        for symbol in ",".join(values).split(",") if values else ():
            check_symbol(symbol)
            if symbol not in requested.setdefault(channel, []):
                requested[channel].append(symbol)
    if not requested:
        raise InvalidSettings("nothing to record: name --trades, --quotes, --bars or --channel")
    if not flush_s:
        raise InvalidSettings("--flush: must be above 0")
    new_recorder = partial(Recorder, directory, rotation or Rotation(), flush_s, slow)
    run(_record(directory, new_recorder, connect, requested, token, limit, duration_s))


async def _record(
    directory: RecordingDirectory,
    new_recorder: Callable[[], Recorder],
    connect: Connect,
    requested: dict[str, list[str]],
    token: str | None,
    limit: int | None,
    duration_s: float | None,
) -> None:
    display = _Display()
    with directory.locked():
        recorded = [
            Position(each.channel, each.symbol, each.epoch, each.seq)
            for each in directory.positions(display.print_line)
            if each.seq is not None
        ]
        current: list[Position] = []
        if recorded:
            async with connect() as stream:
                with token_hint(token):
                    current = await positions_of(stream, requested)
        async with connect(on_gap=display.add_gap) as stream:
            recorder = display.recorder = new_recorder()
            try:
                with token_hint(token):
                    await recorder.begin(stream, requested, recorded, current)
                with display.progress(stream), suppress(TimeoutError):
                    async with asyncio.timeout(duration_s):
                        await recorder.record(stream, limit)
            except BaseException as error:
                is_empty = not (recorder.ticks or recorder.gaps)
                if isinstance(error, RecordingFailed):
                    recorder.abandon()
                elif isinstance(error, ConnectionFailed) and is_empty:
                    recorder.discard()
                else:
                    recorder.finish()
                    display.print_summary()
                raise
            recorder.finish()
            display.print_summary()


class _Display:
    """Shows the progress of a recording on stderr."""

    def __init__(self) -> None:
        self.recorder: Recorder
        self._stderr = Console(stderr=True, highlight=False, soft_wrap=True)
        # When the rate was last measured, and the number of ticks then.
        self._measured = (0.0, 0)

    def print_line(self, text: str) -> None:
        """Print one line."""
        self._stderr.print(Text(f"tickcast: {text}"))

    def add_gap(self, gap: Gap) -> None:
        """Record a gap, and report it."""
        self.recorder.add_gap(gap)
        if self.recorder.gaps <= _GAPS_SHOWN:
            self.print_line(describe_gap(gap))
        elif self.recorder.gaps == _GAPS_SHOWN + 1:
            self.print_line("further gaps are recorded, but not shown")

    @contextmanager
    def progress(self, stream: Stream) -> Iterator[None]:
        """Show a status line on a terminal; elsewhere, print a line every minute."""
        live = None
        if self._stderr.is_terminal:
            live = Live(console=self._stderr, auto_refresh=False, transient=True)
        with live or nullcontext():
            task = asyncio.get_running_loop().create_task(self._show_progress(stream, live))
            try:
                yield
            finally:
                task.cancel()

    async def _show_progress(self, stream: Stream, live: Live | None) -> None:
        while True:
            await asyncio.sleep(_STATUS_S if live else _LINE_S)
            text = self._status()
            if not stream.connected:
                text = f"DISCONNECTED, reconnecting …  {text}"
            if live:
                live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
            else:
                self.print_line(text)

    def _status(self) -> str:
        recorder, now = self.recorder, time.monotonic()
        then, ticks = self._measured
        rate = (recorder.ticks - ticks) / (now - then) if then else 0.0
        self._measured = (now, recorder.ticks)
        lag = "–"
        if recorder.last_tick is not None:
            lag = format_age((recorder.received - recorder.last_tick.time) / NS_PER_SECOND)
        return (
            f"{recorder.ticks:,} ticks, {rate:,.0f} ticks/s,"
            f" {recorder.stored_bytes:,} bytes, lag {lag}"
        )

    def print_summary(self) -> None:
        """Print what was recorded."""
        done = self.recorder
        self.print_line(
            f"recorded {counted(done.ticks, 'tick')}, {counted(done.stored_bytes, 'byte')}"
            f" in {counted(done.tapes, 'tape')}, {counted(done.gaps, 'gap')}"
        )
