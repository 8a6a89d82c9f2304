"""`tickcast record`: records ticks from a server to tapes."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Final, NamedTuple

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from clients.commands.connecting import ca_option, token_hint, token_option
from clients.load.addresses import feed_of
from clients.recorder.record import SLOW, Recorder, Rotation, positions_of
from clients.terminal.tables import format_age
from tickcast.client.accounts import Gap, Position, describe_gap
from tickcast.client.stream import Stream, connect
from tickcast.commands.options import DURATION
from tickcast.commands.running import counted, run
from tickcast.tapes.library import RecordingDirectory
from tickcast.wire.encoding import Encoding
from tickcast.wire.errors import ConnectionFailed, InvalidSettings, RecordingFailed
from tickcast.wire.subscriptions import is_pattern
from tickcast.wire.ticks import CHANNELS, DEFAULT_FEED
from tickcast.wire.times import NS_PER_SECOND

_SIZES: Final = {"KB": 1000, "MB": 1000**2, "GB": 1000**3}
_GAPS_TOLD: Final = 20
_PACE_S: Final = 1.0
_PACE_IN_LOGS_S: Final = 60.0


class Rotate(click.ParamType[Rotation]):
    """A duration or a size: 1h, 30m, 1GB, 500MB."""

    name = "rotation"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Rotation:
        text = str(value)
        if match := re.fullmatch(r"(\d{1,9})(KB|MB|GB)", text):
            rotation = Rotation(after_bytes=int(match[1]) * _SIZES[match[2]])
        else:
            rotation = Rotation(after_s=DURATION.convert(text, param, ctx))
        if not (rotation.after_s or rotation.after_bytes):
            self.fail(f"{text!a} is neither a time such as 1h nor a size such as 1GB", param, ctx)
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
@click.option("--rotate", type=Rotate(), metavar="TIME|SIZE",
              help="Begin another tape after so long, 1h, or so much, 1GB.")  # fmt: skip
@click.option("--flush", "flush_s", type=DURATION, default="1s", show_default=True,
              help="What is received is on the disk after so long.")  # fmt: skip
@click.option("--slow", type=click.Choice(["close", "skip", "conflate"]), default=SLOW,
              show_default=True, help="What the server is to do when it is faster.")  # fmt: skip
@click.option("--encoding", type=click.Choice([each.value for each in Encoding]), default="json",
              show_default=True)  # fmt: skip
@ca_option
@token_option
@click.option("--limit", type=click.IntRange(min=1), help="Stop after that many ticks.")
@click.option("--duration", "duration_s", type=DURATION, help="Stop after so long.")
def record(
    url: str,
    trades: tuple[str, ...],
    quotes: tuple[str, ...],
    bars: tuple[str, ...],
    others: tuple[str, ...],
    out: Path,
    rotate: Rotation | None,
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
    feed = _feed_of(url)
    wanted = _wanted(trades, quotes, bars, others)
    shelf = RecordingDirectory(out, feed, url)
    rotation = rotate or Rotation()
    if not flush_s:
        raise InvalidSettings("--flush: must be above 0")
    server = _Server(url, encoding, ca_file, token)
    run(_record(shelf, server, wanted, rotation, flush_s, slow, limit, duration_s))


def _feed_of(url: str) -> str:
    if not url.startswith(("ws://", "wss://")):
        raise InvalidSettings(f"{url!a} does not begin with ws:// or wss://")
    return feed_of(url) or DEFAULT_FEED


def _wanted(
    trades: tuple[str, ...], quotes: tuple[str, ...], bars: tuple[str, ...], others: tuple[str, ...]
) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    named = [("trades", each) for each in trades]
    named += [("quotes", each) for each in quotes]
    named += [("bars", each) for each in bars]
    for each in others:
        channel, _, symbols = each.partition("=")
        if channel not in CHANNELS:
            raise InvalidSettings(f"--channel: {channel!a} is none of {', '.join(CHANNELS)}")
        named.append((channel, symbols))
    for channel, symbols in named:
        for symbol in symbols.split(","):
            if not is_pattern(symbol):
                raise InvalidSettings(f"{symbol!a} is no symbol")
            wanted.setdefault(channel, []).append(symbol)
    if not wanted:
        raise InvalidSettings("nothing to record: name --trades, --quotes, --bars or --channel")
    return {channel: list(dict.fromkeys(symbols)) for channel, symbols in wanted.items()}


class _Server(NamedTuple):
    """The server to connect to, with the options for the connection."""

    url: str
    encoding: str
    ca_file: str | None
    token: str | None

    def connect(
        self, on_gap: Callable[[Gap], None] | None = None
    ) -> AbstractAsyncContextManager[Stream]:
        """Open a connection to the server."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else None
        return connect(
            self.url, encoding=self.encoding, headers=headers, tls=self.ca_file, on_gap=on_gap
        )


async def _record(
    shelf: RecordingDirectory,
    server: _Server,
    wanted: dict[str, list[str]],
    rotation: Rotation,
    flush_s: float,
    slow: str,
    limit: int | None,
    duration_s: float | None,
) -> None:
    teller = _Teller()
    with shelf.locked():
        known = [
            Position(each.channel, each.symbol, each.epoch, each.seq)
            for each in shelf.positions(teller.print_line)
            if each.seq is not None
        ]
        present: list[Position] = []
        if known:
            async with server.connect() as stream:
                with token_hint(server.token):
                    present = await positions_of(stream, wanted)
        async with server.connect(teller.add_gap) as stream:
            recorder = teller.recorder = Recorder(shelf, rotation, flush_s, slow)
            try:
                with token_hint(server.token):
                    await recorder.begin(stream, wanted, known, present)
                with teller.progress(lambda: stream.connected), suppress(TimeoutError):
                    async with asyncio.timeout(duration_s):
                        await recorder.run(stream, limit)
            except ConnectionFailed:
                if recorder.ticks or recorder.gaps:
                    recorder.close()
                    teller.sum_up()
                else:
                    recorder.discard()
                raise
            except RecordingFailed:
                recorder.abandon()
                raise
            except BaseException:
                recorder.close()
                teller.sum_up()
                raise
            recorder.close()
            teller.sum_up()


class _Teller:
    """Reports the progress of the recording on stderr."""

    def __init__(self) -> None:
        self.recorder: Recorder | None = None
        self._stderr = Console(stderr=True, highlight=False, soft_wrap=True)
        self._before = (0.0, 0)
        self._rate = 0.0

    def print_line(self, words: str) -> None:
        """Print one line."""
        self._stderr.print(Text(f"tickcast: {words}"))

    def add_gap(self, gap: Gap) -> None:
        """Count a gap, and report it."""
        assert self.recorder is not None
        self.recorder.add_gap(gap)
        if self.recorder.gaps <= _GAPS_TOLD:
            self.print_line(describe_gap(gap))
        elif self.recorder.gaps == _GAPS_TOLD + 1:
            self.print_line("further gaps are only noted on the tape")

    @contextmanager
    def progress(self, is_connected: Callable[[], bool]) -> Iterator[None]:
        """Show a status line on a terminal; elsewhere, print a line every minute."""
        is_terminal = self._stderr.is_terminal
        live = Live(console=self._stderr, auto_refresh=False, transient=True)
        with live if is_terminal else nullcontext():
            task = asyncio.get_running_loop().create_task(
                self._tell(live if is_terminal else None, is_connected)
            )
            try:
                yield
            finally:
                task.cancel()

    async def _tell(self, live: Live | None, is_connected: Callable[[], bool]) -> None:
        while True:
            await asyncio.sleep(_PACE_IN_LOGS_S if live is None else _PACE_S)
            words = self._line(is_connected())
            if live is None:
                self.print_line(words)
            else:
                live.update(Text(words, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _line(self, connected: bool) -> str:
        assert self.recorder is not None
        now = time.monotonic()
        then, count = self._before
        self._rate = (self.recorder.ticks - count) / (now - then) if then else 0.0
        self._before = (now, self.recorder.ticks)
        last = self.recorder.last
        lag = format_age((self.recorder.rx - last.time) / NS_PER_SECOND) if last else "–"
        line = (
            f"{self.recorder.ticks:,} ticks, {self._rate:,.0f} ticks/s,"
            f" {self.recorder.stored_bytes:,} bytes, lag {lag}"
        )
        return line if connected else f"DISCONNECTED, reconnecting …  {line}"

    def sum_up(self) -> None:
        """Print a summary of the recording."""
        done = self.recorder
        assert done is not None
        self.print_line(
            f"recorded {counted(done.ticks, 'tick')}, {counted(done.stored_bytes, 'byte')}"
            f" in {counted(done.tapes, 'tape')}, {counted(done.gaps, 'gap')}"
        )
